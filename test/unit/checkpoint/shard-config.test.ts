/** The config.json that shards come without. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { mergeShards, readParallelShards } from "../../../checkpoint/parallel-shards.js";
import { shardConfig, shardWarnings } from "../../../checkpoint/shard-config.js";
import type { MergedTensor } from "../../../checkpoint/tensors.js";
import { glm130bShards } from "../../../models/shards.js";
import { tinyConfig } from "./model-fixture.js";
import { writeShards } from "./shards-fixture.js";

async function configOf(directory: string) {
  const shards = (await readParallelShards(directory))!;
  return shardConfig(shards, (await mergeShards(shards)).merged);
}

describe("the config of shards", () => {
  it("of GLM-130B", async () => {
    const sizes = { hidden: 256, inner: 64, vocab: 12, layers: 3 };
    expect(await configOf(writeShards("glm-130b", 2, { sizes, latest: "1" }))).toEqual({
      model_type: "glm-130b",
      num_layers: 3,
      hidden_size: 256,
      num_attention_heads: 2,
      inner_hidden_size: 64,
      vocab_size: 12,
      max_sequence_length: 2048,
      layernorm_epsilon: 1e-5,
      torch_dtype: "float16",
    });
  });

  it("of GLM-10B, whose table of positions tells their number", async () => {
    const sizes = { hidden: 128, inner: 32, vocab: 12, layers: 1 };
    expect(await configOf(writeShards("glm-10b", 2, { sizes }))).toEqual({
      model_type: "glm-10b",
      num_layers: 1,
      hidden_size: 128,
      num_attention_heads: 2,
      inner_hidden_size: 32,
      vocab_size: 12,
      max_sequence_length: 32,
      layernorm_epsilon: 1e-5,
      torch_dtype: "float16",
    });
  });

  it("has the end tokens of the published vocabulary", () => {
    const matrix = (name: string, shape: number[]): [string, MergedTensor] => [
      name,
      { name, dtype: "F16", shape, axis: 0, parts: [] },
    ];
    const merged = new Map([
      matrix("transformer.word_embeddings.weight", [150_528, 12_288]),
      matrix("transformer.layers.0.mlp.dense_4h_to_h.weight", [12_288, 32_768]),
      matrix("transformer.layers.69.mlp.dense_4h_to_h.weight", [12_288, 32_768]),
    ]);
    const config = shardConfig({ directory: "/model", layout: glm130bShards, ranks: [] }, merged);
    expect(config).toMatchObject({
      num_layers: 70,
      num_attention_heads: 96,
      inner_hidden_size: 32_768,
      eos_token_id: [20_002, 150_005],
    });
    expect(() => shardConfig({ directory: "/model", layout: glm130bShards, ranks: [] }, new Map())).toThrow(
      "tensor transformer.word_embeddings.weight is missing, expected a matrix",
    );
  });

  it("leaves the heads open where their size does not fit", async () => {
    expect(await configOf(writeShards("glm-130b", 1))).not.toHaveProperty("num_attention_heads");
  });

  it("is told, with the tensors that have no place", async () => {
    const directory = writeShards("glm-130b", 1);
    const shards = (await readParallelShards(directory))!;
    expect(shardWarnings(shards, { num_layers: 2, hidden_size: 16, vocab_size: 12 }, [])).toEqual([
      `${directory}: no config.json; by its 1 shards it is GLM-130B with 2 layers, hidden size 16 and 12 rows of vocabulary`,
    ]);
    const [line] = shardWarnings(shards, null, ["a", "b", "c", "d", "e", "f", "g"]);
    expect(line).toContain("no such tensors: a, b, c, d, e, and 2 more");
  });

  it("gives way to a config.json, and both to ordinary weights", async () => {
    const directory = writeShards("glm-130b", 1);
    writeFileSync(join(directory, "config.json"), JSON.stringify(tinyConfig));
    // The shards are read, but are not those of the model that the file describes.
    await expect(openModel(directory)).rejects.toThrow("missing tensor transformer.encoder.");
    writeFileSync(join(directory, "model.safetensors"), "");
    await expect(openModel(directory)).rejects.toThrow("model.safetensors is truncated");
  });
});
