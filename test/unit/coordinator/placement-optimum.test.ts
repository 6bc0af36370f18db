/** Placement against every contiguous cut, against the closed form for equal layers, and against known figures. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import {
  type Placement,
  type PlacementModel,
  type PlacementWorker,
  place,
} from "../../../coordinator/placement/placement.js";

const blockSize = 16;
const counts = ({ stages }: Placement) => stages.map(({ layerBegin, layerEnd }) => layerEnd - layerBegin);
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

interface Case {
  model: PlacementModel;
  workers: PlacementWorker[];
  limits: { blockSize: number; minBlocks: number; maxBlocks: number };
}

/** Layers of bytes within [1000, most]; few values, so that ties and near misses are common. */
function cases(layers: fc.Arbitrary<Pick<PlacementModel, "layerBytes" | "layerReadBytes">>) {
  const bytes = fc.integer({ min: 0, max: 4 }).map((value) => value * 900);
  const worker = fc.record({
    memoryBytes: fc.integer({ min: 1, max: 60 }).map((value) => value * 1_000),
    threads: fc.integer({ min: 1, max: 4 }),
  });
  return fc
    .record({
      layers,
      embeddingBytes: bytes,
      headBytes: bytes,
      workspace: fc.record({
        stage: bytes,
        perThread: bytes,
        first: bytes,
        last: bytes,
        lastPerThread: bytes,
      }),
      processBytes: bytes,
      offers: fc.array(worker, { minLength: 1, maxLength: 4 }),
      maxBlocks: fc.constantFrom(3, 1e9),
    })
    .map(
      ({ layers, offers, maxBlocks, ...model }): Case => ({
        model: { ...model, ...layers, layerKvBytesPerToken: 10 },
        workers: offers.map((offer, index) => ({ id: `w${index}`, ...offer })),
        limits: { blockSize, minBlocks: 2, maxBlocks },
      }),
    );
}

const unequalLayers = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 8 })), {
    minLength: 1,
    maxLength: 12,
  })
  .map((layers) => ({
    layerBytes: layers.map(([size]) => size * 1_000),
    layerReadBytes: layers.map(([size, part]) => (size * part * 1_000) / 8),
  }));

const equalLayers = fc.integer({ min: 1, max: 12 }).map((count) => ({
  layerBytes: Array.from({ length: count }, () => 3_000),
}));

/** Bytes of a stage beside layers and KV cache, and its time beside them; as the formulas are written. */
function ends({ model, workers }: Case, stage: number): { bytes: number; seconds: number } {
  const { workspace } = model;
  const { threads } = workers[stage]!;
  const isLast = stage === workers.length - 1;
  let bytes = model.processBytes + workspace.stage + threads * workspace.perThread;
  if (stage === 0) bytes += model.embeddingBytes + workspace.first;
  if (isLast) bytes += model.headBytes + workspace.last + threads * workspace.lastPerThread;
  return { bytes, seconds: isLast ? model.headBytes / threads : 0 };
}

interface Judged {
  lambda: number;
  /** Uncapped. */
  blocks: number;
  missing: number;
}

function judge(one: Case, cut: readonly number[]): Judged {
  const { model, workers, limits } = one;
  const judged: Judged = { lambda: 0, blocks: Number.POSITIVE_INFINITY, missing: 0 };
  let begin = 0;
  for (const [stage, count] of cut.entries()) {
    const { threads, memoryBytes } = workers[stage]!;
    const of = (values: readonly number[]) => sum(values.slice(begin, begin + count));
    const block = limits.blockSize * count * model.layerKvBytesPerToken;
    const free = memoryBytes - ends(one, stage).bytes - of(model.layerBytes);
    const head = stage === workers.length - 1 ? model.headBytes : 0;
    const time = (of(model.layerReadBytes ?? model.layerBytes) + head) / threads;
    judged.lambda = Math.max(judged.lambda, time);
    judged.blocks = Math.min(judged.blocks, Math.floor(free / block));
    judged.missing += Math.max(0, limits.minBlocks * block - free);
    begin += count;
  }
  return judged;
}

