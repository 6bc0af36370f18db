/**
 * The engine against an independent float64 implementation (make_chatglm3_tiny.py): a random ChatGLM3
 * of 4 layers, prefill and 8 decode steps, in one stage and in several; and the same weights as those of
 * the other families of this network, found by their cards.
 */

import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import type { DType, ModelShape, TokenResult } from "../../native/index.js";
import {
  greedy,
  readSafetensors,
  rows,
  type StageOptions,
  type Tensors,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "../native/support.js";

const FIXTURE = join(import.meta.dirname, "fixtures", "chatglm3-tiny");
const TOP = 20;

interface Case {
  prompt: number[];
  tokens: number[];
  promptLogprobs: number[];
  stepLogprobs: number[][];
}

interface Expected {
  tokenCount: number;
  cases: Case[];
}

interface Family extends Pick<Expected, "cases"> {
  config: Record<string, unknown>;
}

const expected = JSON.parse(readFileSync(join(FIXTURE, "expected.json"), "utf8")) as Expected;
const families = JSON.parse(readFileSync(join(FIXTURE, "families.json"), "utf8")) as Family[];
const config = JSON.parse(readFileSync(join(FIXTURE, "config.json"), "utf8")) as Record<string, number>;
const tensors = readSafetensors(join(FIXTURE, "model.safetensors"));

const shape: ModelShape = {
  hiddenSize: config.hidden_size!,
  layerCount: config.num_layers!,
  headCount: config.num_attention_heads!,
  kvHeadCount: config.multi_query_group_num!,
  headDim: config.kv_channels!,
  ffnSize: config.ffn_hidden_size!,
  vocabSize: config.padded_vocab_size!,
  tokenCount: expected.tokenCount,
  ropeDim: config.kv_channels! / 2,
  ropeBase: 10000,
  ropePositionDivisor: 1,
  normEps: config.layernorm_epsilon!,
  maxPositions: config.seq_length!,
};

const chatglm3 = { shape, cases: expected.cases };

const folder = temporaryFolder();
afterAll(folder.remove);

/** The same weights in another storage type. */
function converted(dtype: DType): Tensors {
  const bytes = readFileSync(join(FIXTURE, "model.safetensors"));
  const list = [...tensors].map(([name, source]) => {
    const values = new Float32Array(source.byteLength / 4);
    for (let i = 0; i < values.length; i++) values[i] = bytes.readFloatLE(source.byteOffset + 4 * i);
    return { name, dtype, shape: source.shape, values };
  });
  return writeTensors(join(folder.path, `${dtype}.bin`), list);
}

/** The largest difference of any logprob that the engine returned. */
function worstError(result: TokenResult, expectedRow: number[]): number {
  expect(result.finite).toBe(true);
  expect(result.topTokens).toHaveLength(TOP);
  let worst = Math.abs(result.logprob - expectedRow[result.token]!);
  result.topTokens.forEach((token, i) => {
    worst = Math.max(worst, Math.abs(result.topLogprobs[i]! - expectedRow[token]!));
  });
  return worst;
}

/** Runs all cases, the known tokens fed back; returns the worst error and the greedy tokens. */
async function runCases(
  model: Tensors,
  cuts: number[],
  options: StageOptions,
  { shape, cases }: { shape: ModelShape; cases: Case[] } = chatglm3,
) {
  const pipeline = await TestPipeline.create(model, shape, cuts, options);
  let worst = 0;
  const tokens: number[][] = [];
  for (const example of cases) {
    const blocks = [3, 0, 7, 5];
    const { prompt } = example;
    const drawn: number[] = [];
    for (const [step, row] of example.stepLogprobs.entries()) {
      const ids = step === 0 ? prompt : [example.tokens[step - 1]!];
      const start = step === 0 ? 0 : prompt.length + step - 1;
      const input = tokenStep([rows(start, ids.length, blocks)], ids);
      input.samples = [greedy(ids.length - 1, start + ids.length, TOP)];
      if (step === 0) {
        input.scores = prompt.slice(1).map((token, i) => ({ row: i, token, topLogprobs: 0 }));
      }
      // Every id once, so that no part of the row goes unseen.
      for (let token = 0; token < shape.tokenCount; token++) {
        input.scores.push({ row: ids.length - 1, token, topLogprobs: 0 });
      }
      const output = await pipeline.step(input);
      const sample = output.samples[0]!;
      worst = Math.max(worst, worstError(sample, row));
      drawn.push(sample.token);
      const scored = output.scores.slice(step === 0 ? prompt.length - 1 : 0);
      scored.forEach((score, token) => {
        worst = Math.max(worst, Math.abs(score.logprob - row[token]!));
      });
      if (step === 0) {
        example.promptLogprobs.forEach((logprob, i) => {
          worst = Math.max(worst, Math.abs(output.scores[i]!.logprob - logprob));
        });
      }
    }
    tokens.push(drawn);
  }
  await pipeline.close();
  return { worst, tokens };
}

const expectedTokens = expected.cases.map((example) => example.tokens);

for (const [name, cuts] of [
  ["one stage", []],
  ["two stages", [1]],
  ["three stages", [2, 3]],
] as [string, number[]][]) {
  test(`${name} compute every logprob of the float64 reference within 1e-4`, async () => {
    const { worst, tokens } = await runCases(tensors, cuts, { threads: 2 });
    expect(worst).toBeLessThan(1e-4);
    expect(tokens).toEqual(expectedTokens);
  });
}

for (const { config: changed, cases } of families) {
  test(`${changed._name_or_path} computes every logprob of the float64 reference within 1e-4`, async () => {
    const directory = join(folder.path, String(changed._name_or_path).replace("/", "-"));
    mkdirSync(directory);
    copyFileSync(join(FIXTURE, "model.safetensors"), join(directory, "model.safetensors"));
    writeFileSync(join(directory, "config.json"), JSON.stringify({ ...config, ...changed }));
    const opened = await openModel(directory);
    const family = { shape: { ...opened.shape, tokenCount: expected.tokenCount }, cases };
    const { worst, tokens } = await runCases(tensors, [2], { threads: 2 }, family);
    expect(worst).toBeLessThan(1e-4);
    expect(tokens).toEqual(cases.map((example) => example.tokens));
    const asChatglm3 = await runCases(tensors, [2], { threads: 2 }, { shape, cases });
    expect(asChatglm3.worst).toBeGreaterThan(100 * worst);
  });
}

// Rounding weights and residual to 11 or 8 bits moves logprobs of this noisy random model; the bounds
// only show that the types are read and written rightly.
for (const [dtype, bound] of [
  ["float16", 0.05],
  ["bfloat16", 0.4],
] as [DType, number][]) {
  test(`weights and residual in ${dtype} stay within ${bound} of the float64 reference`, async () => {
    const { worst } = await runCases(converted(dtype), [2], { dtype });
    expect(worst).toBeLessThan(bound);
    expect(worst).toBeGreaterThan(1e-4);
  });
}
