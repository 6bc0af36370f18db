/** The life of a stage: what it refuses, its queue, its memory, its progress, its thread. */

import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { loadAddon } from "../../native/addon-loader.js";
import {
  type LoadProgress,
  type ModelShape,
  Stage,
  type StageConfig,
  type StepInput,
} from "../../native/index.js";
import {
  greedy,
  INT4,
  INT8,
  randomModel,
  rows,
  stageConfig,
  type Tensors,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
let tensors: Tensors;
let first: Stage;
let last: Stage;
let whole: Stage;

beforeAll(async () => {
  tensors = writeTensors(join(folder.path, "tiny.bin"), randomModel(TINY, "float32", 5));
  const options = { maxRows: 8, blockCount: 4 };
  first = await Stage.create(stageConfig(tensors, TINY, 0, 2, options));
  last = await Stage.create(stageConfig(tensors, TINY, 2, 4, options));
  whole = await Stage.create(stageConfig(tensors, TINY, 0, 4, options));
});

afterAll(async () => {
  await Promise.all([first.close(), last.close(), whole.close()]);
  folder.remove();
});

afterEach(() => {
  vi.unstubAllEnvs();
});

function goodStep(): StepInput {
  const input = tokenStep([rows(0, 3, [1])], [0, 4, 2]);
  input.samples = [greedy(2, 3, 2)];
  return input;
}

type Change = (input: StepInput) => void;
const badSteps: [string, Change, string][] = [
  ["no sequence", (s) => (s.sequences = []), "sequences: expected at least one"],
  ["fewer ids than rows", (s) => (s.tokenIds = Int32Array.of(1, 2)), "tokenIds: 2 ids for 3 rows"],
  [
    "an empty sequence",
    (s) => (s.sequences = [rows(0, 0, [1])]),
    "sequences[0].rowCount 0: expected an integer from 1 to 8",
  ],
  [
    "too many rows",
    (s) => (s.sequences = [rows(0, 6, [1]), rows(0, 6, [2])]),
    "12 rows in a step; maxRows is 8",
  ],
  [
    "a block that does not exist",
    (s) => (s.sequences = [rows(0, 3, [4])]),
    "sequences[0].blockTable[0]: block 4 is not one of 4",
  ],
  ["a negative block", (s) => (s.sequences = [rows(0, 3, [-1])]), "block -1 is not one of 4"],
  [
    "a short table",
    (s) => (s.sequences = [rows(14, 3, [1])]),
    "sequences[0].blockTable: 1 blocks are too few for 17 slots; expected 2",
  ],
  [
    "a start beyond the model",
    (s) => (s.sequences = [rows(256, 3, [1])]),
    "sequences[0].startPosition 256: expected an integer from 0 to 255",
  ],
  [
    "an end beyond the model",
    (s) => (s.sequences = [rows(254, 3, [1])]),
    "sequences[0]: ends at position 257, beyond maxPositions 256",
  ],
  [
    "the first part of a context",
    (s) => (s.sequences = [{ ...rows(0, 3, [1]), contextLength: 4 }]),
    "sequences[0]: rows [0, 3) are a part of a context of 4, which must come as a whole",
  ],
  [
    "the last part of a context",
    (s) => (s.sequences = [{ ...rows(1, 3, [1]), contextLength: 3 }]),
    "sequences[0]: rows [1, 4) are a part of a context of 3",
  ],
  [
    "a context longer than any",
    (s) => (s.sequences = [{ ...rows(0, 3, [1]), contextLength: 257 }]),
    "sequences[0].contextLength 257: expected an integer from 0 to 256",
  ],
  [
    "a mask behind its context",
    (s) => (s.sequences = [{ ...rows(0, 3, [1]), contextLength: 2, maskPosition: 2 }]),
    "sequences[0].maskPosition 2: expected an integer from -1 to 1",
  ],
  [
    "a mask without a context",
    (s) => (s.sequences = [{ ...rows(0, 3, [1]), maskPosition: 0 }]),
    "sequences[0].maskPosition 0: expected an integer from -1 to -1",
  ],
  [
    "a copy of a block that does not exist",
    (s) => (s.copies = [{ from: 4, to: 1 }]),
    "copies[0].from 4: expected an integer from 0 to 3",
  ],
  [
    "a copy to a block that does not exist",
    (s) => (s.copies = [{ from: 0, to: -1 }]),
    "copies[0].to -1: expected an integer from 0 to 3",
  ],
  ["a copy of a block to itself", (s) => (s.copies = [{ from: 1, to: 1 }]), "copies[0]: block 1 to itself"],
  [
    "two writers of a block",
    (s) => (s.sequences = [rows(0, 2, [1]), rows(3, 1, [1])]),
    "sequences[1].blockTable[0]: block 1 is also written by sequences[0]",
  ],
  [
    "an id outside the vocabulary",
    (s) => (s.tokenIds = Int32Array.of(0, 5, 1)),
    "tokenIds[1]: token 5 is outside the vocabulary of 5",
  ],
  ["a negative id", (s) => (s.tokenIds = Int32Array.of(0, -1, 1)), "tokenIds[1]: token -1 is outside"],
  [
    "a plain array",
    (s) => (s.tokenIds = [0, 1, 2] as unknown as Int32Array),
    "tokenIds: expected an Int32Array",
  ],
  [
    "activations on the first stage",
    (s) => (s.activations = new Uint8Array(4)),
    "the first stage takes tokenIds and no activations",
  ],
  [
    "a sample of a row that is not there",
    (s) => (s.samples[0]!.row = 3),
    "samples[0].row 3: expected an integer from 0 to 2",
  ],
  ["a negative temperature", (s) => (s.samples[0]!.temperature = -1), "samples[0].temperature -1"],
  [
    "no number",
    (s) => (s.samples[0]!.topP = Number.NaN),
    "samples[0].topP NaN: expected a number from 0 to 1",
  ],
  [
    "a seed of 65 bits",
    (s) => (s.samples[0]!.seed = 2n ** 64n),
    "samples[0].seed 18446744073709551616: expected a bigint of 64 bits",
  ],
  [
    "everything banned",
    (s) => (s.samples[0]!.bannedTokens = Int32Array.of(0, 1, 2, 3, 4)),
    "samples[0].bannedTokens: every token is banned",
  ],
  [
    "a score of an unknown id",
    (s) => (s.scores = [{ row: 0, token: 5, topLogprobs: 0 }]),
    "scores[0].token: token 5 is outside the vocabulary of 5",
  ],
  [
    "too many alternatives",
    (s) => (s.samples[0]!.topLogprobs = 21),
    "samples[0].topLogprobs 21: expected an integer from -1 to 20",
  ],
];

for (const [name, change, message] of badSteps) {
  test(`a step with ${name} is refused and the stage stays usable`, async () => {
    const good = await whole.step(goodStep());
    const bad = goodStep();
    change(bad);
    await expect(whole.step(bad)).rejects.toThrow(message);
    expect((await whole.step(goodStep())).samples).toEqual(good.samples);
  });
}

test("a stage without head refuses samples and scores", async () => {
  await expect(first.step(goodStep())).rejects.toThrow("samples or scores on a stage without head");
});

test("a later stage refuses ids and activations of a wrong length", async () => {
  await expect(last.step(goodStep())).rejects.toThrow("a later stage takes activations and no tokenIds");
  const input = { ...goodStep(), tokenIds: null, activations: new Uint8Array(3 * 32 * 4 - 1) };
  await expect(last.step(input)).rejects.toThrow(
    "activations: 383 bytes; expected 384 for 3 rows of float32",
  );
});

type ConfigChange = (config: StageConfig) => void;
const badConfigs: [string, ConfigChange, string][] = [
  [
    "a block size that is no multiple of 16",
    (c) => (c.blockSize = 24),
    "blockSize 24: expected a multiple of 16",
  ],
  ["no threads", (c) => (c.threads = 0), "threads 0: expected an integer from 1"],
  [
    "an unknown dtype",
    (c) => (c.dtype = "float8" as "float16"),
    "dtype: dtype float8; expected float32, float16 or bfloat16",
  ],
  ["a layer too few", (c) => c.layers.pop(), "layers: expected 4 for [0, 4), got 3"],
  ["no head", (c) => (c.head = null), "head: missing on the last stage"],
  [
    "heads that cannot be shared out",
    (c) => (c.shape = { ...c.shape, kvHeadCount: 3 }),
    "shape.headCount 4: expected a multiple of kvHeadCount 3",
  ],
  [
    "a tensor of a wrong shape",
    (c) => (c.layers[1] = { ...c.layers[1]!, ffnDown: [{ ...c.layers[1]!.ffnDown[0]!, shape: [24, 32] }] }),
    "tiny.bin: expected shape [32, 24], got [24, 32]",
  ],
  [
    "a tensor of a wrong length",
    (c) => (c.head = [{ ...c.head![0]!, byteLength: 639 }]),
    "tiny.bin: expected 640 bytes of float32, got 639",
  ],
  [
    "a tensor beyond the end of its file",
    (c) => (c.head = [{ ...c.head![0]!, byteOffset: 10_000_000 }]),
    "tensor head of",
  ],
  [
    "a file that does not exist",
    (c) =>
      (c.layers[2] = {
        ...c.layers[2]!,
        qkvWeight: [{ ...c.layers[2]!.qkvWeight[0]!, file: "/nowhere/x.bin" }],
      }),
    "tensor layer 2 qkvWeight of /nowhere/x.bin: No such file or directory",
  ],
];

for (const [name, change, message] of badConfigs) {
  test(`a configuration with ${name} is refused`, async () => {
    const config = stageConfig(tensors, TINY, 0, 4);
    change(config);
    await expect(Stage.create(config)).rejects.toThrow(message);
  });
}

test("steps run in the order they were submitted, each on the input as it was then", async () => {
  const pending = [];
  const blocks = [3];
  const ids = [0, 1, 2, 3, 4, 3, 2, 1];
  const input = tokenStep([rows(0, 1, blocks)], [ids[0]!]);
  for (let position = 0; position < ids.length; position++) {
    input.sequences[0]!.startPosition = position;
    input.tokenIds![0] = ids[position]!;
    input.samples = [greedy(0, position + 1, 3)];
    pending.push(whole.step(input));
  }
  const queued = await Promise.all(pending);

  const together = tokenStep([rows(0, ids.length, [2])], ids);
  together.samples = ids.map((_, i) => greedy(i, i + 1, 3));
  const { samples } = await whole.step(together);
  expect(queued.map((output) => output.samples[0])).toEqual(samples);
});

test("memory figures are those of the plan", async () => {
  const { weightBytes, kvBytes, workspaceBytes } = first;
  // Four matrices per layer in strips of 32 rows, three vectors and the mapped embedding.
  const matrix = (n: number, k: number) => Math.ceil(n / 32) * 32 * k * 4;
  const layer = matrix(32, 32) + matrix(32, 16) + matrix(48, 32) + matrix(32, 24) + (32 + 32 + 32) * 4;
  expect(weightBytes).toBe(2 * layer + 5 * 32 * 4);
  // 2 layers x (K, V) x 4 blocks x 16 slots x 2 heads x 4 dimensions x 4 bytes
  expect(kvBytes).toBe(2 * 2 * 4 * 16 * 2 * 4 * 4);
  expect(workspaceBytes).toBeGreaterThan(0);
});

test("V8 is told about the memory, and about its end", async () => {
  const { externalBytes } = loadAddon();
  const before = externalBytes();
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 4, { blockCount: 20_000 }));
  const during = externalBytes();
  expect(during - before).toBeGreaterThan(0.9 * stage.kvBytes);
  await stage.close();
  expect(externalBytes()).toBeLessThan(before + 0.1 * stage.kvBytes);
});