function* cutsOf(layers: number, stages: number): Generator<number[]> {
  if (stages === 1) yield [layers];
  for (let first = 1; stages > 1 && first <= layers - stages + 1; first++) {
    for (const rest of cutsOf(layers - first, stages - 1)) yield [first, ...rest];
  }
}

function placed({ model, workers, limits }: Case): Placement | RelayError {
  try {
    return place(model, workers, limits);
  } catch (error) {
    if (error instanceof RelayError) return error;
    throw error;
  }
}

/** The closed form of pipeline-theory 2.2 for layers of one size, each stage with a layer at least. */
function bisected(one: Case): { lambda: number; counts: number[] } | null {
  const { model, workers, limits } = one;
  const layerCount = model.layerBytes.length;
  const [layer] = model.layerBytes as [number, ...number[]];
  const perLayer = layer + limits.minBlocks * limits.blockSize * model.layerKvBytesPerToken;
  const stages = workers.map(({ threads, memoryBytes }, stage) => {
    const { bytes } = ends(one, stage);
    const cap = Math.floor((memoryBytes - bytes) / perLayer);
    const head = stage === workers.length - 1 ? model.headBytes : 0;
    return { cap, time: (count: number) => (count * layer + head) / threads };
  });
  const countsAt = (lambda: number) =>
    stages.map(({ cap, time }) => {
      let count = 0;
      while (count < cap && time(count + 1) <= lambda) count++;
      return count;
    });
  const candidates = stages
    .flatMap(({ time }) => model.layerBytes.map((_, index) => time(index + 1)))
    .sort((a, b) => a - b);
  const feasible = (lambda: number) => {
    const found = countsAt(lambda);
    return found.every((count) => count >= 1) && sum(found) >= layerCount;
  };
  let low = 0;
  let high = candidates.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (feasible(candidates[middle]!)) high = middle;
    else low = middle + 1;
  }
  if (low === candidates.length || workers.length > layerCount) return null;
  const lambda = candidates[low]!;
  const found = countsAt(lambda);
  while (sum(found) > layerCount) {
    let fewest = -1;
    let tokens = Number.POSITIVE_INFINITY;
    for (const [stage, count] of found.entries()) {
      const kv = (workers[stage]!.memoryBytes - ends(one, stage).bytes - count * layer) / count;
      if (count > 1 && kv <= tokens) [fewest, tokens] = [stage, kv];
    }
    found[fewest]! -= 1;
  }
  return { lambda, counts: found };
}

/** KV bytes per layer of every stage, fewest first. */
function rooms(one: Case, cut: readonly number[]): number[] {
  const [layer] = one.model.layerBytes as [number, ...number[]];
  return cut
    .map((count, stage) => (one.workers[stage]!.memoryBytes - ends(one, stage).bytes - count * layer) / count)
    .sort((a, b) => a - b);
}

