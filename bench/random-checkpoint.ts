/**
 * Checkpoints of random weights: the size and shape of a real model without a download, for any family that
 * has a card. No tokenizer: prompts are token ids.
 *
 * The weights are views of a pool of normal values, each tensor beginning at an offset of its own, so
 * that writing 12 GB costs 12 GB of disk and hardly any computing or memory. The pool's length is a
 * prime, so no two rows of a matrix are alike. What is measured with such a model is bytes and speed;
 * its answers mean nothing.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type CardTensor,
  cardTensors,
  parametersOf,
  product,
  type TensorRole,
} from "../checkpoint/card-tensors.js";
import { type Config, shapeFrom } from "../checkpoint/config.js";
import { type TensorPieces, writeSafetensors } from "../checkpoint/safetensors-writer.js";
import type { ModelCard } from "../models/card.js";
import { chatglm3 } from "../models/chatglm3.js";
import { type DType, dtypeBytes } from "../models/shape.js";
import { cycle, encode, normalValues, uniform } from "./random-values.js";

/** Of ChatGLM2, ChatGLM3 and GLM-4-9B, which are one network; `config` decides which of them it is. */
export interface CheckpointShape {
  layerCount: number;
  hiddenSize: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  ffnSize: number;
  vocabSize: number;
  contextLength: number;
  /** Fields of config.json that are not as ChatGLM3's. */
  config?: Record<string, unknown>;
}

const sixB: CheckpointShape = {
  layerCount: 28,
  hiddenSize: 4096,
  headCount: 32,
  kvHeadCount: 2,
  headDim: 128,
  ffnSize: 13_696,
  vocabSize: 65_024,
  contextLength: 8_192,
};

/** Shapes by name. The two 6B models differ in nothing but the context they were made for. */
export const shapes = {
  "chatglm2-6b": { ...sixB, contextLength: 32_768 },
  "chatglm3-6b": sixB,
  "glm-4-9b": {
    ...sixB,
    layerCount: 40,
    vocabSize: 151_552,
    contextLength: 131_072,
    config: { eos_token_id: [151_329, 151_336, 151_338], layernorm_epsilon: 1.5625e-7, rope_ratio: 500 },
  },
  /** For tests: 1.4 MiB, every width a multiple of the largest quantization group. */
  tiny: {
    layerCount: 4,
    hiddenSize: 128,
    headCount: 4,
    kvHeadCount: 2,
    headDim: 32,
    ffnSize: 256,
    vocabSize: 512,
    contextLength: 128,
  },
} as const satisfies Record<string, CheckpointShape>;

export type ShapeName = keyof typeof shapes;

/** The largest prime below 2^23. */
const poolValues = 8_388_593;

/** As safetensors names them. */
const typeNames: Record<DType, string> = { float32: "F32", float16: "F16", bfloat16: "BF16" };

/**
 * Standard deviation of a weight times the square root of the hidden size, as in trained models: 0.02
 * at 4096. What writes to the residual stream is smaller by the square root of the number of its
 * additions, so that it stays of one size through any number of layers.
 */
export const gain = 1.28;

/** A card and what its config.json says, or a shape of the chatglm layout in float16. */
export type RandomModel = { card: ModelCard; config: Config } | { shape: CheckpointShape };

export type RandomCheckpointOptions = RandomModel & {
  /** An existing directory; files of the same names are overwritten. */
  directory: string;
  /** Equal seeds and models give equal files. */
  seed?: number;
  /** Told after every piece how many bytes of how many are written. */
  progress?: (writtenBytes: number, totalBytes: number) => void;
};

/** Writes config.json and model.safetensors. @returns Bytes of the weights. */
export async function writeRandomCheckpoint(options: RandomCheckpointOptions): Promise<number> {
  const { directory, progress } = options;
  const { card, config } = describe(options);
  const random = uniform(options.seed ?? 1);
  const tensors = cardTensors(card, config);
  const pools = new Pools(card, config, tensors, random);
  const total = checkpointBytes(tensors);
  let written = 0;
  const data = tensors.map((tensor): TensorPieces => {
    const { name, sizes, dtype, role } = tensor;
    const source = pools.of(role, dtype);
    const valueBytes = dtypeBytes(dtype);
    const offset = role === "ones" ? 0 : Math.floor(random() * (source.length / valueBytes)) * valueBytes;
    function* pieces(): Generator<Uint8Array> {
      for (const piece of cycle(source, offset, product(sizes) * valueBytes)) {
        yield piece;
        written += piece.length;
        progress?.(written, total);
      }
    }
    return { name, dtype: typeNames[dtype], shape: sizes, data: pieces() };
  });
  await writeFile(join(directory, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  await writeSafetensors(join(directory, "model.safetensors"), data);
  return total;
}

export function checkpointBytes(tensors: readonly CardTensor[]): number {
  return tensors.reduce((sum, { sizes, dtype }) => sum + product(sizes) * dtypeBytes(dtype), 0);
}

export function parameterCount(shape: CheckpointShape): number {
  return parametersOf(cardTensors(chatglm3, chatglmConfig(shape)));
}

function describe(model: RandomModel): { card: ModelCard; config: Config } {
  return "shape" in model ? { card: chatglm3, config: chatglmConfig(model.shape) } : model;
}

/** What transformers writes for this architecture, as far as a reader looks. */
function chatglmConfig(shape: CheckpointShape): Config {
  return {
    architectures: ["ChatGLMModel"],
    model_type: "chatglm",
    add_bias_linear: false,
    add_qkv_bias: true,
    apply_residual_connection_post_layernorm: false,
    eos_token_id: 2,
    ffn_hidden_size: shape.ffnSize,
    hidden_size: shape.hiddenSize,
    kv_channels: shape.headDim,
    layernorm_epsilon: 1e-5,
    multi_query_attention: true,
    multi_query_group_num: shape.kvHeadCount,
    num_attention_heads: shape.headCount,
    num_layers: shape.layerCount,
    original_rope: true,
    padded_vocab_size: shape.vocabSize,
    post_layer_norm: true,
    rmsnorm: true,
    seq_length: shape.contextLength,
    tie_word_embeddings: false,
    torch_dtype: "float16",
    ...shape.config,
  };
}

/** Values of every role and type, made when they are asked for. */
class Pools {
  readonly #values: Float32Array;
  readonly #ones: Float32Array;
  readonly #scales: Record<TensorRole, number>;
  readonly #made = new Map<string, Uint8Array>();

  constructor(card: ModelCard, config: Config, tensors: readonly CardTensor[], random: () => number) {
    const { hiddenSize, layerCount } = shapeFrom(config, card, null, "");
    // A small model needs no more values than its largest matrix has; its pool need not be a prime.
    const largest = tensors.reduce((most, { sizes }) => Math.max(most, product(sizes)), 0);
    this.#values = normalValues(Math.min(poolValues, largest), random);
    this.#ones = new Float32Array(hiddenSize).fill(1);
    const std = gain / Math.sqrt(hiddenSize);
    this.#scales = { weight: std, residual: std / Math.sqrt(2 * layerCount), ones: 1 };
  }

  of(role: TensorRole, dtype: DType): Uint8Array {
    const key = `${role} ${dtype}`;
    let pool = this.#made.get(key);
    if (pool === undefined) {
      pool = encode(role === "ones" ? this.#ones : this.#values, this.#scales[role], dtype);
      this.#made.set(key, pool);
    }
    return pool;
  }
}
