/** Micro-batches, budgets and chunks from measured times. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  bestMicroBatches,
  cycleUs,
  decodeSize,
  equalTimeRows,
  type PipelineTimes,
  rowsWithin,
} from "../../../coordinator/scheduler/timing/cycle.js";
import { MicroBatchChoice } from "../../../coordinator/scheduler/timing/micro-batch-choice.js";
import { RoundTrips } from "../../../coordinator/scheduler/timing/round-trips.js";
import { StageFit, type StageTime } from "../../../coordinator/scheduler/timing/stage-fit.js";
import { causalKeys, type StepSize } from "../../../coordinator/scheduler/timing/step-size.js";
import type { ChunkQuestion } from "../../../coordinator/scheduler/timing/step-timing.js";
import { TimingModel } from "../../../coordinator/scheduler/timing/timing-model.js";

const most = 32;

/** Numbers in [0, 1), always the same ones (Numerical Recipes' LCG). */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

const timeOf = ({ baseUs, rowUs, keyUs }: StageTime, { rows, keys }: StepSize): number =>
  baseUs + rowUs * rows + keyUs * keys;

/**
 * GLM-130B on 4 RTX 3090 (pipeline-theory.md, 1.2 and 1.3): scales per row, INT8 KV and head, 70 % of the
 * bandwidth, half the arithmetic, hops of 0.5 ms.
 */
const fourCards: PipelineTimes = {
  stages: [18, 18, 18, 16].map((layers, stage) => {
    const [bandwidth, reached] = [936e3, 0.7];
    const weightBytes = layers * 0.906e9 + (stage === 3 ? 1.85e9 : 0);
    return {
      baseUs: weightBytes / bandwidth / reached,
      rowUs: 0,
      keyUs: (layers * 24_960) / bandwidth / reached,
    };
  }),
  hopUs: 4 * 500,
  stationUs: 0,
};

describe("the cycle of a pipeline", () => {
  const tokensPerSecond = (running: number, context: number, microBatches: number) =>
    (running / cycleUs(fourCards, microBatches, decodeSize({ running, context }, microBatches))) * 1e6;

  it("is the one that the theory has for 17 sequences of 1,024 tokens on four cards", () => {
    expect(tokensPerSecond(17, 1_024, 4)).toBeCloseTo(150, -1);
    expect(tokensPerSecond(17, 1_024, 5)).toBeCloseTo(125, -1);
    expect(tokensPerSecond(17, 1_024, 1)).toBeCloseTo(115, -1);
    expect(tokensPerSecond(35, 512, 4)).toBeCloseTo(308, -1);
    expect(tokensPerSecond(8, 2_048, 4)).toBeCloseTo(71, -1);
  });

  it("chooses the number below where one more micro-batch reads the weights once more for nothing", () => {
    expect(bestMicroBatches(fourCards, { running: 17, context: 1_024 }, most)).toBe(4);
    expect(bestMicroBatches(fourCards, { running: 35, context: 512 }, most)).toBe(4);
    expect(bestMicroBatches(fourCards, { running: 2, context: 512 }, most)).toBe(2);
    expect(bestMicroBatches(fourCards, { running: 1, context: 512 }, most)).toBe(1);
  });

  it("needs twice as many micro-batches as stages when hops take as long as stages", () => {
    const stages = [0, 1, 2, 3].map(() => ({ baseUs: 8_000, rowUs: 0, keyUs: 0 }));
    const times = { stages, hopUs: 4 * 8_000, stationUs: 0 };
    expect(bestMicroBatches(times, { running: 64, context: 100 }, most)).toBe(8);
  });

  it("chooses the number above where time grows with rows and a stage would be idle half the time", () => {
    const stages = [0, 1].map(() => ({ baseUs: 10, rowUs: 1_000, keyUs: 0 }));
    const times = { stages, hopUs: 0.9 * 8_000, stationUs: 0 };
    const load = { running: 16, context: 0 };
    const best = bestMicroBatches(times, load, most);
    const cycles = Array.from({ length: 16 }, (_, index) =>
      cycleUs(times, index + 1, decodeSize(load, index + 1)),
    );
    expect(cycles[best - 1]).toBe(Math.min(...cycles));
    expect(best).toBe(4);
  });

  it("has its minimum at the chosen number, whatever the times are", () => {
    const stage = fc.record({
      baseUs: fc.integer({ min: 0, max: 50_000 }),
      rowUs: fc.integer({ min: 0, max: 5_000 }),
      keyUs: fc.double({ min: 0, max: 2, noNaN: true }),
    });
    fc.assert(
      fc.property(
        fc.array(stage, { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 0, max: 200_000 }),
        fc.constantFrom(0, 0, 100, 30_000),
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 0, max: 4_000 }),
        (stages, hopUs, stationUs, running, context) => {
          const load = { running, context };
          const times = { stages, hopUs, stationUs };
          const best = bestMicroBatches(times, load, most);
          expect(best).toBeGreaterThanOrEqual(1);
          expect(best).toBeLessThanOrEqual(Math.min(running, most));
          const cycleOf = (count: number) => cycleUs(times, count, decodeSize(load, count));
          for (let count = 1; count <= Math.min(running, most); count++) {
            expect(cycleOf(best)).toBeLessThanOrEqual(cycleOf(count) * (1 + 1e-9));
          }
        },
      ),
      { numRuns: 300, seed: 1 },
    );
  });
});

