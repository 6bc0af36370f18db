/**
 * Mixtures of experts at their edges: rows that are not finite, numbers of experts and groups at both ends,
 * sizes that fill no tile.
 */
import { afterAll, describe, expect, test } from "vitest";
import { plainForm } from "../../models/shape.js";
import {
  type ExpertShape,
  type LayerTensors,
  type ModelShape,
  Stage,
  type StageConfig,
  type WeightFormat,
} from "../../native/index.js";
import {
  greedy,
  INT4,
  INT8,
  rows,
  seededRandom,
  type TestTensor,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);

const hiddenSize = 36;
const vocabulary = 50;
const prompt = Array.from({ length: 100 }, (_, index) => (7 * index) % 40);

const plain: ExpertShape = {
  count: 6,
  perToken: 2,
  groups: 1,
  groupsPerToken: 1,
  ffnSize: 33,
  sharedFfnSize: 21,
  normalizeWeights: true,
  scale: 1.5,
};

function shapeOf(experts: ExpertShape): ModelShape {
  return {
    hiddenSize,
    layerCount: 2,
    headCount: 3,
    kvHeadCount: 1,
    headDim: 12,
    ffnSize: 27,
    vocabSize: vocabulary,
    tokenCount: vocabulary,
    ropeDim: 4,
    ropeBase: 10_000,
    ropePositionDivisor: 1,
    normEps: 1e-5,
    maxPositions: 256,
    form: plainForm,
    experts,
  };
}

let files = 0;

/** Two layers with experts, in one stage that begins behind the embedding or with it. */
function config(experts: ExpertShape, weights: WeightFormat | null, layerBegin: number): StageConfig {
  const shape = shapeOf(experts);
  const random = seededRandom(11);
  const list: TestTensor[] = [];
  const add = (name: string, size: number[], scale = 0.5, offset = 0) => {
    const values = new Float32Array(size.reduce((product, n) => product * n, 1));
    for (let i = 0; i < values.length; i++) values[i] = offset + scale * (2 * random() - 1);
    list.push({ name, dtype: "float32", shape: size, values });
  };
  const { headCount, kvHeadCount, headDim } = shape;
  add("embedding", [vocabulary, hiddenSize], 1);
  for (let layer = 0; layer < shape.layerCount; layer++) {
    add(`${layer} norm`, [hiddenSize], 0.2, 1);
    add(`${layer} qkv`, [(headCount + 2 * kvHeadCount) * headDim, hiddenSize]);
    add(`${layer} out`, [hiddenSize, headCount * headDim]);
    add(`${layer} up`, [2 * experts.sharedFfnSize, hiddenSize]);
    add(`${layer} down`, [hiddenSize, experts.sharedFfnSize]);
    add(`${layer} router`, [experts.count, hiddenSize], 2);
    add(`${layer} bias`, [experts.count]);
    for (let expert = 0; expert < experts.count; expert++) {
      add(`${layer} ${expert} gate`, [experts.ffnSize, hiddenSize]);
      add(`${layer} ${expert} up`, [experts.ffnSize, hiddenSize]);
      add(`${layer} ${expert} down`, [hiddenSize, experts.ffnSize]);
    }
  }
  add("final", [hiddenSize], 0.2, 1);
  add("head", [vocabulary, hiddenSize], 2);
  const tensors = writeTensors(`${folder.path}/${files++}.bin`, list);
  const at = (name: string) => tensors.get(name)!;
  const layers = [0, 1].map(
    (layer): LayerTensors => ({
      attentionNorm: at(`${layer} norm`),
      attentionNormBias: null,
      qkvWeight: [at(`${layer} qkv`)],
      qkvBias: null,
      queryNorm: null,
      keyNorm: null,
      attentionOut: [at(`${layer} out`)],
      attentionOutBias: null,
      attentionOutNorm: null,
      ffnNorm: at(`${layer} norm`),
      ffnNormBias: null,
      ffnUp: [at(`${layer} up`)],
      ffnUpBias: null,
      ffnDown: [at(`${layer} down`)],
      ffnDownBias: null,
      ffnOutNorm: null,
      router: { weight: at(`${layer} router`), bias: at(`${layer} bias`) },
      experts: Array.from({ length: experts.count }, (_, expert) => ({
        up: [at(`${layer} ${expert} gate`), at(`${layer} ${expert} up`)],
        down: [at(`${layer} ${expert} down`)],
      })),
    }),
  );
  return {
    shape,
    layerBegin,
    layerEnd: shape.layerCount,
    layers: layers.slice(layerBegin),
    embedding: layerBegin === 0 ? [at("embedding")] : null,
    positionEmbedding: null,
    blockPositionEmbedding: null,
    finalNorm: at("final"),
    finalNormBias: null,
    head: [at("head")],
    prefix: null,
    weights,
    headWeights: weights === null ? null : INT8,
    dtype: "float32",
    kvType: "float32",
    blockCount: 32,
    blockSize: 16,
    maxRows: 256,
    contextRows: 0,
    threads: 2,
  };
}