test("a closed stage refuses steps, and closing twice is harmless", async () => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 4));
  const running = stage.step(goodStep());
  const closed = stage.close();
  await expect(stage.step(goodStep())).rejects.toThrow("the stage is closed");
  expect((await running).samples).toHaveLength(1);
  await closed;
  await stage.close();
});

test("a non-finite logit is reported and nothing is drawn", async () => {
  // Finite weights, as others are refused, whose product is not.
  const list = randomModel(TINY, "float32", 5);
  list.find(({ name }) => name.endsWith("output_layer.weight"))!.values.fill(3e38, 32, 64);
  list.find(({ name }) => name.endsWith("final_layernorm.weight"))!.values.fill(1e6);
  const broken = writeTensors(join(folder.path, "broken.bin"), list);
  const stage = await Stage.create(stageConfig(broken, TINY, 0, 4));
  const input = goodStep();
  input.scores = [{ row: 0, token: 1, topLogprobs: 0 }];
  const output = await stage.step(input);
  await stage.close();
  expect(output.samples[0]!.finite).toBe(false);
  expect(output.scores[0]!.finite).toBe(false);
});

const unusable: [string, string, number][] = [
  ["a NaN in a matrix", "layers.1.mlp.dense_4h_to_h.weight", Number.NaN],
  ["an infinity in a norm", "layers.2.input_layernorm.weight", Number.POSITIVE_INFINITY],
  ["a NaN in the embedding", "word_embeddings.weight", Number.NaN],
  ["an infinity in the head", "output_layer.weight", Number.NEGATIVE_INFINITY],
];
const roles: Record<string, string> = {
  "layers.1.mlp.dense_4h_to_h.weight": "layer 1 ffnDown",
  "layers.2.input_layernorm.weight": "layer 2 attentionNorm",
  "word_embeddings.weight": "embedding",
  "output_layer.weight": "head",
};

