import { describe, expect, it } from "vitest";
import { publishedNames } from "../../models/published.js";
import { layerKvBytesPerToken } from "../../models/quantization.js";
import { EventLoop } from "../../simulation/event-loop.js";
import { defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import { devices } from "../../simulation/hardware/devices.js";
import { Link } from "../../simulation/hardware/link.js";
import { type Job, OwnProcessor, SharedHost } from "../../simulation/hardware/processor.js";
import { interpolated, ProfileTimer, profileFormat, readProfile } from "../../simulation/hardware/profile.js";
import { fairShares, slowdowns } from "../../simulation/hardware/sharing.js";
import { expertsRead } from "../../simulation/hardware/stage-work.js";
import { type SequencePart, type StepWork, sizeOf } from "../../simulation/hardware/step-work.js";
import { RooflineTimer } from "../../simulation/hardware/timing.js";
import { exactly, int4Precision, publishedModel } from "./support.js";

const bare = { ...exactly, layerOverheadUs: 0, stepOverheadUs: 0 };

function work(parts: SequencePart[], sampled = parts.length): StepWork {
  return { ...sizeOf(parts), parts, sampled, slice: null };
}

const decodes = (count: number, start: number): StepWork =>
  work(Array.from({ length: count }, () => ({ start, rows: 1, context: 0 })));

describe("the work of a model", () => {
  it.each(publishedNames)("%s reads what placement says a step of one row reads", async (name) => {
    const model = await publishedModel(name);
    const { layerBytes, layerReadBytes = layerBytes } = model.placement;
    for (const [layer, { matrices, experts }] of model.layers.entries()) {
      const dense = matrices.reduce((sum, { bytes }) => sum + bytes, 0);
      const routed = experts === null ? 0 : (experts.bytes * experts.perToken) / experts.count;
      // Norms and biases are placement's alone.
      expect((dense + routed) / layerReadBytes[layer]!).toBeGreaterThan(0.998);
      expect((dense + routed) / layerReadBytes[layer]!).toBeLessThanOrEqual(1);
    }
  });

  it("of GLM-130B is that of the paper's sizes", async () => {
    const model = await publishedModel("glm-130b");
    const { matrices } = model.layers[0]!;
    // 4 h^2 + 3 h F weights, of 4.5 bits each.
    expect(matrices.reduce((sum, { flopsPerRow }) => sum + flopsPerRow, 0)).toBe(2 * 1_811_939_328);
    expect(matrices.reduce((sum, { bytes }) => sum + bytes, 0)).toBeCloseTo(1.0192e9, -6);
    expect(model.kvBytesPerToken).toBe(48 * 1_024);
    expect(model.rowBytes).toBe(24 * 1_024);
    expect(model.prefix).toBe(true);
  });
});

describe("the roofline of a stage", () => {
  const card = devices.get("3090")!;

  it("is the reading of the weights for one row, and arithmetic for many", async () => {
    const model = await publishedModel("glm-130b");
    const timer = new RooflineTimer(model, { layerBegin: 0, layerEnd: 18 }, card, bare);
    // 18 layers of 1.0192 GB at 936 GB/s: 19.6 ms (reference, 1.3).
    expect(timer.cost(decodes(1, 0)).ms).toBeCloseTo(19.6, 1);
    // 2 * 18 * 1.812e9 operations per row at 71 TFLOPS: 0.919 ms; and keys and values, read 16 times.
    const kvMs = (1_000 * 18 * 16 * 512 * model.kvBytesPerToken) / card.bandwidth;
    expect(timer.cost(work([{ start: 0, rows: 512, context: 0 }])).ms).toBeCloseTo(512 * 0.91872 + kvMs, 1);
  });

  it("counts keys and values, the head, and efficiencies", async () => {
    const model = await publishedModel("glm-130b");
    const layers = { layerBegin: 54, layerEnd: 70 };
    const last = new RooflineTimer(model, layers, card, bare);
    const without = last.cost({ ...decodes(1, 0), sampled: 0 }).ms;
    expect(last.cost(decodes(1, 0)).ms - without).toBeCloseTo((1_000 * model.head.bytes) / card.bandwidth, 6);
    const kvMs = (1_000 * 16 * 2_000 * layerKvBytesPerToken(model.shape, "float16")) / card.bandwidth;
    expect(last.cost(decodes(1, 2_000)).ms - last.cost(decodes(1, 0)).ms).toBeCloseTo(kvMs, 6);
    const half = new RooflineTimer(model, layers, card, { ...bare, bandwidthEfficiency: 0.5 });
    expect(half.cost(decodes(1, 0)).ms).toBeCloseTo(2 * last.cost(decodes(1, 0)).ms, 6);
  });

  it("reads a context's keys once per tile of queries, and slices only their own layers", async () => {
    const model = await publishedModel("glm-130b");
    const timer = new RooflineTimer(model, { layerBegin: 0, layerEnd: 10 }, card, bare);
    const slice = { start: 0, rows: 1_000, context: 1_000, layerBegin: 5, layerEnd: 10 };
    const nothing = { ...work([]), sampled: 0 };
    const whole = timer.cost(work([{ start: 0, rows: 1_000, context: 1_000 }], 0)).ms;
    expect(timer.cost({ ...nothing, slice }).ms).toBeCloseTo(whole / 2, 6);
    expect(timer.cost({ ...nothing, slice: { ...slice, layerBegin: 20, layerEnd: 30 } }).ms).toBe(0);
    expect(sizeOf([{ start: 0, rows: 100, context: 100 }])).toEqual({
      rows: 100,
      keyPairs: 10_000,
      keyReads: 400,
    });
    expect(sizeOf([{ start: 10, rows: 3, context: 0 }])).toEqual({
      rows: 3,
      keyPairs: 11 + 12 + 13,
      keyReads: 13,
    });
  });

  it("reads of experts those that some row chose", () => {
    expect(expertsRead(128, 8, 1)).toBeCloseTo(8, 9);
    expect(expertsRead(128, 8, 2)).toBeCloseTo(8 + 8 * (1 - 8 / 128), 9);
    expect(expertsRead(128, 8, 10_000)).toBeCloseTo(128, 6);
  });

  it("is slower for stages that share a machine's memory", async () => {
    const model = await publishedModel("chatglm2-6b");
    const timer = new RooflineTimer(
      model,
      { layerBegin: 0, layerEnd: 4 },
      devices.get("cpu")!,
      defaultAssumptions,
    );
    const { share } = timer.cost(decodes(1, 0));
    const [ratio] = slowdowns([share, share]) as [number];
    // 18 GB/s alone, 14 beside another one.
    expect(ratio).toBeGreaterThan(1.2);
    expect(ratio).toBeLessThan(18 / 14);
    // One that computes many rows reads little meanwhile, and is not slowed down by one that reads.
    const many = timer.cost(work([{ start: 0, rows: 256, context: 0 }], 0)).share;
    expect(many.memory).toBeLessThan(0.1);
    const [reading, computing] = slowdowns([share, many]) as [number, number];
    expect(reading).toBeLessThan(1.05);
    expect(computing).toBe(1);
  });
});

describe("what is shared", () => {
  it("goes evenly to those that want more than an even share, and whole to those that want less", () => {
    expect(fairShares([])).toEqual([]);
    expect(fairShares([3])).toEqual([1]);
    expect(fairShares([1, 1])).toEqual([0.5, 0.5]);
    expect(fairShares([0.9, 0.2])).toEqual([0.8, 0.2]);
    expect(fairShares([0.3, 0.4, 0.2])).toEqual([0.3, 0.4, 0.2]);
    const shares = fairShares([0.9, 0.1, 0.5, 0.2]);
    expect(shares.map((share) => Number(share.toFixed(9)))).toEqual([0.35, 0.1, 0.35, 0.2]);
  });

  it("slows each down by the resource of which it gets least", () => {
    const reading = { memory: 0.8, arithmetic: 0.1, crowding: 1 };
    const computing = { memory: 0.1, arithmetic: 1, crowding: 1 };
    expect(slowdowns([reading])).toEqual([1]);
    expect(slowdowns([reading, reading])).toEqual([1.6, 1.6]);
    const [one, two, three] = slowdowns([reading, computing, computing]) as [number, number, number];
    expect(one).toBe(1);
    expect(two).toBeCloseTo(1 / 0.45, 9);
    expect(three).toBe(two);
    // What waits for memory does not wait for caches besides.
    expect(slowdowns([{ ...reading, crowding: 1.1 }])).toEqual([1]);
    const crowded = { memory: 0.1, arithmetic: 0.5, crowding: 1.1 };
    expect(slowdowns([{ ...reading, memory: 1, crowding: 1.1 }, crowded])).toEqual([1 / 0.9, 1.1]);
  });
});

describe("a processor", () => {
  const job = (times: [number, number][], ms: number, memory = 0, arithmetic = 0): Job => ({
    cost: { ms, share: { memory, arithmetic, crowding: 1 } },
    done: (startMs, busyMs) => times.push([startMs, busyMs]),
  });

  it("computes one step after the other", () => {
    const loop = new EventLoop();
    const processor = new OwnProcessor(loop);
    const times: [number, number][] = [];
    processor.submit(job(times, 10), 5);
    processor.submit(job(times, 3), 6);
    expect(processor.busy).toBe(true);
    loop.runUntil(100);
    expect(times).toEqual([
      [5, 10],
      [15, 3],
    ]);
    expect(processor.busy).toBe(false);
    processor.submit(job(times, 3), 100);
    processor.clear();
    loop.runUntil(200);
    expect(times).toHaveLength(2);
  });

  it("slows down while its neighbour computes", () => {
    const loop = new EventLoop();
    const host = new SharedHost(loop);
    const [one, other] = [host.processor(), host.processor()];
    const times: [number, number][] = [];
    one.submit(job(times, 10, 1), 0);
    other.submit(job(times, 10, 1), 5);
    loop.runUntil(100);
    // Half of it alone, the rest at half the pace; the other one begins at that pace, and ends alone.
    expect(times).toEqual([
      [0, 15],
      [5, 15],
    ]);
  });

  it("is not slowed down for what its neighbour leaves", () => {
    const loop = new EventLoop();
    const host = new SharedHost(loop);
    const times: [number, number][] = [];
    // One that computes, one that reads, one that takes a core: two thirds of the memory are left to the second.
    host.processor().submit(job(times, 12, 0.2, 0.5), 0);
    host.processor().submit(job(times, 12, 1, 0.25), 0);
    host.processor().submit(job(times, 100, 0, 0.25), 0);
    loop.runUntil(200);
    expect(times[0]).toEqual([0, 12]);
    // 12 ms at four fifths of its pace, and what is left alone.
    expect(times[1]![1]).toBeCloseTo(12 + 12 * 0.2, 9);
    expect(times[2]).toEqual([0, 100]);
  });

  it("sends messages over a link one after the other", () => {
    const link = new Link({ latencyUs: 500, bandwidth: 1e6 });
    expect(link.arrivalMs(0, 1_000)).toBe(1.5);
    expect(link.arrivalMs(0, 1_000)).toBe(2.5);
    expect(link.arrivalMs(10, 0)).toBe(10.5);
  });
});

describe("a profile", () => {
  const profile = {
    format: profileFormat,
    what: "a test",
    model: { hiddenSize: 8, ffnSize: 16, layerCount: 4 },
    layer: { x: [1, 2, 10], y: [1, 1.5, 5.5] },
    decodeKeys: { x: [1, 101], y: [0, 1] },
    chunkKeys: { x: [5, 105], y: [0, 0.5] },
    head: { x: [1, 2], y: [3, 4] },
    ...{ sharedBandwidth: 1e6, crowding: 1.1, threads: 2, cores: 3 },
  };

  it("is interpolated between points, and goes on behind the last", () => {
    const { layer } = readProfile(profile);
    expect([0.5, 1, 1.5, 2, 6, 10, 12].map((x) => interpolated(layer, x))).toEqual([
      1, 1, 1.25, 1.5, 3.5, 5.5, 6.5,
    ]);
  });

  it("gives times by rows, keys and sampled rows, and what is taken of the host", async () => {
    const model = await publishedModel("chatglm2-6b");
    const timer = new ProfileTimer(readProfile(profile), { layerBegin: 26, layerEnd: 28 }, model);
    // Two layers of two rows, each of which sees 51 keys, and two sampled rows.
    const { ms, share } = timer.cost(decodes(2, 50));
    expect(ms).toBeCloseTo(2 * (1.5 + 2 * 0.5) + 4, 9);
    expect(share.arithmetic).toBe(2 / 3);
    expect(share.crowding).toBe(1.1);
    const matrices = model.layers[0]!.matrices.reduce((sum, { bytes }) => sum + bytes, 0);
    const bytes = 2 * matrices + model.head.bytes + 2 * 102 * model.kvBytesPerToken;
    expect(share.memory).toBeCloseTo(bytes / (ms / 1_000) / 1e6, 6);
    // Nine rows of a chunk at the start of a sequence see what is in the time of rows already.
    expect(timer.cost(work([{ start: 0, rows: 9, context: 0 }], 0)).ms).toBeCloseTo(2 * 5, 9);
  });

  it.each([
    [{ format: "other" }, "the profile's format"],
    [{ layer: { x: [1, 1], y: [1, 2] } }, "layer.x"],
    [{ layer: { x: [1], y: [1, 2] } }, "layer.y"],
    [{ head: undefined }, "the profile's head.x is missing"],
    [{ sharedBandwidth: 0 }, "the profile's sharedBandwidth is 0"],
    [{ cores: undefined }, "the profile's cores is missing"],
  ])("with %j is refused", (changes, message) => {
    expect(() => readProfile({ ...profile, ...changes })).toThrow(message);
  });
});

it("int8 keys and values take half the time", async () => {
  const plain = await publishedModel("glm-130b");
  const small = await publishedModel("glm-130b", { ...int4Precision, kvType: "int8" });
  expect(small.kvBytesPerToken / plain.kvBytesPerToken).toBeCloseTo(24_960 / 49_152, 9);
});