describe("the rows of a step", () => {
  /** The same cards computing: 0.893 ms a row at the peak, twice that in practice. */
  const computing = (rowUs: number): PipelineTimes => ({
    stages: fourCards.stages.map(() => ({ baseUs: 0, rowUs, keyUs: 0 })),
    hopUs: 0,
    stationUs: 0,
  });

  it("are what the theory has for 200 ms and four micro-batches: 28 to 56", () => {
    const none = { rows: 0, keys: 0 };
    expect(Math.floor(rowsWithin(computing(2 * 893), 4, none, 0, 200_000))).toBe(27);
    expect(Math.floor(rowsWithin(computing(893), 4, none, 0, 200_000))).toBe(55);
  });

  it("keep the cycle at the limit and not above it, beside what the step has", () => {
    const random = randomNumbers(5);
    for (let round = 0; round < 200; round++) {
      const stages = Array.from({ length: 1 + Math.floor(random() * 6) }, () => ({
        baseUs: random() * 5_000,
        rowUs: random() * 900,
        keyUs: random() * 0.5,
      }));
      const times = { stages, hopUs: random() * 3_000, stationUs: 0 };
      const has = { rows: Math.floor(random() * 20), keys: Math.floor(random() * 20_000) };
      const start = Math.floor(random() * 4_000);
      const microBatches = 1 + Math.floor(random() * 8);
      const rows = rowsWithin(times, microBatches, has, start, 200_000);
      const cycleWith = (more: number) =>
        cycleUs(times, microBatches, {
          rows: has.rows + more,
          keys: has.keys + causalKeys(start, more),
        });
      if (rows > 0) expect(cycleWith(rows)).toBeCloseTo(200_000, 0);
      else expect(cycleWith(0)).toBeGreaterThanOrEqual(200_000);
    }
  });

  it("become fewer for late chunks, so that the damped time is between that of the first and of as many rows", () => {
    const times = { stages: [{ baseUs: 3_000, rowUs: 100, keyUs: 0.2 }], hopUs: 0, stationUs: 0 };
    const cost = (start: number, rows: number) => 100 * rows + 0.2 * causalKeys(start, rows);
    expect(equalTimeRows(times, 0, 256)).toBeCloseTo(256, 6);
    let before = 256;
    for (const start of [1_000, 4_000, 16_000, 64_000]) {
      const rows = equalTimeRows(times, start, 256);
      expect(rows).toBeLessThan(before);
      expect(cost(start, rows)).toBeGreaterThan(cost(0, 256));
      expect(cost(start, rows)).toBeLessThan(cost(start, 256));
      before = rows;
    }
    const flat = { stages: [{ baseUs: 3_000, rowUs: 100, keyUs: 0 }], hopUs: 0, stationUs: 0 };
    expect(equalTimeRows(flat, 64_000, 256)).toBeCloseTo(256, 6);
  });
});

