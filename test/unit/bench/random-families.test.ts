/** Random weights of every published model, made small: that the directory opens, and that its numbers stay finite. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkpointBytes, writeRandomCheckpoint } from "../../../bench/random-checkpoint.js";
import { cardTensors } from "../../../checkpoint/card-tensors.js";
import { type Model, openModel } from "../../../checkpoint/index.js";
import { type PublishedModel, published, publishedNames, resized } from "../../../models/published.js";
import { pipelineOf } from "../../golden/support.js";
import { greedy, INT4, INT8, rows, tokenStep } from "../../native/support.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";

const root = temporaryDirectory();
const tokenCount = 512;

/** Four layers, and every width a multiple of the largest quantization group. */
function small(model: PublishedModel): PublishedModel {
  const { card, config } = resized(model, { layers: 4, context: 64 });
  const { hiddenSize, headCount, kvHeadCount, headDim, ffnSize, vocabSize } = card.config;
  const changed: Record<string, unknown> = { ...config };
  const set = (field: string | null | undefined, value: number) => {
    if (field) changed[field] = value;
  };
  set(hiddenSize, 128);
  set(headCount, 4);
  set(kvHeadCount, 2);
  set(headDim, 32);
  set(ffnSize, 256);
  set(vocabSize, tokenCount);
  set(card.experts?.count, 8);
  set(card.experts?.ffnSize, 128);
  return { ...model, config: changed };
}

/** Logprobs of every row of a prompt, and of a token behind it. */
async function logprobs(model: Model, precision: Parameters<typeof pipelineOf>[3]): Promise<number[]> {
  const pipeline = await pipelineOf(model, tokenCount, [2], precision);
  const prompt = Array.from({ length: 20 }, (_, index) => (index * 37) % tokenCount);
  const prefix = model.card.attention.kind === "prefix" ? { contextLength: 18, maskPosition: -1 } : {};
  const found: number[] = [];
  const steps: [start: number, ids: number[]][] = [
    [0, prompt],
    [prompt.length, [7]],
  ];
  for (const [start, ids] of steps) {
    const input = tokenStep([{ ...rows(start, ids.length, [3, 0, 1]), ...prefix }], ids);
    input.samples = [greedy(ids.length - 1, start + ids.length, 20)];
    input.scores = ids.map((_, row) => ({ row, token: 5, topLogprobs: 0 }));
    const { samples, scores } = await pipeline.step(input);
    expect(samples[0]!.finite).toBe(true);
    found.push(samples[0]!.logprob, ...scores.map(({ logprob }) => logprob));
  }
  await pipeline.close();
  return found;
}

describe.each(publishedNames)("a checkpoint like %s", (name) => {
  const directory = join(root, name);
  const { card, config } = small(published[name]);
  const open = async () => {
    mkdirSync(directory, { recursive: true });
    const written = await writeRandomCheckpoint({ directory, card, config });
    expect(written).toBe(checkpointBytes(cardTensors(card, config)));
    return openModel(directory);
  };

  it("opens as a model of its family, with no tensor too many, and stays finite", async () => {
    const model = await open();
    expect(model.card).toBe(card);
    expect(model.warnings).toEqual([]);
    expect(model.dtype).toBe(config[card.config.dtype]);
    for (const precision of [
      { dtype: model.dtype },
      { dtype: model.dtype, weights: INT4, headWeights: INT8 },
    ]) {
      const values = await logprobs(model, precision);
      for (const logprob of values) expect(logprob).toBeLessThan(0);
      // Not one distribution for all: a stream of zeros would give the same everywhere.
      expect(new Set(values.map((value) => value.toFixed(3))).size).toBeGreaterThan(10);
    }
  });
});
