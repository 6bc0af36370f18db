/**
 * Results of a sequence are the same to the bit alone and in a full batch, in chunks and at once, with any
 * number of stages and threads: for causal models, prefix-LMs and mixtures of experts alike.
 */
import { describe, expect, test } from "vitest";
import { type Model, openModel } from "../../checkpoint/index.js";
import type { DType, StepInput, TokenResult, WeightFormat } from "../../native/index.js";
import { greedy, INT4, INT8, rows, tokenStep } from "../native/support.js";
import { fixtureFolder, pipelineOf, readExpected } from "./support.js";

const decodeSteps = 4;

interface Run {
  cuts: number[];
  threads?: number;
  /** All sequences travel together. */
  batched?: boolean;
  /** Rows of a prompt in one step; a context comes as a whole. */
  chunk?: number;
}

interface Precision {
  dtype: DType;
  weights?: WeightFormat;
  headWeights?: WeightFormat;
}

/** What the last stage says of every sequence: its tokens and all their logprobs. */
async function results(model: Model, name: string, precision: Precision, run: Run): Promise<TokenResult[][]> {
  const { cases, tokenCount } = readExpected(name);
  const pipeline = await pipelineOf(model, tokenCount, run.cuts, { ...precision, threads: run.threads ?? 2 });
  const sequences = cases.slice(0, 3).map((example, index) => ({
    tokens: [...example.prompt],
    computed: 0,
    context: { contextLength: example.contextLength ?? 0, maskPosition: example.maskPosition ?? -1 },
    blocks: [3 * index + 2, 3 * index, 3 * index + 1, 9 + index],
    results: [] as TokenResult[],
  }));
  const length = (sequence: (typeof sequences)[number], index: number) =>
    cases[index]!.prompt.length + decodeSteps - sequence.computed;
  for (;;) {
    const ready = sequences.filter((sequence, index) => length(sequence, index) > 0);
    if (ready.length === 0) break;
    const together = run.batched ? ready : ready.slice(0, 1);
    const parts = together.map((sequence) => {
      const { context, tokens, computed } = sequence;
      const least = computed === 0 ? context.contextLength : 0;
      const count = Math.max(least, Math.min(run.chunk ?? 64, tokens.length - computed));
      return { sequence, ids: tokens.slice(computed, computed + count) };
    });
    const input: StepInput = tokenStep(
      parts.map(({ sequence, ids }) => ({
        ...rows(sequence.computed, ids.length, sequence.blocks),
        ...sequence.context,
      })),
      parts.flatMap(({ ids }) => ids),
    );
    let row = -1;
    const drawing: typeof parts = [];
    for (const part of parts) {
      row += part.ids.length;
      part.sequence.computed += part.ids.length;
      if (part.sequence.computed < part.sequence.tokens.length) continue;
      drawing.push(part);
      input.samples.push(greedy(row, part.sequence.computed, 20));
    }
    const { samples } = await pipeline.step(input);
    samples.forEach((sample, i) => {
      drawing[i]!.sequence.results.push(sample);
      drawing[i]!.sequence.tokens.push(sample.token);
    });
  }
  await pipeline.close();
  return sequences.map((sequence) => sequence.results);
}

describe.each(["chatglm3-tiny", "chatglm-6b-tiny", "glm-130b-tiny", "glm-10b-tiny", "glm45-tiny"])(
  "%s",
  (name) => {
    test.each([
      { dtype: "float32" },
      { dtype: "bfloat16" },
      { dtype: "float16", weights: INT4, headWeights: INT8 },
    ] as Precision[])("gives the same whoever travels along: $dtype $weights.type", async (precision) => {
      const model = await openModel(fixtureFolder(name));
      const alone = await results(model, name, precision, { cuts: [] });
      expect(alone.map((list) => list.length)).toEqual([5, 5, 5].slice(0, alone.length));
      const runs: Run[] = [
        { cuts: [], batched: true },
        { cuts: [], threads: 1, chunk: 5 },
        { cuts: [1], batched: true, chunk: 3, threads: 3 },
        { cuts: [1, 2], batched: true },
      ];
      for (const run of runs) expect(await results(model, name, precision, run)).toEqual(alone);
    });
  },
);