describe("the fit of a stage's time", () => {
  /** Steps as they come: mostly decodes of some sequences, now and then a chunk beside them. */
  function* sizes(random: () => number): Generator<StepSize, never> {
    for (;;) {
      const decodes = 1 + Math.floor(random() * 16);
      const context = 50 + Math.floor(random() * 2_000);
      const size = { rows: decodes, keys: decodes * context };
      if (random() < 0.2) {
        const start = 256 * Math.floor(random() * 8);
        yield { rows: size.rows + 256, keys: size.keys + causalKeys(start, 256) };
      } else yield size;
    }
  }
  const truth: StageTime[] = [
    { baseUs: 17_000, rowUs: 400, keyUs: 0.3 },
    { baseUs: 9_000, rowUs: 900, keyUs: 0.1 },
  ];

  it("finds base, row and key through noise and outliers", () => {
    const random = randomNumbers(11);
    const fit = new StageFit(2);
    const source = sizes(random);
    for (let step = 0; step < 3_000; step++) {
      const size = source.next().value;
      // A tenth of noise; one step in fifty is held up badly.
      const disturbed = random() < 0.02 ? 20 : 1;
      fit.add(
        size,
        truth.map((stage) => timeOf(stage, size) * (0.9 + 0.2 * random()) * disturbed),
      );
    }
    for (const [index, found] of fit.fit().entries()) {
      const stage = truth[index]!;
      for (const size of [
        { rows: 1, keys: 500 },
        { rows: 16, keys: 16_000 },
        { rows: 256, keys: causalKeys(0, 256) },
        { rows: 272, keys: 16_000 + causalKeys(1_792, 256) },
      ]) {
        expect(timeOf(found, size) / timeOf(stage, size)).toBeGreaterThan(0.88);
        expect(timeOf(found, size) / timeOf(stage, size)).toBeLessThan(1.15);
      }
      expect(found.baseUs / stage.baseUs).toBeCloseTo(1, 0);
      expect(found.rowUs / stage.rowUs).toBeCloseTo(1, 0);
    }
  });

  it("remembers what large steps cost through thousands of small ones, and follows a machine that slows", () => {
    const fit = new StageFit(1);
    const stage = { baseUs: 1_000, rowUs: 100, keyUs: 0 };
    const large = { rows: 256, keys: causalKeys(0, 256) };
    for (let step = 0; step < 20; step++) fit.add(large, [timeOf(stage, large)]);
    for (let step = 0; step < 5_000; step++) {
      const size = { rows: 4, keys: 400 };
      fit.add(size, [timeOf(stage, size)]);
    }
    expect(timeOf(fit.fit()[0]!, large) / timeOf(stage, large)).toBeCloseTo(1, 1);
    for (let step = 0; step < 300; step++) {
      for (const size of [large, { rows: 4, keys: 400 }]) fit.add(size, [5 * timeOf(stage, size)]);
    }
    expect(timeOf(fit.fit()[0]!, large) / timeOf(stage, large)).toBeCloseTo(5, 0);
  });

  it("starts over when the first step of a kind was the slow one", () => {
    const fit = new StageFit(1);
    const size = { rows: 1, keys: 10 };
    for (const us of [90_000, 1_000, 1_000, 1_000]) fit.add(size, [us]);
    expect(fit.fit()[0]!.baseUs).toBeCloseTo(1_000, 6);
  });

  it("is never negative and never NaN, whatever comes", () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            rows: fc.integer({ min: 1, max: 2_560 }),
            context: fc.integer({ min: 0, max: 131_072 }),
            us: fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constantFrom(0, 2 ** 32 - 1)),
          }),
          { maxLength: 40 },
        ),
        (steps) => {
          const fit = new StageFit(1);
          for (const { rows, context, us } of steps) fit.add({ rows, keys: rows * context }, [us]);
          for (const value of Object.values(fit.fit()[0]!)) {
            expect(Number.isFinite(value)).toBe(true);
            expect(value).toBeGreaterThanOrEqual(0);
          }
        },
      ),
      { numRuns: 300, seed: 2 },
    );
  });
});

