/**
 * Whole models with rounded weights: the engine against the canon written again in TypeScript, and
 * against the same rounded weights multiplied in plain float32, which shows what rounding the activations
 * (and the cache) costs.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { packageRoot } from "../../common/package.js";
import { type ChatMessage, createPromptService } from "../../coordinator/prompt/service.js";
import { chatglm3 } from "../../models/chatglm3.js";
import { plainForm } from "../../models/shape.js";
import type { KvType, ModelShape, WeightFormat } from "../../native/index.js";
import { CanonModel, type Weights } from "../support/canon/model.js";
import { decode } from "../support/canon/numbers.js";
import { restoreMatrix, roundMatrix } from "../support/canon/rounding.js";
import {
  greedy,
  INT4,
  INT8,
  randomModel,
  readSafetensors,
  rows,
  type StageOptions,
  seededRandom,
  type Tensors,
  TestPipeline,
  type TestTensor,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const RANDOM: ModelShape = {
  hiddenSize: 192,
  layerCount: 4,
  headCount: 6,
  kvHeadCount: 2,
  headDim: 32,
  ffnSize: 416,
  vocabSize: 320,
  tokenCount: 317,
  ropeDim: 16,
  ropeBase: 10000,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 256,
  form: plainForm,
  experts: null,
};

const folder = temporaryFolder();
afterAll(folder.remove);

/** Log probabilities of all tokens after every position: each is scored as the next one. */
async function allLogprobs(tensors: Tensors, shape: ModelShape, ids: number[], options: StageOptions) {
  const pipeline = await TestPipeline.create(tensors, shape, [2], { maxRows: 64, ...options });
  const blocks = Array.from({ length: Math.ceil(ids.length / 16) }, (_, i) => i);
  const all: Float32Array[] = [];
  for (let begin = 0; begin < ids.length; begin += 64) {
    const part = ids.slice(begin, begin + 64);
    const input = tokenStep([rows(begin, part.length, blocks)], part);
    input.samples = [greedy(part.length - 1, begin + part.length)];
    input.scores = part.flatMap((_, row) =>
      Array.from({ length: shape.tokenCount }, (_, token) => ({ row, token, topLogprobs: 0 })),
    );
    const { scores } = await pipeline.step(input);
    for (let row = 0; row < part.length; row++) {
      const some = scores.slice(row * shape.tokenCount, (row + 1) * shape.tokenCount);
      expect(some.every(({ finite }) => finite)).toBe(true);
      all.push(Float32Array.from(some, ({ logprob }) => logprob));
    }
  }
  await pipeline.close();
  return all;
}

/** Logits are known up to a number per row: compared after their mean has been taken off. */
function centred(logits: Float32Array): Float64Array {
  const mean = logits.reduce((sum, x) => sum + x, 0) / logits.length;
  return Float64Array.from(logits, (x) => x - mean);
}

function relativeL2(got: Float32Array[], expected: Float32Array[]): number {
  let error = 0;
  let size = 0;
  for (const [i, row] of expected.entries()) {
    const a = centred(got[i]!);
    for (const [j, b] of centred(row).entries()) {
      error += (a[j]! - b) ** 2;
      size += b ** 2;
    }
  }
  return Math.sqrt(error / size);
}

const best = (logits: Float32Array): number => logits.indexOf(Math.max(...logits));

function sameTop(got: Float32Array[], expected: Float32Array[]): number {
  const equal = expected.filter((row, i) => best(row) === best(got[i]!));
  return equal.length / expected.length;
}

const isMatrix = ({ name, shape }: TestTensor) => shape.length === 2 && !name.includes("word_embeddings");

/** The model with every rounded weight replaced by the number that it stands for, in float32. */
function restored(
  list: TestTensor[],
  shape: ModelShape,
  weights: WeightFormat,
  head: WeightFormat,
): TestTensor[] {
  return list.map((tensor) => {
    if (!isMatrix(tensor)) return tensor;
    const [outputs, inputs] = tensor.shape as [number, number];
    const isHead = tensor.name.endsWith("output_layer.weight");
    const used = isHead ? shape.tokenCount : outputs;
    const matrix = roundMatrix(
      tensor.values.subarray(0, used * inputs),
      used,
      inputs,
      isHead ? head : weights,
    );
    const values = new Float32Array(outputs * inputs);
    values.set(restoreMatrix(matrix));
    return { ...tensor, values };
  });
}

const byName = (list: TestTensor[]): Weights => new Map(list.map(({ name, values }) => [name, values]));

/**
 * The random model of the other tests, made to double every difference per layer, as a model is before its
 * training: what a layer adds is scaled by 1 / sqrt(2 layers), and attention is not sharpened.
 */
function calm(list: TestTensor[]): TestTensor[] {
  for (const { name, values } of list) {
    if (/(attention\.dense|4h_to_h)\.weight$/.test(name)) scale(values, 1 / Math.sqrt(2 * RANDOM.layerCount));
    if (name.endsWith("query_key_value.weight")) scale(values, 0.5);
  }
  return list;
}

function scale(values: Float32Array, factor: number): void {
  for (const i of values.keys()) values[i]! *= factor;
}

interface Case {
  weights: WeightFormat;
  head: WeightFormat;
  kvType: KvType;
}
const cases: [string, Case][] = [
  ["int4 in groups of 32", { weights: INT4, head: INT8, kvType: "float32" }],
  [
    "int4 in groups of 128, absmax",
    { weights: { ...INT4, groupSize: 128, scales: "absmax" }, head: INT8, kvType: "float32" },
  ],
  ["int4 in whole rows, INT8 KV", { weights: { ...INT4, groupSize: 0 }, head: INT4, kvType: "int8" }],
  ["int8 in groups of 64", { weights: { ...INT8, groupSize: 64 }, head: INT8, kvType: "float32" }],
  [
    "int8 in whole rows, absmax, INT8 KV",
    { weights: { ...INT8, groupSize: 0, scales: "absmax" }, head: INT8, kvType: "int8" },
  ],
];