describe("placement", () => {
  it("is the fastest of all cuts that fit, and of the fastest one with the most KV blocks", () => {
    let fitted = 0;
    fc.assert(
      fc.property(cases(unequalLayers), (one) => {
        const all = [...cutsOf(one.model.layerBytes.length, one.workers.length)].map((cut) =>
          judge(one, cut),
        );
        const fitting = all.filter(({ missing }) => missing === 0);
        const result = placed(one);
        if (result instanceof RelayError) {
          expect(fitting).toEqual([]);
          return;
        }
        fitted++;
        const lambda = Math.min(...fitting.map((cut) => cut.lambda));
        const blocks = Math.max(...fitting.filter((cut) => cut.lambda === lambda).map((cut) => cut.blocks));
        expect(judge(one, counts(result))).toEqual({ lambda, blocks, missing: 0 });
        expect(result.blockCount).toBe(Math.min(one.limits.maxBlocks, blocks));
      }),
      { numRuns: 2_000 },
    );
    // The property must not hold because nothing ever fits.
    expect(fitted).toBeGreaterThan(400);
  });

  it("promises no more memory than a worker offers, and the same in every run", () => {
    fc.assert(
      fc.property(cases(unequalLayers), (one) => {
        const result = placed(one);
        expect(placed(structuredClone(one))).toEqual(result);
        if (result instanceof RelayError) return;
        for (const [index, stage] of result.stages.entries()) {
          const { weightBytes, workspaceBytes, kvBytes, processBytes } = stage;
          const { id, memoryBytes } = one.workers[index]!;
          expect(stage.worker).toBe(id);
          expect(stage.layerBegin).toBe(result.stages[index - 1]?.layerEnd ?? 0);
          expect(stage.layerEnd).toBeGreaterThan(stage.layerBegin);
          expect(weightBytes + workspaceBytes + kvBytes + processBytes).toBeLessThanOrEqual(memoryBytes);
        }
        expect(result.stages.at(-1)!.layerEnd).toBe(one.model.layerBytes.length);
        expect(result.blockCount).toBeGreaterThanOrEqual(one.limits.minBlocks);
      }),
      { numRuns: 1_000 },
    );
  });

  it("tells the fewest bytes that any cut lacks when none fits", () => {
    let told = 0;
    fc.assert(
      fc.property(cases(unequalLayers), (one) => {
        const result = placed(one);
        if (!(result instanceof RelayError)) return;
        expect(result.code).toBe("invalid_configuration");
        const lacks = /the best cut lacks (\d+) more: .*worker "w\d" offers \d+: \d+ more$/.exec(
          result.message,
        );
        if (lacks === null) {
          expect(result.message).toMatch(/one layer on it needs \d+: [1-9]\d* more$|stages asked for/);
          return;
        }
        told++;
        const all = [...cutsOf(one.model.layerBytes.length, one.workers.length)];
        expect(Number(lacks[1])).toBe(Math.min(...all.map((cut) => judge(one, cut).missing)));
      }),
      { numRuns: 2_000 },
    );
    expect(told).toBeGreaterThan(100);
  });

  it("is the closed form where all layers are equal: bisection, then surplus from the fewest KV tokens", () => {
    let fitted = 0;
    fc.assert(
      fc.property(cases(equalLayers), (one) => {
        const result = placed(one);
        const expected = bisected(one);
        if (result instanceof RelayError || expected === null) {
          expect([result instanceof RelayError, expected]).toEqual([true, null]);
          return;
        }
        fitted++;
        expect(judge(one, counts(result)).lambda).toBe(expected.lambda);
        // Where two stages have the fewest tokens, the closed form gives back a layer of either.
        const [found, known] = [rooms(one, counts(result)), rooms(one, expected.counts)];
        const differs = found.findIndex((room, index) => room !== known[index]);
        expect(found[0]).toBe(known[0]);
        expect(differs < 0 || found[differs]! > known[differs]!).toBe(true);
      }),
      { numRuns: 2_000 },
    );
    expect(fitted).toBeGreaterThan(400);
  });

  it("gives later stages fewer layers where nothing else decides", () => {
    const equal = (layers: number, stages: number) =>
      place(
        {
          layerBytes: Array.from({ length: layers }, () => 100),
          embeddingBytes: 0,
          headBytes: 0,
          layerKvBytesPerToken: 1,
          workspace: { stage: 0, perThread: 0, first: 0, last: 0, lastPerThread: 0 },
          processBytes: 0,
        },
        Array.from({ length: stages }, (_, index) => ({ id: `w${index}`, memoryBytes: 10_000, threads: 2 })),
        { blockSize, minBlocks: 1, maxBlocks: 100 },
      );
    expect(counts(equal(10, 4))).toEqual([3, 3, 2, 2]);
    expect(counts(equal(7, 7))).toEqual([1, 1, 1, 1, 1, 1, 1]);
    expect(counts(equal(8, 3))).toEqual([3, 3, 2]);
  });

  it("reads only the experts that a token is sent to, though all of them fill memory", () => {
    // As in GLM-4.5: a dense layer, then layers with 16 times the bytes of which a step reads a sixteenth.
    const sparse: PlacementModel = {
      layerBytes: [100, 1_600, 1_600, 1_600],
      layerReadBytes: [100, 100, 100, 100],
      embeddingBytes: 0,
      headBytes: 0,
      layerKvBytesPerToken: 1,
      workspace: { stage: 0, perThread: 0, first: 0, last: 0, lastPerThread: 0 },
      processBytes: 0,
    };
    const offers = (...memory: number[]) =>
      memory.map((memoryBytes, index) => ({ id: `w${index}`, memoryBytes, threads: 1 }));
    const limits = { blockSize, minBlocks: 1, maxBlocks: 100 };
    expect(counts(place(sparse, offers(4_000, 4_000), limits))).toEqual([2, 2]);
    expect(counts(place(sparse, offers(1_800, 4_000), limits))).toEqual([2, 2]);
    // Now the first worker has room for the dense layer alone.
    expect(counts(place(sparse, offers(1_700, 6_000), limits))).toEqual([1, 3]);
  });
});