for (const [name, suffix, value] of unusable) {
  for (const weights of [undefined, INT4, INT8]) {
    test(`${name} is refused with the tensor's name, ${weights?.type ?? "as stored"}`, async () => {
      const list = randomModel(TINY, "float16", 5).map((tensor) => ({
        ...tensor,
        dtype: "float32" as const,
      }));
      list.find((tensor) => tensor.name.endsWith(suffix))!.values[27] = value;
      const file = join(folder.path, "unusable.bin");
      const config = stageConfig(writeTensors(file, list), TINY, 0, 4, { weights, headWeights: weights });
      const words = Number.isNaN(value) ? "NaN" : "infinite";
      await expect(Stage.create(config)).rejects.toThrow(
        new RegExp(
          `^tensor ${roles[suffix]} of .*unusable.bin: the value in row \\d+, column \\d+ is ${words}`,
        ),
      );
    });
  }
}

test("loading tells how many bytes have been read, and how far rounded weights are off", async () => {
  const config = stageConfig(tensors, TINY, 0, 4, { weights: INT4, headWeights: INT8 });
  let loading: () => LoadProgress = () => ({ loadedBytes: 0, totalBytes: 0 });
  const stage = await Stage.create(config, (progress) => {
    loading = progress;
  });
  const tensorsOf = config.layers.flatMap(({ experts, router, ...others }) => Object.values(others).flat());
  const sources = [...config.embedding!, config.finalNorm, ...config.head!, ...tensorsOf];
  const bytes = sources.reduce((sum, source) => sum + (source?.byteLength ?? 0), 0);
  expect(loading()).toEqual({ loadedBytes: bytes, totalBytes: bytes });
  expect(stage.roundings.map(({ tensor }) => tensor)).toEqual([
    ...[0, 1, 2, 3].flatMap((layer) =>
      ["qkvWeight", "attentionOut", "ffnUp", "ffnDown"].map((name) => `layer ${layer} ${name}`),
    ),
    "head",
  ]);
  // Uniform weights in 15 steps: the error is a step / sqrt(12), the weights' range / sqrt(3).
  for (const { tensor, relativeError } of stage.roundings) {
    const [low, high] = tensor === "head" ? [0.002, 0.006] : [0.04, 0.09];
    expect(relativeError, tensor).toBeGreaterThan(low!);
    expect(relativeError, tensor).toBeLessThan(high!);
  }
  expect(whole.roundings).toEqual([]);
  await stage.close();
});