describe("the time of hops, and of what is slow between the stages", () => {
  /** Steps on a ring of stages with first-in-first-out queues, and one more that nobody measures behind them. */
  function ring(stageUs: number[], hopUs: number, onWay: number, stationUs = 0): RoundTrips {
    const trips = new RoundTrips();
    const free = [...stageUs, stationUs].map(() => 0);
    let finishedUs = 0;
    const flight: { sentUs: number; backUs: number; finishedUs: number; onWay: number }[] = [];
    const send = (nowUs: number) => {
      let at = nowUs;
      for (const [place, us] of [...stageUs, stationUs].entries()) {
        at = Math.max(at + (place < stageUs.length ? hopUs : 0), free[place]!) + us;
        free[place] = at;
      }
      flight.push({ sentUs: nowUs, backUs: at + hopUs, finishedUs, onWay: flight.length + 1 });
    };
    for (let count = 0; count < onWay; count++) send(0);
    for (let step = 0; step < 400; step++) {
      const done = flight.shift()!;
      const roundtripUs = done.backUs - done.sentUs;
      trips.add({ onWay: done.onWay, roundtripUs, stageUs, aheadUs: finishedUs - done.finishedUs });
      finishedUs += Math.max(...stageUs);
      send(done.backUs);
    }
    return trips;
  }

  it.each([
    ["one step at a time", 1],
    ["fewer steps than saturate", 3],
  ])("is found with %s", (_, onWay) => {
    const { hopUs, stationUs } = ring([2_000, 3_000, 2_500, 2_000], 700, onWay).times;
    expect(hopUs / (5 * 700)).toBeCloseTo(1, 1);
    expect(stationUs).toBe(0);
  });

  it("is not taken for larger than it can be where steps wait for the slowest stage", () => {
    const times = ring([2_000, 3_000], 100, 8).times;
    // 8 steps of 3 ms a round: what is not computing is at most that, and no reason for a ninth step.
    expect(times.hopUs).toBeLessThan(8 * 3_000 - 5_000 + 1);
    expect(times.stationUs).toBe(0);
    const stages = [2_000, 3_000].map((baseUs) => ({ baseUs, rowUs: 0, keyUs: 0 }));
    expect(bestMicroBatches({ stages, ...times }, { running: 64, context: 0 }, most)).toBeLessThanOrEqual(8);
  });

  it("knows a slow event loop from long hops once several steps are on the way", () => {
    const trips = ring([1_000, 1_000], 100, 1, 4_000);
    expect(trips.times.hopUs).toBeCloseTo(4_300, -1);
    expect(trips.times.stationUs).toBe(0);
    // Eight on the way: each takes 4 ms there, however many wait.
    for (let step = 0; step < 40; step++) {
      trips.add({ onWay: 8, roundtripUs: 32_000, stageUs: [1_000, 1_000], aheadUs: 7_000 });
    }
    expect(trips.times.stationUs).toBeCloseTo(4_000, -1);
    const stages = [1_000, 1_000].map((baseUs) => ({ baseUs, rowUs: 0, keyUs: 0 }));
    const times = { stages, ...trips.times };
    expect(bestMicroBatches(times, { running: 64, context: 0 }, most)).toBeLessThanOrEqual(2);
  });

  it("follows the network in both directions and forgives a step that was held up", () => {
    const trips = new RoundTrips();
    const alone = (restUs: number) =>
      trips.add({ onWay: 1, roundtripUs: 1_000 + restUs, stageUs: [400, 600], aheadUs: 0 });
    for (let step = 0; step < 100; step++) alone(500);
    alone(1_000_000);
    expect(trips.times.hopUs).toBeLessThan(700);
    for (let step = 0; step < 200; step++) alone(2_000);
    expect(trips.times.hopUs).toBeCloseTo(2_000, -2);
    for (let step = 0; step < 200; step++) alone(100);
    expect(trips.times.hopUs).toBeLessThan(110);
  });

  it("forgets what steps took long ago", () => {
    const trips = new RoundTrips();
    for (let step = 0; step < 40; step++) {
      trips.add({ onWay: 4, roundtripUs: 40_000, stageUs: [1_000], aheadUs: 3_000 });
    }
    const add = () => trips.add({ onWay: 1, roundtripUs: 3_000, stageUs: [1_000], aheadUs: 0 });
    for (let step = 0; step < 500; step++) add();
    expect(trips.times).toEqual({ hopUs: 2_000, stationUs: 3_000 });
    for (let step = 0; step < 100; step++) add();
    expect(trips.times).toEqual({ hopUs: 2_000, stationUs: 0 });
  });
});

