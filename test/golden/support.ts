/** Fixtures with a reference's numbers, run by the engine in one stage or several. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import type { TokenResult } from "../../native/index.js";
import { greedy, rows, type TestPipeline, tokenStep } from "../native/support.js";

/** Alternatives that are looked at per token. */
const top = 20;

export interface Expected {
  tokenCount: number;
  cases: { prompt: number[]; tokens: number[]; promptLogprobs: number[]; stepLogprobs: number[][] }[];
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

/** Runs all cases, the known tokens fed back; returns the worst error, the greedy tokens and every logprob. Closes the pipeline. */
export async function runCases(pipeline: TestPipeline, expected: Expected) {
  let worst = 0;
  const tokens: number[][] = [];
  const logprobs: number[] = [];
  for (const example of expected.cases) {
    const blocks = [3, 0, 7, 5];
    const { prompt } = example;
    const drawn: number[] = [];
    for (const [step, row] of example.stepLogprobs.entries()) {
      const ids = step === 0 ? prompt : [example.tokens[step - 1]!];
      const start = step === 0 ? 0 : prompt.length + step - 1;
      const input = tokenStep([rows(start, ids.length, blocks)], ids);
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
  return { worst, tokens, logprobs };
}
