/** Tiny ChatGLM3 checkpoints for tests. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";
import { type TensorData, writeSafetensors } from "../../../checkpoint/safetensors-writer.js";
import { writeTorchFile } from "./torch-fixture.js";

/** A new directory that ends with the test file. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-test-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export const tinyConfig: Record<string, unknown> = {
  // Of ChatGLM2 all other fields would be the same. No published name: the directory's is the id.
  _name_or_path: "./chatglm3-tiny",
  architectures: ["ChatGLMModel"],
  model_type: "chatglm",
  add_bias_linear: false,
  add_qkv_bias: true,
  apply_residual_connection_post_layernorm: false,
  eos_token_id: 2,
  ffn_hidden_size: 24,
  hidden_size: 16,
  kv_channels: 8,
  layernorm_epsilon: 1e-5,
  multi_query_attention: true,
  multi_query_group_num: 1,
  num_attention_heads: 2,
  num_layers: 3,
  original_rope: true,
  padded_vocab_size: 40,
  post_layer_norm: true,
  rmsnorm: true,
  seq_length: 128,
  torch_dtype: "float16",
};

/** Bytes follow from the index, so that different tensors and models differ. */
export function tensor(name: string, shape: number[], dtype = "F16", salt = 0): TensorData {
  const bytes = shape.reduce((product, size) => product * size, dtype === "F32" ? 4 : 2);
  const data = Uint8Array.from({ length: bytes }, (_, index) => (index * 31 + name.length + salt) & 0xff);
  return { name, dtype, shape, data };
}

export function tinyTensors(salt = 0): TensorData[] {
  const tensors = [tensor("transformer.embedding.word_embeddings.weight", [40, 16], "F16", salt)];
  for (let i = 0; i < 3; i++) {
    const layer = `transformer.encoder.layers.${i}`;
    tensors.push(
      tensor(`${layer}.input_layernorm.weight`, [16]),
      tensor(`${layer}.self_attention.query_key_value.weight`, [32, 16]),
      tensor(`${layer}.self_attention.query_key_value.bias`, [32]),
      tensor(`${layer}.self_attention.dense.weight`, [16, 16]),
      tensor(`${layer}.post_attention_layernorm.weight`, [16]),
      tensor(`${layer}.mlp.dense_h_to_4h.weight`, [48, 16]),
      tensor(`${layer}.mlp.dense_4h_to_h.weight`, [16, 24]),
    );
  }
  tensors.push(
    tensor("transformer.encoder.final_layernorm.weight", [16]),
    tensor("transformer.output_layer.weight", [40, 16]),
  );
  return tensors;
}

export interface TinyModelOptions {
  config?: Record<string, unknown>;
  tensors?: TensorData[];
  /** Cut into this many files with an index. */
  shards?: number;
  format?: "safetensors" | "torch";
}

const formats = {
  safetensors: { single: "model", extension: "safetensors", write: writeSafetensors },
  torch: { single: "pytorch_model", extension: "bin", write: writeTorchFile },
};

export async function writeTinyModel(options: TinyModelOptions = {}): Promise<string> {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...tinyConfig, ...options.config }));
  const tensors = options.tensors ?? tinyTensors();
  const { single, extension, write } = formats[options.format ?? "safetensors"];
  if (options.shards === undefined) {
    await write(join(directory, `${single}.${extension}`), tensors);
    return directory;
  }
  const weightMap: Record<string, string> = {};
  for (let shard = 0; shard < options.shards; shard++) {
    const name = `${single}-${shard + 1}-of-${options.shards}.${extension}`;
    const part = tensors.filter((_, index) => index % options.shards! === shard);
    for (const tensor of part) weightMap[tensor.name] = name;
    await write(join(directory, name), part);
  }
  writeIndex(directory, weightMap, `${single}.${extension}`);
  return directory;
}

export function writeIndex(directory: string, weightMap: unknown, of = "model.safetensors"): void {
  const index = JSON.stringify({ metadata: {}, weight_map: weightMap });
  writeFileSync(join(directory, `${of}.index.json`), index);
}