describe.each(cases)("a random model with %s", (name, { weights, head, kvType }) => {
  const list = calm(randomModel(RANDOM, "float32", 31));
  const random = seededRandom(5);
  const ids = Array.from({ length: 100 }, () => Math.floor(random() * RANDOM.tokenCount));
  const options: StageOptions = { weights, headWeights: head, dtype: "float32", kvType };
  const tensors = writeTensors(join(folder.path, `${name}.bin`), list);

  test("gives the canon's logits", async () => {
    const canon = new CanonModel(byName(list), RANDOM, {
      weights,
      headWeights: head,
      dtype: "float32",
      kvType,
    });
    const expected = canon.logits(ids.slice(0, 40));
    const got = await allLogprobs(tensors, RANDOM, ids.slice(0, 40), options);
    expect(relativeL2(got, expected)).toBeLessThan(1e-4);
  });

  test("is near the same weights in float32", async () => {
    const plain = writeTensors(join(folder.path, `${name}-plain.bin`), restored(list, RANDOM, weights, head));
    const expected = await allLogprobs(plain, RANDOM, ids, { dtype: "float32", kvType: "float32" });
    const got = await allLogprobs(tensors, RANDOM, ids, options);
    const distance = relativeL2(got, expected);
    expect(distance).toBeLessThan(3e-2);
    // Rounded activations must show, or nothing was rounded.
    expect(distance).toBeGreaterThan(1e-4);
    expect(sameTop(got, expected)).toBeGreaterThanOrEqual(0.95);
  });
});

test("positions divided by 16 give the canon's logits, far from those of undivided ones", async () => {
  const list = calm(randomModel(RANDOM, "float32", 31));
  const shape = { ...RANDOM, ropePositionDivisor: 16 };
  const ids = Array.from({ length: 40 }, (_, index) => (index * 7) % RANDOM.tokenCount);
  const options: StageOptions = { weights: INT8, headWeights: INT8, dtype: "float32", kvType: "float32" };
  const canon = new CanonModel(byName(list), shape, {
    weights: INT8,
    headWeights: INT8,
    dtype: "float32",
    kvType: "float32",
  });
  const tensors = writeTensors(join(folder.path, "divided.bin"), list);
  const expected = canon.logits(ids);
  const divided = relativeL2(await allLogprobs(tensors, shape, ids, options), expected);
  const undivided = relativeL2(await allLogprobs(tensors, RANDOM, ids, options), expected);
  expect(divided).toBeLessThan(1e-4);
  expect(undivided).toBeGreaterThan(100 * divided);
});

describe("the demo model", () => {
  const directory = join(packageRoot, "models/demo");
  const stored = readSafetensors(join(directory, "model.safetensors"));
  const bytes = readFileSync(join(directory, "model.safetensors"));
  const list = [...stored].map(
    ([name, { byteOffset, byteLength, dtype, shape }]): TestTensor => ({
      name,
      dtype: "float32",
      shape,
      values: decode(bytes.subarray(byteOffset, byteOffset + byteLength), dtype),
    }),
  );

  /** Conversations as the model was trained on them, question and answer. */
  async function conversations(count: number): Promise<number[][]> {
    const lines = readFileSync(join(directory, "questions.jsonl"), "utf8").trim().split("\n").slice(0, count);
    const prompt = await createPromptService(directory, chatglm3);
    const all = lines.map((line) => {
      const { messages, answer } = JSON.parse(line) as { messages: ChatMessage[]; answer: string };
      return prompt.encodeChat([...messages, { role: "assistant", content: answer }], {
        addGenerationPrompt: false,
      });
    });
    const ids = (await Promise.all(all)).map((tokens) => Array.from(tokens));
    await prompt.close();
    return ids;
  }

  /** The most likely token after every position. */
  async function bestTokens(
    tensors: Tensors,
    shape: ModelShape,
    sequences: number[][],
    options: StageOptions,
  ) {
    const pipeline = await TestPipeline.create(tensors, shape, [3], { maxRows: 256, ...options });
    const tokens: number[] = [];
    for (const ids of sequences) {
      const blocks = Array.from({ length: Math.ceil(ids.length / 16) }, (_, i) => i);
      const input = tokenStep([rows(0, ids.length, blocks)], ids);
      input.samples = ids.map((_, row) => greedy(row, row + 1));
      tokens.push(...(await pipeline.step(input)).samples.map(({ token }) => token));
    }
    await pipeline.close();
    return tokens;
  }

  test.each(cases)("with %s gives the canon's logits and the tokens of float32", async (name, one) => {
    const { weights, head, kvType } = one;
    const { shape } = await openModel(directory);
    const options: StageOptions = { weights, headWeights: head, dtype: "float32", kvType };
    const sequences = await conversations(40);
    const ids = sequences[0]!;
    const canon = new CanonModel(byName(list), shape, {
      weights,
      headWeights: head,
      dtype: "float32",
      kvType,
    });
    expect(relativeL2(await allLogprobs(stored, shape, ids, options), canon.logits(ids))).toBeLessThan(1e-4);

    const plain = writeTensors(join(folder.path, `demo-${name}.bin`), restored(list, shape, weights, head));
    const expected = await bestTokens(plain, shape, sequences, { dtype: "float32", kvType: "float32" });
    const got = await bestTokens(stored, shape, sequences, options);
    const equal = got.filter((token, i) => token === expected[i]).length;
    expect(expected.length).toBeGreaterThan(400);
    expect(equal / expected.length).toBeGreaterThanOrEqual(0.98);
  });
});
