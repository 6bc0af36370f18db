/** What finished slices say about the next ones, and that they spoil nothing else that is measured. */
import { describe, expect, it } from "vitest";
import { SliceTime } from "../../../coordinator/scheduler/timing/slice-time.js";
import { TimingModel } from "../../../coordinator/scheduler/timing/timing-model.js";

const baseUs = 10_000;
const hopsUs = 600;
/** A decode step of two such stages. */
const decode = { rows: 1, keys: 300 };

/** A model that has seen so many decode steps. */
function measured(steps: number, itlTargetMs = 200): { model: TimingModel; next: number } {
  const model = new TimingModel({ stageCount: 2, itlTargetMs });
  for (let step = 1; step <= steps; step++) {
    model.sent(step, decode, null);
    model.finished(step, { stageUs: [baseUs, baseUs], roundtripUs: 2 * baseUs + hopsUs });
  }
  return { model, next: steps + 1 };
}

/** A slice of 2,048 rows and one layer beside a decode. */
function slice(model: TimingModel, step: number, stage: number, us: number): void {
  model.sent(step, decode, { stage, work: 2_048 });
  const stageUs = [baseUs, baseUs];
  stageUs[stage]! += us;
  model.finished(step, { stageUs, roundtripUs: 2 * baseUs + hopsUs + us });
}

describe("the time of a slice", () => {
  it("is per row and layer of its stage, and forgets a disturbance", () => {
    const time = new SliceTime();
    expect(time.us(0)).toBeNull();
    time.add({ stage: 0, work: 100 }, 500);
    expect([time.us(0), time.us(1)]).toEqual([5, null]);
    time.add({ stage: 0, work: 100 }, 1_000_000);
    // It counts as three times what was known.
    expect(time.us(0)).toBe(10);
    for (let n = 0; n < 100; n++) time.add({ stage: 0, work: 200 }, 1_000);
    expect(time.us(0)).toBeCloseTo(5, 1);
  });

  it("is never negative, though more was taken off than it took", () => {
    const time = new SliceTime();
    time.add({ stage: 0, work: 10 }, -5);
    expect(time.us(0)).toBe(0);
  });
});

describe("slices by the target", () => {
  const question = { has: decode, stage: 0, microBatches: 2 };

  it("are not known before steps and a slice of that stage have come back", () => {
    const young = measured(10);
    slice(young.model, young.next, 0, 20_480);
    expect(young.model.sliceWork(question)).toBeNull();
    const { model, next } = measured(64);
    expect(model.sliceWork(question)).toBeNull();
    slice(model, next, 1, 20_480);
    expect(model.sliceWork(question)).toBeNull();
  });

  it("take what the decodes of a cycle leave of it", () => {
    const { model, next } = measured(64);
    slice(model, next, 0, 20_480);
    // 10 us per row and layer; a cycle of two micro-batches is 20.6 ms by its hops.
    expect(model.sliceWork(question)).toBeCloseTo((200_000 - 20_600) / 10, 0);
    expect(model.sliceWork({ ...question, microBatches: 4 })).toBeCloseTo((200_000 - 40_000) / 10, 0);
  });

  it("get nothing where decodes alone take longer, and are one layer then", () => {
    const { model, next } = measured(64, 15);
    slice(model, next, 0, 20_480);
    expect(model.sliceWork(question)).toBe(0);
  });

  it("leave what is known of decodes and hops as it was", () => {
    const { model, next } = measured(64);
    const before = model.times;
    for (let n = 0; n < 64; n++) slice(model, next + n, n % 2, 50_000 + 1_000 * n);
    for (let n = 64; n < 128; n++) {
      model.sent(next + n, decode, null);
      model.finished(next + n, { stageUs: [baseUs, baseUs], roundtripUs: 2 * baseUs + hopsUs });
    }
    expect(model.times!.hopUs).toBeCloseTo(before!.hopUs, 3);
    expect(model.times!.stages[0]!.baseUs).toBeCloseTo(before!.stages[0]!.baseUs, 3);
  });

  it("do not make the hops of a step that waited behind one look long", () => {
    const { model, next } = measured(64);
    model.sent(next, decode, { stage: 0, work: 2_048 });
    model.sent(next + 1, decode, null);
    model.finished(next, { stageUs: [500_000, baseUs], roundtripUs: 520_000 });
    model.finished(next + 1, { stageUs: [baseUs, baseUs], roundtripUs: 530_000 });
    for (let n = 2; n < 34; n++) {
      model.sent(next + n, decode, null);
      model.finished(next + n, { stageUs: [baseUs, baseUs], roundtripUs: 2 * baseUs + hopsUs });
    }
    expect(model.times!.hopUs).toBeCloseTo(hopsUs, 0);
  });
});
