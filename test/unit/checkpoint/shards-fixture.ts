/** Tiny GLM-130B and GLM-10B checkpoints, whole and cut for tensor parallelism as their trainers cut them. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TensorData } from "../../../checkpoint/safetensors-writer.js";
import { temporaryDirectory, tensor } from "./model-fixture.js";
import { trainingBytes } from "./torch-fixture.js";

export interface ShardSizes {
  hidden: number;
  inner: number;
  vocab: number;
  layers: number;
}

/** Divisible by 1, 2 and 4 ranks; heads of four for GLM-130B, whose head size does not matter for merging. */
export const smallSizes: ShardSizes = { hidden: 16, inner: 8, vocab: 12, layers: 2 };

type Cut = (whole: TensorData, rank: number, ranks: number) => TensorData;

const elementBytes = (dtype: string) => (dtype === "F32" ? 4 : 2);

/** Rows [begin, end) of every one of `pieces` equal parts. */
const cutRows =
  (pieces: number): Cut =>
  (whole, rank, ranks) => {
    const [rows, ...rest] = whole.shape as [number, ...number[]];
    const rowBytes = rest.reduce((product, size) => product * size, elementBytes(whole.dtype));
    const own = rows / pieces / ranks;
    const data = Array.from({ length: pieces }, (_, piece) => {
      const begin = (piece * (rows / pieces) + rank * own) * rowBytes;
      return whole.data.subarray(begin, begin + own * rowBytes);
    });
    return { ...whole, shape: [rows / ranks, ...rest], data: Buffer.concat(data) };
  };

const cutColumns: Cut = (whole, rank, ranks) => {
  const [rows, columns] = whole.shape as [number, number];
  const own = columns / ranks;
  const size = elementBytes(whole.dtype);
  const data = Array.from({ length: rows }, (_, row) => {
    const begin = (row * columns + rank * own) * size;
    return whole.data.subarray(begin, begin + own * size);
  });
  return { ...whole, shape: [rows, own], data: Buffer.concat(data) };
};

const same: Cut = (whole) => whole;

/** The tensors of the whole model and how each is cut. */
function model(family: "glm-130b" | "glm-10b", sizes: ShardSizes): [TensorData, Cut][] {
  const { hidden, inner, vocab, layers } = sizes;
  const large = family === "glm-130b";
  const embedding = large ? "transformer.word_embeddings.weight" : "word_embeddings.weight";
  const list: [TensorData, Cut][] = [[tensor(embedding, [vocab, hidden]), cutRows(1)]];
  if (!large) {
    list.push([tensor("transformer.position_embeddings.weight", [33, hidden]), same]);
    list.push([tensor("transformer.block_position_embeddings.weight", [33, hidden]), same]);
  }
  const up = large ? 2 * inner : inner;
  for (let i = 0; i < layers; i++) {
    const name = (part: string) => `transformer.layers.${i}.${part}`;
    const add = (part: string, shape: number[], cut: Cut) =>
      list.push([tensor(name(part), shape, "F16", 7 * i), cut]);
    add("input_layernorm.weight", [hidden], same);
    add("input_layernorm.bias", [hidden], same);
    add("attention.query_key_value.weight", [3 * hidden, hidden], cutRows(large ? 1 : 3));
    add("attention.query_key_value.bias", [3 * hidden], cutRows(large ? 1 : 3));
    add("attention.dense.weight", [hidden, hidden], cutColumns);
    add("attention.dense.bias", [hidden], same);
    if (large) add("attention.rotary_emb.inv_freq", [2], same);
    add("post_attention_layernorm.weight", [hidden], same);
    add("post_attention_layernorm.bias", [hidden], same);
    add("mlp.dense_h_to_4h.weight", [up, hidden], cutRows(large ? 2 : 1));
    add("mlp.dense_h_to_4h.bias", [up], cutRows(large ? 2 : 1));
    add("mlp.dense_4h_to_h.weight", [hidden, inner], cutColumns);
    add("mlp.dense_4h_to_h.bias", [hidden], same);
  }
  list.push([tensor("transformer.final_layernorm.weight", [hidden]), same]);
  list.push([tensor("transformer.final_layernorm.bias", [hidden]), same]);
  return list;
}

export function wholeModel(family: "glm-130b" | "glm-10b", sizes = smallSizes): TensorData[] {
  return model(family, sizes).map(([whole]) => whole);
}

/** The tensors of one rank. */
export function shardOf(
  family: "glm-130b" | "glm-10b",
  rank: number,
  ranks: number,
  sizes = smallSizes,
): TensorData[] {
  return model(family, sizes).map(([whole, cut]) => cut(whole, rank, ranks));
}

export const rankName = (rank: number) => `mp_rank_${String(rank).padStart(2, "0")}_model_states.pt`;

export interface ShardsOptions {
  sizes?: ShardSizes;
  /** Entries of the pickled dict beside "module". */
  others?: Buffer[];
  /** Changes a rank's tensors. */
  edit?: (tensors: TensorData[], rank: number) => TensorData[];
  /** The folder with the shards and the file `latest` beside it; absent: the shards lie in the directory. */
  latest?: string;
}

export function writeShards(
  family: "glm-130b" | "glm-10b",
  ranks: number,
  { sizes = smallSizes, others = [], edit = (tensors) => tensors, latest }: ShardsOptions = {},
): string {
  const directory = temporaryDirectory();
  const folder = latest === undefined ? directory : join(directory, latest);
  if (latest !== undefined) {
    mkdirSync(folder);
    writeFileSync(join(directory, "latest"), `${latest}\n`);
  }
  for (let rank = 0; rank < ranks; rank++) {
    const tensors = edit(shardOf(family, rank, ranks, sizes), rank);
    writeFileSync(join(folder, rankName(rank)), trainingBytes(tensors, others));
  }
  return directory;
}
