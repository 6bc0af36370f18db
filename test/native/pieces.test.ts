/** Matrices and tables in pieces, one below the other and side by side, are to the bit those in one piece. */
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { plainForm } from "../../models/shape.js";
import {
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
  randomModel,
  rows,
  stageConfig,
  type TestTensor,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);

/** No size fills a tile, a group or a strip. */
const shape: ModelShape = {
  hiddenSize: 45,
  layerCount: 2,
  headCount: 3,
  kvHeadCount: 1,
  headDim: 13,
  ffnSize: 71,
  vocabSize: 53,
  tokenCount: 53,
  ropeDim: 4,
  ropeBase: 10_000,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 64,
  form: plainForm,
  experts: null,
};

/** Cuts [rows, columns] along an axis. */
function cut({ name, dtype, shape: size, values }: TestTensor, axis: 0 | 1, at: number[]): TestTensor[] {
  const [rowCount, columns] = size as [number, number];
  const borders = [0, ...at, size[axis]!];
  return borders.slice(1).map((end, i) => {
    const begin = borders[i]!;
    const part: number[] = [];
    for (let row = 0; row < rowCount; row++) {
      for (let column = 0; column < columns; column++) {
        const place = axis === 0 ? row : column;
        if (place >= begin && place < end) part.push(values[row * columns + column]!);
      }
    }
    const shape = axis === 0 ? [end - begin, columns] : [rowCount, end - begin];
    return { name: `${name} ${i}`, dtype, shape, values: Float32Array.from(part) };
  });
}

/** How the layers' matrices and the tables are cut; of those with rows q | k | v or gate | up along these too. */
const cuts = [
  ["query_key_value.weight", 0, [1, 40]],
  ["dense.weight", 1, [7, 20]],
  ["dense_h_to_4h.weight", 0, [71]],
  ["dense_4h_to_h.weight", 1, [1, 34, 70]],
  ["word_embeddings.weight", 0, [17, 18]],
  ["output_layer.weight", 0, [31, 32, 52]],
] as const;

const model = randomModel(shape, "float16", 3);
const whole = writeTensors(join(folder.path, "whole.bin"), model);
const pieces = writeTensors(
  join(folder.path, "pieces.bin"),
  model.flatMap((tensor) => {
    const found = cuts.find(([suffix]) => tensor.name.endsWith(suffix));
    return found === undefined ? [tensor] : cut(tensor, found[1], [...found[2]]);
  }),
  true,
);

function inPieces(config: StageConfig): StageConfig {
  const partsOf = (name: string) => {
    const found = cuts.find(([suffix]) => name.endsWith(suffix))!;
    return Array.from({ length: found[2].length + 1 }, (_, i) => pieces.get(`${name} ${i}`)!);
  };
  const layers = config.layers.map((layer, index): LayerTensors => {
    const name = (suffix: string) => `transformer.encoder.layers.${index}.${suffix}`;
    return {
      ...layer,
      qkvWeight: partsOf(name("self_attention.query_key_value.weight")),
      attentionOut: partsOf(name("self_attention.dense.weight")),
      ffnUp: partsOf(name("mlp.dense_h_to_4h.weight")),
      ffnDown: partsOf(name("mlp.dense_4h_to_h.weight")),
    };
  });
  return {
    ...config,
    layers,
    embedding: partsOf("transformer.embedding.word_embeddings.weight"),
    head: partsOf("transformer.output_layer.weight"),
  };
}

async function answers(config: StageConfig) {
  const stage = await Stage.create(config);
  // Every id of the embedding, and with all logprobs every row of the head.
  const step = tokenStep(
    [rows(0, 53, [0, 1, 2, 3])],
    Array.from({ length: 53 }, (_, token) => token),
  );
  step.samples = [greedy(10, 11, 20), greedy(52, 53, 20)];
  step.scores = Array.from({ length: 53 }, (_, token) => ({ row: 52, token, topLogprobs: 0 }));
  const { samples, scores } = await stage.step(step);
  const { weightBytes } = stage;
  await stage.close();
  return { samples, scores, weightBytes };
}

const formats: [string, WeightFormat | null][] = [
  ["as stored", null],
  ["int8", INT8],
  ["int8 by rows", { ...INT8, groupSize: 0 }],
  ["int4", INT4],
  ["int4 in groups of 128", { ...INT4, groupSize: 128 }],
  ["int4 by rows", { ...INT4, groupSize: 0, scales: "absmax" }],
];

test.each(formats)("%s", async (_, weights) => {
  const options = weights === null ? {} : { weights, headWeights: INT8 };
  const config = stageConfig(whole, shape, 0, 2, { dtype: "float16", threads: 2, ...options });
  expect(await answers(inPieces(config))).toEqual(await answers(config));
});

test("a piece without rows or columns is refused", async () => {
  const config = inPieces(stageConfig(whole, shape, 0, 2));
  const [layer] = config.layers as [LayerTensors];
  const empty = (size: number[]) => ({ ...layer.ffnDown[0]!, byteLength: 0, shape: size });
  const create = (change: Partial<LayerTensors>) =>
    Stage.create({ ...config, layers: [{ ...layer, ...change }, config.layers[1]!] });
  await expect(create({ ffnUp: [...layer.ffnUp, empty([0, 45])] })).rejects.toThrow("at least 1");
  await expect(
    create({
      ffnDown: [whole.get("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight")!, empty([45, 0])],
    }),
  ).rejects.toThrow("at least 1");
});

test("a prefix with a value that is not finite is refused by its name", async () => {
  const config = stageConfig(whole, shape, 0, 2);
  const values = new Float32Array(3 * 2 * 2 * 13).fill(0.5);
  values[77] = Number.NaN;
  const tensors = writeTensors(join(folder.path, "prefix.bin"), [
    { name: "prefix", dtype: "float32", shape: [3, 52], values },
  ]);
  const prefix = { length: 3, embedding: tensors.get("prefix")!, hidden: null, out: null };
  await expect(Stage.create({ ...config, prefix })).rejects.toThrow(/prefix embedding.*(NaN|finite)/);
});