describe("the choice of micro-batches over time", () => {
  const even = (baseUs: number, rowUs: number, hopUs: number): PipelineTimes => ({
    stages: [0, 1].map(() => ({ baseUs, rowUs, keyUs: 0 })),
    hopUs,
    stationUs: 0,
  });

  it("changes for a lasting gain, step by step", () => {
    const choice = new MicroBatchChoice(2, most);
    const times = even(0, 100, 3_200);
    const load = { running: 16, context: 0 };
    const chosen = Array.from({ length: 200 }, (_, step) => choice.choose(times, load, step));
    expect(chosen.slice(0, 48)).toEqual(new Array(48).fill(2));
    // At most doubled at once: what was never tried is not known.
    expect(chosen.filter((count, step) => count !== chosen[step - 1])).toEqual([2, 4, 8, 16]);
    expect(bestMicroBatches(times, load, most)).toBe(16);
  });

  it("does not flap where noise makes now one number better and now another", () => {
    const random = randomNumbers(3);
    const choice = new MicroBatchChoice(2, most);
    const load = { running: 16, context: 0 };
    let changes = 0;
    for (let step = 0, last = 2; step < 5_000; step++) {
      // On the border between 4 and 5, give or take a tenth.
      const now = choice.choose(even(1_000, 100, 4_700 * (0.9 + 0.2 * random())), load, step);
      if (now !== last) changes++;
      last = now;
    }
    expect(changes).toBeLessThanOrEqual(2);
  });

  it("stays where a gain does not last, or is small", () => {
    const choice = new MicroBatchChoice(2, most);
    const load = { running: 16, context: 0 };
    for (let step = 0; step < 1_000; step++) {
      const times = step % 10 === 0 ? even(0, 100, 0) : even(0, 100, 3_200);
      expect(choice.choose(times, load, step)).toBe(2);
    }
  });
});

