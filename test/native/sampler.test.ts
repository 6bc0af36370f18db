/**
 * Sampling, seen through a stage whose logits are known: its layer adds nothing (all weights zero),
 * the embedding of token 0 has a 1 in the first dimension only, and the head turns that into chosen
 * logits.
 */

import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { type ModelShape, type SampleRequest, Stage, type TokenResult } from "../../native/index.js";
import {
  greedy,
  randomModel,
  rows,
  stageConfig,
  type TestTensor,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);

/** With eps 0 the normalised one-hot row is sqrt(16) = 4 in its place, exactly. */
const HIDDEN = 16;

/** A stage that answers token 0 with these logits (quarters are exact); padding rows get 1000. */
async function stageWithLogits(logits: number[], padding = 0): Promise<Stage> {
  const shape: ModelShape = {
    ...TINY,
    hiddenSize: HIDDEN,
    layerCount: 1,
    normEps: 0,
    vocabSize: logits.length + padding,
    tokenCount: logits.length,
  };
  const list: TestTensor[] = randomModel(shape, "float32", 1);
  for (const { name, values } of list) {
    values.fill(name.endsWith("layernorm.weight") ? 1 : 0);
    if (name.includes("word_embeddings")) values[0] = 1;
    if (name.includes("output_layer")) {
      for (let token = 0; token < shape.vocabSize; token++) {
        values[token * HIDDEN] = (logits[token] ?? 1000) / 4;
      }
    }
  }
  const tensors = writeTensors(join(folder.path, `${Math.random()}.bin`), list);
  return Stage.create(stageConfig(tensors, shape, 0, 1, { maxRows: 1, threads: 2 }));
}

function request(changes: Partial<SampleRequest>): SampleRequest {
  return { ...greedy(0, 1), temperature: 1, ...changes };
}

async function sample(stage: Stage, requests: SampleRequest[]): Promise<TokenResult[]> {
  const input = tokenStep([rows(0, 1, [0])], [0]);
  input.samples = requests;
  return (await stage.step(input)).samples;
}

/** How often each token was drawn with seeds 0, 1, 2, ... */
async function counts(stage: Stage, draws: number, changes: Partial<SampleRequest>, size: number) {
  const requests = Array.from({ length: draws }, (_, i) => request({ ...changes, seed: BigInt(i) }));
  const found = new Array<number>(size).fill(0);
  for (const { token } of await sample(stage, requests)) found[token]!++;
  return found;
}

/** Pearson's statistic; tokens that must not occur count as infinite. */
function chiSquare(observed: number[], probabilities: number[]): number {
  const draws = observed.reduce((sum, count) => sum + count, 0);
  return observed.reduce((sum, count, i) => {
    const expected = draws * probabilities[i]!;
    if (expected === 0) return count === 0 ? sum : Number.POSITIVE_INFINITY;
    return sum + (count - expected) ** 2 / expected;
  }, 0);
}

