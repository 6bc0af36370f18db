/**
 * A context that is read in slices of layers, with other sequences' steps in between, is the same to the bit
 * as one that comes whole: every family that reads its context in both directions, every cut and slice size.
 */
import { describe, expect, test } from "vitest";
import { type Model, openModel } from "../../checkpoint/index.js";
import type {
  DType,
  SequenceRows,
  SliceInput,
  StepInput,
  StepOutput,
  TokenResult,
  WeightFormat,
} from "../../native/index.js";
import { greedy, INT4, INT8, rows, type TestPipeline, tokenStep } from "../native/support.js";
import { fixtureFolder, pipelineOf, readExpected } from "./support.js";

const top = 20;
const decodeSteps = 3;

interface Slice {
  rows: SequenceRows;
  tokenIds: Int32Array;
  layerBegin: number;
  layerEnd: number;
}

interface Precision {
  dtype: DType;
  weights?: WeightFormat;
  headWeights?: WeightFormat;
  kvType?: "float32" | "int8";
}

interface Sequence {
  tokens: number[];
  computed: number;
  blocks: number[];
  context: { contextLength: number; maskPosition: number };
  results: TokenResult[];
}

/** Stages as workers drive them: each computes the slice that is its own, and takes the rows that come to it. */
class Stages {
  constructor(
    readonly pipeline: TestPipeline,
    readonly borders: number[],
  ) {}

  async step(input: StepInput, slice: Slice | null): Promise<StepOutput> {
    let output: StepOutput | null = null;
    let arriving: Uint8Array | null = null;
    for (const [i, stage] of this.pipeline.stages.entries()) {
      const part = this.part(i, slice, arriving);
      arriving = null;
      const isLast = i === this.pipeline.stages.length - 1;
      const activations = output?.activations ?? null;
      if (input.sequences.length === 0 && part === undefined) continue;
      output = await stage.step({
        sequences: input.sequences,
        tokenIds: i === 0 && input.sequences.length > 0 ? input.tokenIds : null,
        activations,
        samples: isLast ? input.samples : [],
        scores: isLast ? input.scores : [],
        ...(part && { slice: part }),
      });
      arriving = output.sliceActivations ?? null;
    }
    return output!;
  }

  private part(stage: number, slice: Slice | null, arriving: Uint8Array | null): SliceInput | undefined {
    if (slice === null) return undefined;
    const [begin, end] = [this.borders[stage]!, this.borders[stage + 1]!];
    const { rows, layerBegin, layerEnd } = slice;
    if (layerEnd === begin) {
      return { rows, layerBegin: begin, layerEnd: begin, tokenIds: null, activations: arriving! };
    }
    if (layerBegin < begin || layerEnd > end) return undefined;
    return {
      rows,
      layerBegin,
      layerEnd,
      tokenIds: layerBegin === 0 ? slice.tokenIds : null,
      activations: null,
    };
  }
}

/**
 * Decodes the first case; after one token of it the second joins, whole or in slices, one per step beside
 * the first one's next token. What follows the context travels in the step of the last slice.
 */
