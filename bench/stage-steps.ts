/** Steps of a stage as benchmarks send them. */
import { kvBlockSize } from "../common/limits.js";
import type { SampleRequest, StepInput } from "../native/index.js";

type Sequences = StepInput["sequences"];

/** One row of each of so many sequences, all of them behind `context` others, in blocks of its own. */
export function decodingSequences(count: number, context: number): Sequences {
  const blocks = Math.ceil((context + 1) / kvBlockSize);
  return Array.from({ length: count }, (_, index) => sequence(1, context, index * blocks));
}

/** Rows of one sequence behind `before` others, in the blocks from `firstBlock` on. */
export function sequence(rowCount: number, before: number, firstBlock = 0): Sequences[number] {
  const blocks = Math.ceil((before + rowCount) / kvBlockSize);
  const blockTable = Int32Array.from({ length: blocks }, (_, block) => firstBlock + block);
  return { rowCount, startPosition: before, contextLength: 0, maskPosition: -1, blockTable };
}

/** The best token behind each of so many rows. */
export function greedySamples(rows: number): SampleRequest[] {
  return Array.from({ length: rows }, (_, row) => ({
    ...{ row, temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0n },
    ...{ topLogprobs: -1, bannedTokens: new Int32Array(0), draft: new Int32Array(0), position: 0 },
  }));
}