function softmax(logits: number[], temperature = 1): number[] {
  const weights = logits.map((logit) => Math.exp(logit / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Keeps some tokens and shares the probability out among them. */
function only(probabilities: number[], kept: number[]): number[] {
  const total = kept.reduce((sum, token) => sum + probabilities[token]!, 0);
  return probabilities.map((p, token) => (kept.includes(token) ? p / total : 0));
}

const LOGITS = [1, 2.5, 0.5, 2, -1, 0];
const SIZE = LOGITS.length;
const DRAWS = 4000;
/** Five degrees of freedom: exceeded once in a thousand; the seeds are fixed, so it never varies. */
const CHI_MAX = 20.5;

test("logprobs, ranks and alternatives are those of the raw logits", async () => {
  const stage = await stageWithLogits(LOGITS, 3);
  const input = tokenStep([rows(0, 1, [0])], [0]);
  input.samples = [request({ temperature: 0, bannedTokens: Int32Array.of(1), topLogprobs: 20 }), request({})];
  input.scores = LOGITS.map((_, token) => ({ row: 0, token, topLogprobs: 2 }));
  const output = await stage.step(input);
  await stage.close();

  const expected = softmax(LOGITS).map(Math.log);
  const [best, plain] = output.samples as [TokenResult, TokenResult];
  expect(best.token).toBe(3);
  expect(best.rank).toBe(2);
  expect(best.logprob).toBeCloseTo(expected[3]!, 6);
  expect([...best.topTokens]).toEqual([1, 3, 0, 2, 5, 4]);
  best.topTokens.forEach((token, i) => {
    expect(best.topLogprobs[i]).toBeCloseTo(expected[token]!, 6);
  });
  // Not asked for.
  expect(plain.logprob).toBeNaN();
  expect(plain.rank).toBe(0);
  expect(plain.topTokens).toHaveLength(0);

  expect(output.scores.map(({ token }) => token)).toEqual([0, 1, 2, 3, 4, 5]);
  expect(output.scores.map(({ rank }) => rank)).toEqual([3, 1, 4, 2, 6, 5]);
  output.scores.forEach((score, token) => {
    expect(score.logprob).toBeCloseTo(expected[token]!, 6);
    expect([...score.topTokens]).toEqual([1, 3]);
  });
});

test("ties go to the lowest id: greedy, in top-k and among the alternatives", async () => {
  const stage = await stageWithLogits([0, 2, 1, 2, 2, 1]);
  const [first, second, third] = await sample(stage, [
    request({ temperature: 0, topLogprobs: 5 }),
    request({ temperature: 0, bannedTokens: Int32Array.of(1) }),
    request({ topK: 1, seed: 77n }),
  ]);
  expect(first!.token).toBe(1);
  expect([...first!.topTokens]).toEqual([1, 3, 4, 2, 5]);
  expect(second!.token).toBe(3);
  expect(third!.token).toBe(1);
  const found = await counts(stage, 400, { topK: 2 }, 6);
  await stage.close();
  expect(found[1]! + found[3]!).toBe(400);
});

test("without limits tokens come as often as softmax says, at several temperatures", async () => {
  const stage = await stageWithLogits(LOGITS, 2);
  for (const temperature of [0.5, 1, 2]) {
    const found = await counts(stage, DRAWS, { temperature }, SIZE);
    expect(chiSquare(found, softmax(LOGITS, temperature)), `temperature ${temperature}`).toBeLessThan(
      CHI_MAX,
    );
  }
  await stage.close();
});

test("other positions of one seed are as random as other seeds", async () => {
  const stage = await stageWithLogits(LOGITS);
  const requests = Array.from({ length: DRAWS }, (_, position) => request({ position, seed: 5n }));
  const found = new Array<number>(SIZE).fill(0);
  for (const { token } of await sample(stage, requests)) found[token]!++;
  await stage.close();
  expect(chiSquare(found, softmax(LOGITS))).toBeLessThan(CHI_MAX);
});

test("the same seed and position give the same token, whatever is drawn beside it", async () => {
  const stage = await stageWithLogits(LOGITS);
  const requests = Array.from({ length: 200 }, (_, i) => request({ seed: BigInt(i * i), position: i }));
  const together = await sample(stage, requests);
  for (const i of [0, 3, 77, 199]) expect((await sample(stage, [requests[i]!]))[0]).toEqual(together[i]);
  const wide = [request({ seed: 2n ** 63n + 9n }), request({ seed: 9n })];
  expect(await sample(stage, wide)).toEqual(await sample(stage, wide));
  await stage.close();
});

test("top-k keeps the k best, and top-k 1 is greedy", async () => {
  const stage = await stageWithLogits(LOGITS);
  const found = await counts(stage, DRAWS, { topK: 3 }, SIZE);
  expect(chiSquare(found, only(softmax(LOGITS), [1, 3, 0]))).toBeLessThan(CHI_MAX);
  expect((await counts(stage, 100, { topK: 1 }, SIZE))[1]).toBe(100);
  expect(chiSquare(await counts(stage, DRAWS, { topK: 100 }, SIZE), softmax(LOGITS))).toBeLessThan(CHI_MAX);
  await stage.close();
});

test("top-p keeps the shortest beginning that reaches its share", async () => {
  const stage = await stageWithLogits(LOGITS);
  // softmax: 1: 0.45, 3: 0.27, 0: 0.10, 2: 0.06, 5: 0.04, 4: 0.01
  const p = softmax(LOGITS);
  const found = await counts(stage, DRAWS, { topP: 0.7 }, SIZE);
  expect(chiSquare(found, only(p, [1, 3]))).toBeLessThan(CHI_MAX);
  const wider = await counts(stage, DRAWS, { topP: 0.85 }, SIZE);
  expect(chiSquare(wider, only(p, [1, 3, 0]))).toBeLessThan(CHI_MAX);
  expect((await counts(stage, 100, { topP: 0.01 }, SIZE))[1]).toBe(100);
  await stage.close();
});

test("min-p keeps what reaches a share of the best, at the chosen temperature", async () => {
  const stage = await stageWithLogits(LOGITS);
  const p = softmax(LOGITS);
  // exp(-0.5) = 0.61 for token 3, exp(-1.5) = 0.22 for token 0
  expect(chiSquare(await counts(stage, DRAWS, { minP: 0.3 }, SIZE), only(p, [1, 3]))).toBeLessThan(CHI_MAX);
  expect(chiSquare(await counts(stage, DRAWS, { minP: 0.2 }, SIZE), only(p, [1, 3, 0]))).toBeLessThan(
    CHI_MAX,
  );
  expect((await counts(stage, 100, { minP: 1 }, SIZE))[1]).toBe(100);
  // At temperature 3 the least of the kept ones is exp(-2.5 / 3) = 0.43, and token 4 has 0.31.
  const hot = await counts(stage, DRAWS, { minP: 0.35, temperature: 3 }, SIZE);
  expect(chiSquare(hot, only(softmax(LOGITS, 3), [0, 1, 2, 3, 5]))).toBeLessThan(CHI_MAX);
  await stage.close();
});

test("banned ids are never drawn and their share goes to the others", async () => {
  const stage = await stageWithLogits(LOGITS, 4);
  const bannedTokens = Int32Array.of(3, 1, 3);
  const found = await counts(stage, DRAWS, { bannedTokens }, SIZE);
  expect(chiSquare(found, only(softmax(LOGITS), [0, 2, 4, 5]))).toBeLessThan(CHI_MAX);
  // With the best gone, the limits count from the next one.
  const limited = await counts(stage, DRAWS, { bannedTokens, topK: 2 }, SIZE);
  expect(chiSquare(limited, only(softmax(LOGITS), [0, 2]))).toBeLessThan(CHI_MAX);
  const [only4] = await sample(stage, [request({ bannedTokens: Int32Array.of(0, 1, 2, 3, 5) })]);
  expect(only4!.token).toBe(4);
  await stage.close();
});

test("the limits apply one after the other: top-k, then min-p, then top-p", async () => {
  const stage = await stageWithLogits(LOGITS);
  const p = softmax(LOGITS);
  // Top-k leaves 1, 3, 0 with shares 0.55, 0.33, 0.12; 0.8 of that needs two, of everything three.
  const found = await counts(stage, DRAWS, { topK: 3, topP: 0.8 }, SIZE);
  expect(chiSquare(found, only(p, [1, 3]))).toBeLessThan(CHI_MAX);
  const all = await counts(stage, DRAWS, { topK: 5, minP: 0.2, topP: 0.95 }, SIZE);
  expect(chiSquare(all, only(p, [1, 3, 0]))).toBeLessThan(CHI_MAX);
  await stage.close();
});

test("ids beyond tokenCount have no logit, however large", async () => {
  const stage = await stageWithLogits(LOGITS, 5);
  const [best] = await sample(stage, [request({ temperature: 0, topLogprobs: 20 })]);
  await stage.close();
  expect(best!.token).toBe(1);
  expect([...best!.topTokens].every((token) => token < SIZE)).toBe(true);
  const total = best!.topLogprobs.reduce((sum, logprob) => sum + Math.exp(logprob), 0);
  expect(total).toBeCloseTo(1, 6);
});

test("a flat vocabulary of 5000 ids is drawn evenly", async () => {
  const size = 5000;
  const stage = await stageWithLogits(new Array<number>(size).fill(1));
  const requests = Array.from({ length: 1000 }, (_, i) => request({ seed: BigInt(i) }));
  const drawn = (await sample(stage, requests)).map(({ token }) => token);
  await stage.close();
  const deciles = new Array<number>(10).fill(0);
  for (const token of drawn) deciles[Math.floor((token * 10) / size)]!++;
  // Nine degrees of freedom: 27.9 is exceeded once in a thousand.
  expect(chiSquare(deciles, new Array<number>(10).fill(0.1))).toBeLessThan(27.9);
});