async function results(
  model: Model,
  name: string,
  precision: Precision,
  cuts: number[],
  sliceLayers: number | null,
): Promise<TokenResult[][]> {
  const { cases, tokenCount } = readExpected(name);
  const pipeline = await pipelineOf(model, tokenCount, cuts, precision);
  const layerCount = model.shape.layerCount;
  const stages = new Stages(pipeline, [0, ...cuts, layerCount]);
  const [runner, reader] = [cases[0]!, cases[1]!].map(
    (example, index): Sequence => ({
      tokens: [...example.prompt],
      computed: 0,
      context: { contextLength: example.contextLength!, maskPosition: example.maskPosition ?? -1 },
      blocks: [5 * index + 2, 5 * index, 5 * index + 1, 5 * index + 4, 5 * index + 3],
      results: [],
    }),
  ) as [Sequence, Sequence];
  const step = async (sequences: Sequence[], slice: Slice | null = null) => {
    const parts = sequences.map(({ tokens, computed, blocks, context }) => ({
      rows: { ...rows(computed, tokens.length - computed, blocks), ...context },
      ids: tokens.slice(computed),
    }));
    const input = tokenStep(
      parts.map((part) => part.rows),
      parts.flatMap(({ ids }) => ids),
    );
    let row = -1;
    for (const [i, { ids }] of parts.entries()) {
      row += ids.length;
      input.samples.push(greedy(row, sequences[i]!.tokens.length, top));
    }
    const { samples } = await stages.step(input, slice);
    samples.forEach((sample, i) => {
      const sequence = sequences[i]!;
      sequence.results.push(sample);
      sequence.computed = sequence.tokens.length;
      sequence.tokens.push(sample.token);
    });
  };
  await step([runner]);
  if (sliceLayers === null) {
    await step([runner, reader]);
  } else {
    const { contextLength } = reader.context;
    const context = { ...rows(0, contextLength, reader.blocks), ...reader.context };
    const tokenIds = Int32Array.from(reader.tokens.slice(0, contextLength));
    for (let layerBegin = 0; layerBegin < layerCount; ) {
      const stageEnd = stages.borders.find((border) => border > layerBegin)!;
      const layerEnd = Math.min(layerBegin + sliceLayers, stageEnd);
      if (layerEnd === layerCount) reader.computed = contextLength;
      await step(layerEnd === layerCount ? [runner, reader] : layerBegin % 2 === 0 ? [runner] : [], {
        rows: context,
        tokenIds,
        layerBegin,
        layerEnd,
      });
      layerBegin = layerEnd;
    }
  }
  for (let i = 0; i < decodeSteps; i++) await step([reader]);
  while (runner.results.length < layerCount + 1) await step([runner]);
  await pipeline.close();
  return [runner.results, reader.results];
}

describe.each([
  ["chatglm-6b-tiny", null],
  ["chatglm-6b-tiny", "chatglm-6b-tiny-ptuning"],
  ["glm-130b-tiny", null],
  ["glm-10b-tiny", null],
] as const)("%s %s", (name, prefixEncoder) => {
  test.each([
    { dtype: "float32" },
    { dtype: "bfloat16" },
    { dtype: "float16", weights: INT4, headWeights: INT8, kvType: "int8" },
  ] as Precision[])("in slices equals whole, in every cut: $dtype $weights.type", async (precision) => {
    const options = prefixEncoder === null ? {} : { prefixEncoder: fixtureFolder(prefixEncoder) };
    const model = await openModel(fixtureFolder(name), options);
    const whole = await results(model, name, precision, [], null);
    expect(whole.map((list) => list.length)).toEqual([4, 4]);
    for (const cuts of [[], [1], [2], [1, 2]]) {
      expect(await results(model, name, precision, cuts, null)).toEqual(whole);
      for (const sliceLayers of [1, 2, 3]) {
        expect(await results(model, name, precision, cuts, sliceLayers)).toEqual(whole);
      }
    }
  });
});

test("a context that was given up half-way leaves nothing behind for the next one", async () => {
  const name = "chatglm-6b-tiny";
  const model = await openModel(fixtureFolder(name));
  const { cases, tokenCount } = readExpected(name);
  const logprobs = async (abandon: boolean) => {
    const stages = new Stages(await pipelineOf(model, tokenCount, [1]), [0, 1, 3]);
    const slice = (index: number, blocks: number[], layerBegin: number, layerEnd: number): Slice => {
      const { prompt, contextLength, maskPosition } = cases[index]!;
      const context = { contextLength: contextLength!, maskPosition: maskPosition ?? -1 };
      const tokenIds = Int32Array.from(prompt.slice(0, contextLength));
      return { rows: { ...rows(0, contextLength!, blocks), ...context }, tokenIds, layerBegin, layerEnd };
    };
    if (abandon) {
      await stages.step(tokenStep([], []), slice(1, [4, 5, 6], 0, 1));
      await stages.step(tokenStep([], []), slice(1, [4, 5, 6], 1, 2));
    }
    await stages.step(tokenStep([], []), slice(0, [0, 1], 0, 1));
    await stages.step(tokenStep([], []), slice(0, [0, 1], 1, 2));
    const { prompt, contextLength, maskPosition } = cases[0]!;
    const place = { contextLength: contextLength!, maskPosition: maskPosition ?? -1 };
    const tail = prompt.slice(contextLength);
    const input = tokenStep([{ ...rows(contextLength!, tail.length, [0, 1]), ...place }], tail);
    input.samples = [greedy(tail.length - 1, prompt.length, top)];
    const { samples } = await stages.step(input, slice(0, [0, 1], 2, 3));
    await stages.pipeline.close();
    return samples;
  };
  expect(await logprobs(true)).toEqual(await logprobs(false));
});
