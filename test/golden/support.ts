/** Fixtures with a reference's numbers, run by the engine in one stage or several. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { type Model, stageTensors } from "../../checkpoint/index.js";
import {
  type DType,
  type Gpu,
  Stage,
  type StageConfig,
  type TokenResult,
  type WeightFormat,
} from "../../native/index.js";
import { greedy, rows, TestPipeline, tokenStep } from "../native/support.js";

/** Alternatives that are looked at per token. */
const top = 20;

export interface Expected {
  tokenCount: number;
  /** Of a prefix-LM. */
  ids?: { mask: number; gmask: number; sop: number; eop: number };
  cases: {
    prompt: number[];
    /** Of a prefix-LM: tokens in front of the one that starts the reply. */
    contextLength?: number;
    /** Whose position all of the reply has; null: positions go on. */
    maskPosition?: number | null;
    tokens: number[];
    /** Of prompt[i + 1]; null where the context sees the token. */
    promptLogprobs: (number | null)[];
    stepLogprobs: number[][];
  }[];
}

export const fixtureFolder = (name: string): string => join(import.meta.dirname, "fixtures", name);

export function readExpected(name: string): Expected {
  return JSON.parse(readFileSync(join(fixtureFolder(name), "expected.json"), "utf8")) as Expected;
}

/** The largest difference of any logprob that the engine returned. */
function worstError(result: TokenResult, expectedRow: number[]): number {
  expect(result.finite).toBe(true);
  expect(result.topTokens).toHaveLength(top);
  let worst = Math.abs(result.logprob - expectedRow[result.token]!);
  result.topTokens.forEach((token, i) => {
    worst = Math.max(worst, Math.abs(result.topLogprobs[i]! - expectedRow[token]!));
  });
  return worst;
}

/**
 * Runs all cases, the known tokens fed back; returns the worst error, the distance of all rows (relative L2),
 * the greedy tokens and every logprob. Closes the pipeline.
 */
export async function runCases(pipeline: TestPipeline, expected: Expected) {
  let worst = 0;
  const tokens: number[][] = [];
  const logprobs: number[] = [];
  let squaredError = 0;
  let squares = 0;
  for (const example of expected.cases) {
    const blocks = [3, 0, 7, 5, 1];
    const { prompt } = example;
    const drawn: number[] = [];
    for (const [step, row] of example.stepLogprobs.entries()) {
      const ids = step === 0 ? prompt : [example.tokens[step - 1]!];
      const start = step === 0 ? 0 : prompt.length + step - 1;
      const context = {
        contextLength: example.contextLength ?? 0,
        maskPosition: example.maskPosition ?? -1,
      };
      const input = tokenStep([{ ...rows(start, ids.length, blocks), ...context }], ids);
      input.samples = [greedy(ids.length - 1, start + ids.length, top)];
      if (step === 0) {
        input.scores = prompt.slice(1).map((token, i) => ({ row: i, token, topLogprobs: 0 }));
      }
      // Every id once, so that no part of the row goes unseen.
      for (let token = 0; token < expected.tokenCount; token++) {
        input.scores.push({ row: ids.length - 1, token, topLogprobs: 0 });
      }
      const output = await pipeline.step(input);
      const sample = output.samples[0]!;
      worst = Math.max(worst, worstError(sample, row));
      drawn.push(sample.token);
      logprobs.push(...output.scores.map(({ logprob }) => logprob));
      const scored = output.scores.slice(step === 0 ? prompt.length - 1 : 0);
      scored.forEach((score, token) => {
        worst = Math.max(worst, Math.abs(score.logprob - row[token]!));
        squaredError += (score.logprob - row[token]!) ** 2;
        squares += row[token]! ** 2;
      });
      if (step === 0) {
        example.promptLogprobs.forEach((logprob, i) => {
          if (logprob === null) return;
          worst = Math.max(worst, Math.abs(output.scores[i]!.logprob - logprob));
        });
      }
    }
    tokens.push(drawn);
  }
  await pipeline.close();
  return { worst, distance: Math.sqrt(squaredError / squares), tokens, logprobs };
}

interface Precision {
  threads?: number;
  dtype?: DType;
  weights?: WeightFormat;
  headWeights?: WeightFormat;
  kvType?: "float32" | "int8";
  /** Absent: the CPU. */
  device?: Gpu | null;
}

/**
 * The stages of an opened model.
 * @param tokenCount Ids that the reference knows.
 * @param cuts First layer of every stage but the first.
 */
export async function pipelineOf(
  model: Model,
  tokenCount: number,
  cuts: number[],
  precision: Precision = {},
): Promise<TestPipeline> {
  const shape = { ...model.shape, tokenCount };
  const borders = [0, ...cuts, shape.layerCount];
  const stages = borders.slice(1).map((layerEnd, i) => {
    const layerBegin = borders[i]!;
    const range = { layerBegin, layerEnd, embed: layerBegin === 0, head: layerEnd === shape.layerCount };
    const config: StageConfig = {
      shape,
      layerBegin,
      layerEnd,
      ...stageTensors(model, range),
      weights: precision.weights ?? null,
      headWeights: precision.headWeights ?? null,
      dtype: precision.dtype ?? "float32",
      kvType: precision.kvType ?? precision.dtype ?? "float32",
      blockCount: 16,
      blockSize: 16,
      maxRows: 128,
      contextRows: model.card.attention.kind === "prefix" ? 128 : 0,
      threads: precision.threads ?? 2,
    };
    return Stage.create(config, undefined, null, precision.device ?? null);
  });
  return new TestPipeline(await Promise.all(stages));
}