describe("the timing model", () => {
  const question = (changes: Partial<ChunkQuestion> = {}): ChunkQuestion => ({
    has: { rows: 0, keys: 0 },
    start: 0,
    most: 256,
    first: 256,
    microBatches: 2,
    alone: false,
    decoding: true,
    mayBeNone: false,
    fills: false,
    ...changes,
  });

  /** A model that has seen decodes and chunks of two such stages. */
  function measured(stage: StageTime, itlTargetMs = 200, steps = 64): TimingModel {
    const model = new TimingModel({ stageCount: 2, itlTargetMs });
    for (let step = 1; step <= steps; step++) {
      const start = 256 * (step % 7);
      const size =
        step % 3 === 0
          ? { rows: 256, keys: causalKeys(start, 256) }
          : { rows: step % 5, keys: (step % 5) * 300 };
      if (size.rows === 0) continue;
      const us = timeOf(stage, size);
      model.sent(step, size, null);
      model.finished(step, { stageUs: [us, us], roundtripUs: 2 * us + 600 });
    }
    return model;
  }

  it("knows decode steps of few rows by their number, where the line goes through the middle", () => {
    const model = new TimingModel({ stageCount: 1, itlTargetMs: 200 });
    const stairs = (rows: number, keys: number) => 10_000 + 8_000 * Math.ceil(rows / 4) + keys;
    let step = 0;
    const see = (rows: number, times: number) => {
      for (let n = 0; n < times; n++) {
        const size = { rows, keys: 100 * rows };
        model.sent(++step, size, null, true);
        model.finished(step, { stageUs: [stairs(rows, size.keys)], roundtripUs: 0 });
      }
    };
    expect(model.cycleWith({ rows: 1, keys: 100 }, [])).toBeNull();
    for (let round = 0; round < 60; round++) for (const rows of [1, 3, 4, 5, 8, 16]) see(rows, 1);
    const decodeUs = (rows: number) => model.cycleWith({ rows: 1, keys: 100 }, [])!(rows - 1);
    for (const rows of [1, 3, 4, 5, 8, 16]) {
      expect(decodeUs(rows) / stairs(rows, 100 * rows)).toBeCloseTo(1, 1);
    }
    expect(decodeUs(4) / decodeUs(1)).toBeLessThan(1.1);
    expect(decodeUs(5) / decodeUs(4)).toBeGreaterThan(1.3);
    // Between neighbours.
    expect(decodeUs(2)).toBeGreaterThanOrEqual(0.99 * decodeUs(1));
    expect(decodeUs(12)).toBeGreaterThan(decodeUs(8));
    expect(decodeUs(12)).toBeLessThan(decodeUs(16));
  });

  it("lets all steps wait for the longest, or for a stage that all of them need", () => {
    const model = measured({ baseUs: 20_000, rowUs: 1_000, keyUs: 0 });
    const decode = { rows: 4, keys: 0 };
    const long = { rows: 64, keys: 0 };
    const hopUs = model.times!.hopUs;
    // Two stages: 24 ms each for four rows.
    const alone = model.cycleWith(decode, [])!;
    expect(alone(0)).toBeCloseTo(48_000 + hopUs, -1);
    expect(alone(6)).toBeCloseTo(60_000 + hopUs, -1);
    const beside = model.cycleWith(decode, [long])!;
    expect([0, 30, 60].map((rows) => beside(rows))).toEqual(Array(3).fill(beside(0)));
    expect(beside(0)).toBeCloseTo(168_000 + hopUs, -1);
    const full = model.cycleWith(decode, [decode, decode, decode])!;
    expect(full(0)).toBeCloseTo(96_000, -1);
    expect(full(6)).toBeCloseTo(102_000, -1);
  });

  it("answers like no model until enough steps have come back", () => {
    const stage = { baseUs: 20_000, rowUs: 1_000, keyUs: 0 };
    const young = measured(stage, 200, 20);
    expect(young.times).toBeNull();
    expect(young.microBatches({ running: 4, context: 9 })).toBeNull();
    expect(young.chunkRows(question())).toBe(256);
    expect(young.rowBudget(2)).toBeNull();
  });

  it("lets decodes wait no longer than the target, and prompts move by a block all the same", () => {
    const model = measured({ baseUs: 20_000, rowUs: 1_000, keyUs: 0 });
    // 2 * (20 + x) <= 200 and 40 + 2 x + 0.6 <= 200: 79 rows, in whole blocks.
    expect(model.rowBudget(2)).toBe(79);
    expect(model.chunkRows(question())).toBe(64);
    expect(model.chunkRows(question({ microBatches: 4 }))).toBe(16);
    const slow = measured({ baseUs: 150_000, rowUs: 1_000, keyUs: 0 });
    expect(slow.chunkRows(question())).toBe(16);
    expect(slow.chunkRows(question({ start: 21 }))).toBe(11);
    expect(slow.chunkRows(question({ mayBeNone: true }))).toBe(0);
    expect(slow.chunkRows(question({ most: 5 }))).toBe(5);
  });

  it("lets a prompt that fills double the cycle at most, as the only prompt of its step", () => {
    const model = measured({ baseUs: 20_000, rowUs: 500, keyUs: 0 }, 10_000);
    // Decodes of 4 rows: two stages of 22 ms, and 44 rows more make 44.
    const fills = { has: { rows: 4, keys: 0 }, fills: true };
    expect(model.chunkRows(question({ ...fills, fills: false }))).toBe(256);
    expect(model.chunkRows(question(fills))).toBe(32);
    expect(model.chunkRows(question({ ...fills, mayBeNone: true }))).toBe(0);
    // Rows that cost little: four blocks.
    const fast = measured({ baseUs: 20_000, rowUs: 5, keyUs: 0 }, 10_000);
    expect(fast.chunkRows(question(fills))).toBe(64);
    // Rows that cost much: a block, or it would never be read.
    const slow = measured({ baseUs: 2_000, rowUs: 5_000, keyUs: 0 }, 10_000);
    expect(slow.chunkRows(question({ ...fills, has: { rows: 0, keys: 0 } }))).toBe(16);
    expect(model.chunkRows(question({ ...fills, alone: true }))).toBe(256);
  });

  it("ends chunks where blocks end", () => {
    const model = measured({ baseUs: 20_000, rowUs: 1_000, keyUs: 0 });
    expect(model.chunkRows(question({ start: 5 }))).toBe(64 + 16 - 5 - 5 + 5);
    expect((5 + model.chunkRows(question({ start: 5 }))) % 16).toBe(0);
  });

  it("takes large chunks where nobody waits for a token, of equal time beside other prompts", () => {
    const model = measured({ baseUs: 20_000, rowUs: 1_000, keyUs: 2 });
    expect(model.chunkRows(question({ alone: true, start: 8_000 }))).toBe(256);
    expect(model.chunkRows(question({ decoding: false }))).toBe(256);
    const late = model.chunkRows(question({ decoding: false, start: 8_000 }));
    expect(late).toBeLessThan(100);
    expect(late % 16).toBe(0);
  });
});