describe("GLM-130B in INT4 with an INT8 head on consumer cards", () => {
  const GiB = 2 ** 30;
  const hidden = 12_288;
  const inner = 32_768;
  const linear = 4 * hidden ** 2 + 3 * hidden * inner;
  /** Biases and norms, and a scale per row where there are no groups: FP16. */
  const vectors = 2 * (9 * hidden + 2 * inner);
  const rowScales = 2 * (5 * hidden + 2 * inner);
  const layerBytes = { 4: linear / 2 + vectors + rowScales, 4.5: (linear * 4.5) / 8 + vectors };
  const glm130b = (bitsPerWeight: 4 | 4.5, headBytes: number): PlacementModel => ({
    layerBytes: Array.from({ length: 70 }, () => layerBytes[bitsPerWeight]),
    // Stays in host memory.
    embeddingBytes: 0,
    headBytes,
    layerKvBytesPerToken: 2 * hidden * 2,
    workspace: { stage: 0, perThread: 0, first: 0, last: 0, lastPerThread: 0 },
    processBytes: 1.25 * GiB,
  });
  const int8Head = 150_528 * hidden;
  const cards = (count: number, memory: number) =>
    Array.from({ length: count }, (_, index) => ({
      id: `card-${index}`,
      memoryBytes: memory * GiB,
      threads: 1,
    }));
  const limits = { blockSize, minBlocks: 1, maxBlocks: 1e6 };

  it.each<[string, number, number, 4 | 4.5, number[], number]>([
    ["4x RTX 3090, a scale per row", 4, 24, 4, [18, 18, 18, 16], 9_200],
    ["4x RTX 3090, groups of 32", 4, 24, 4.5, [18, 18, 18, 16], 6_900],
    ["8x RTX 2080 Ti, a scale per row", 8, 11, 4, [9, 9, 9, 9, 9, 9, 9, 7], 5_200],
    ["8x RTX 2080 Ti, groups of 32", 8, 11, 4.5, [9, 9, 9, 9, 9, 9, 9, 7], 2_900],
    ["8x RTX 3090, a scale per row", 8, 24, 4, [9, 9, 9, 9, 9, 9, 9, 7], 36_800],
    ["3x RTX 3090, one lost", 3, 24, 4, [24, 24, 22], 2_300],
  ])("%s", (_, count, memory, bits, cut, tokens) => {
    const result = place(glm130b(bits, int8Head), cards(count, memory), limits);
    expect(counts(result)).toEqual(cut);
    expect(Math.round((result.blockCount * blockSize) / 100) * 100).toBe(tokens);
  });

  it("groups of 32 do not fit three cards", () => {
    expect(() => place(glm130b(4.5, int8Head), cards(3, 24), limits)).toThrow(
      /3 workers offer 77309411328 bytes, .* worker "card-\d" offers 25769803776: \d+ more/,
    );
  });

  it("an FP16 head counts as four layers", () => {
    const result = place(glm130b(4, 2 * int8Head), cards(4, 24), limits);
    // 19 is the slowest stage in any cut; the surplus layer is taken from a stage of 19.
    expect(counts(result)).toEqual([19, 19, 18, 14]);
    expect(Math.round((result.blockCount * blockSize) / 100) * 100).toBe(7_700);
  });
});