const blocks = (first: number) => Array.from({ length: 8 }, (_, index) => first + index);

const shapes: [string, ExpertShape][] = [
  ["the usual choice", plain],
  ["one expert", { ...plain, count: 1, perToken: 1 }],
  ["every expert for every row", { ...plain, count: 5, perToken: 5 }],
  ["more experts than choices, so that most have no row", { ...plain, count: 300, perToken: 1 }],
  ["groups", { ...plain, count: 8, groups: 4, groupsPerToken: 2, perToken: 4 }],
  ["groups of one", { ...plain, count: 6, groups: 6, groupsPerToken: 3, perToken: 3 }],
  ["a single column inside", { ...plain, ffnSize: 1, sharedFfnSize: 1 }],
];
const formats: [string, WeightFormat | null][] = [
  ["as stored", null],
  ["int8", INT8],
  ["int4", INT4],
];

describe.each(shapes)("%s", (_, experts) => {
  test.each(formats)("%s: a row is the same alone and among others", async (_name, weights) => {
    const stage = await Stage.create(config(experts, weights, 0));
    const all = tokenStep([rows(0, prompt.length, blocks(0))], prompt);
    const together = await stage.step({
      ...all,
      samples: prompt.map((_token, row) => greedy(row, row + 1, 5)),
    });
    for (const [row, token] of prompt.slice(0, 20).entries()) {
      const alone = await stage.step({
        ...tokenStep([rows(row, 1, blocks(8))], [token]),
        samples: [greedy(0, row + 1, 5)],
      });
      expect(alone.samples[0]).toEqual(together.samples[row]);
    }
    expect(together.samples.every(({ finite }) => finite)).toBe(true);
    await stage.close();
  });

  test.each(formats)("%s: rows of NaN are told and touch no other row", async (_name, weights) => {
    const stage = await Stage.create(config(experts, weights, 1));
    const random = seededRandom(5);
    const good = Float32Array.from({ length: 3 * hiddenSize }, () => 2 * random() - 1);
    const bad = new Float32Array(97 * hiddenSize).fill(Number.NaN);
    const step = async (values: Float32Array, sequences: [number, number][]) => {
      let row = -1;
      const output = await stage.step({
        sequences: sequences.map(([count, first]) => rows(0, count, blocks(first))),
        tokenIds: null,
        activations: new Uint8Array(values.buffer),
        samples: sequences.flatMap(([count]) =>
          Array.from({ length: count }, (_value, index) => greedy(++row, index + 1, 5)),
        ),
        scores: [],
      });
      return output.samples;
    };
    const alone = await step(good, [[3, 0]]);
    const both = new Float32Array(bad.length + good.length);
    both.set(bad);
    both.set(good, bad.length);
    const samples = await step(both, [
      [97, 8],
      [3, 0],
    ]);
    expect(samples.slice(97)).toEqual(alone);
    expect(samples.slice(0, 97).some(({ finite }) => finite)).toBe(false);
    // An infinity gives NaN in some logits of the router and not in others.
    both.fill(0);
    for (let row = 0; row < 97; row++) both[row * hiddenSize + (row % hiddenSize)] = Number.POSITIVE_INFINITY;
    both.set(good, bad.length);
    const infinite = await step(both, [
      [97, 8],
      [3, 0],
    ]);
    expect(infinite.slice(97)).toEqual(alone);
    expect(infinite.slice(0, 97).some(({ finite }) => finite)).toBe(false);
    await stage.close();
  });
});