test("the scale search is never worse than the largest weight's scale, on the whole better", async () => {
  const errors = async (scales: "absmax" | "search", groupSize: number) => {
    const weights = { ...INT4, scales, groupSize };
    const stage = await Stage.create(stageConfig(tensors, TINY, 0, 4, { weights }));
    await stage.close();
    return stage.roundings.map(({ relativeError }) => relativeError);
  };
  for (const groupSize of [32, 0]) {
    const plain = await errors("absmax", groupSize);
    const searched = await errors("search", groupSize);
    for (const [i, error] of searched.entries()) expect(error).toBeLessThanOrEqual(plain[i]!);
    const mean = (list: number[]) => list.reduce((sum, error) => sum + error, 0) / list.length;
    expect(mean(searched)).toBeLessThan(0.97 * mean(plain));
  }
});

/** Large enough that the scalar kernels need a while for one step. */
const SLOW: ModelShape = {
  ...TINY,
  hiddenSize: 256,
  layerCount: 2,
  headCount: 4,
  kvHeadCount: 2,
  headDim: 64,
  ffnSize: 1024,
  vocabSize: 300,
  tokenCount: 300,
  ropeDim: 32,
};

test("the event loop and the progress counter keep going during a long step", async () => {
  vi.stubEnv("GLM_RELAY_KERNELS", "scalar");
  const slow = writeTensors(join(folder.path, "slow.bin"), randomModel(SLOW, "float16", 9));
  const stage = await Stage.create(stageConfig(slow, SLOW, 0, 2, { maxRows: 128 }));
  const ids = Array.from({ length: 128 }, (_, i) => i);

  let ticks = 0;
  let lastProgress = stage.progress();
  let moves = 0;
  const timer = setInterval(() => {
    ticks++;
    const progress = stage.progress();
    if (progress !== lastProgress) moves++;
    lastProgress = progress;
  }, 5);
  const begin = performance.now();
  const { computeUs } = await stage.step(tokenStep([rows(0, 128, [0, 1, 2, 3, 4, 5, 6, 7])], ids));
  const elapsedMs = performance.now() - begin;
  clearInterval(timer);
  const idle = stage.progress();
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(stage.progress()).toBe(idle);
  await stage.close();

  expect(computeUs / 1000).toBeGreaterThan(100);
  expect(computeUs / 1000).toBeLessThanOrEqual(elapsedMs + 1);
  // A busy machine delays timers; a blocked event loop would give none at all.
  expect(ticks).toBeGreaterThan(elapsedMs / 5 / 4);
  expect(moves).toBeGreaterThan(5);
});

test("an idle stage with many threads uses no processor time", async () => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 4, { threads: 8 }));
  await stage.step(goodStep());
  await new Promise((resolve) => setTimeout(resolve, 50));
  const before = process.cpuUsage();
  await new Promise((resolve) => setTimeout(resolve, 400));
  const { user, system } = process.cpuUsage(before);
  await stage.close();
  // Seven spinning threads would have used 400 ms and more.
  expect((user + system) / 1000).toBeLessThan(120);
});
