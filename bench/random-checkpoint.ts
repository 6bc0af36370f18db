/**
 * Checkpoints of random float16 weights for ChatGLM2, ChatGLM3 and GLM-4-9B, which are one network: the
 * size and shape of a real model without a download. No tokenizer: prompts are token ids.
 *
 * The weights are views of a pool of normal values, each tensor beginning at an offset of its own, so
 * that writing 12 GB costs 12 GB of disk and hardly any computing or memory. The pool's length is a
 * prime, so no two rows of a matrix are alike. What is measured with such a model is bytes and speed;
 * its answers mean nothing.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TensorPieces, writeSafetensors } from "../checkpoint/safetensors-writer.js";
import { chatglm3 } from "../models/chatglm3.js";

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

/** The largest prime below 2^23: 16 MiB of float16 values. */
const poolValues = 8_388_593;
const valueBytes = 2;

/**
 * Standard deviation of a weight times the square root of the hidden size, as in trained models: 0.02
 * at 4096. The two matrices of each layer that write to the residual stream are smaller by the square
 * root of the number of their additions, so that it stays of one size through any number of layers.
 */
export const gain = 1.28;

export interface RandomCheckpointOptions {
  /** An existing directory; files of the same names are overwritten. */
  directory: string;
  shape: CheckpointShape;
  /** Equal seeds and shapes give equal files. */
  seed?: number;
  /** Told after every piece how many bytes of how many are written. */
  progress?: (writtenBytes: number, totalBytes: number) => void;
}

/** Writes config.json and model.safetensors. @returns Bytes of the weights. */
export async function writeRandomCheckpoint(options: RandomCheckpointOptions): Promise<number> {
  const { directory, shape, progress } = options;
  const random = uniform(options.seed ?? 1);
  const pool = normalValues(Math.min(poolValues, largestMatrix(shape)), random);
  const std = gain / Math.sqrt(shape.hiddenSize);
  const pools = {
    weight: toFloat16(pool, std),
    residual: toFloat16(pool, std / Math.sqrt(2 * shape.layerCount)),
    ones: toFloat16(new Float32Array(shape.hiddenSize).fill(1), 1),
  };
  const tensors = tensorShapes(shape);
  const total = parameterCount(shape) * valueBytes;
  let written = 0;
  const data = tensors.map(({ name, sizes, kind }): TensorPieces => {
    const source = pools[kind];
    const offset = kind === "ones" ? 0 : Math.floor(random() * (source.length / valueBytes)) * valueBytes;
    function* pieces(): Generator<Uint8Array> {
      for (const piece of cycle(source, offset, product(sizes) * valueBytes)) {
        yield piece;
        written += piece.length;
        progress?.(written, total);
      }
    }
    return { name, dtype: "F16", shape: sizes, data: pieces() };
  });
  await writeFile(join(directory, "config.json"), `${JSON.stringify(config(shape), null, 2)}\n`);
  await writeSafetensors(join(directory, "model.safetensors"), data);
  return total;
}

export function parameterCount(shape: CheckpointShape): number {
  return tensorShapes(shape).reduce((sum, { sizes }) => sum + product(sizes), 0);
}

/** What transformers writes for this architecture, as far as a reader looks. */
function config(shape: CheckpointShape): Record<string, unknown> {
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

interface TensorShape {
  name: string;
  sizes: number[];
  kind: "weight" | "residual" | "ones";
}

const named = (pattern: string, layer: number): string => pattern.replace("{i}", String(layer));

function tensorShapes(shape: CheckpointShape): TensorShape[] {
  const { layerCount, hiddenSize, headCount, kvHeadCount, headDim, ffnSize, vocabSize } = shape;
  const { embedding, finalNorm, head, layer: names } = chatglm3.tensors;
  const qkv = (headCount + 2 * kvHeadCount) * headDim;
  const layers = Array.from({ length: layerCount }, (_, layer): TensorShape[] => {
    const at = (name: "attentionNorm" | "attentionOut" | "ffnNorm" | "ffnDown") => named(names[name], layer);
    return [
      { name: at("attentionNorm"), sizes: [hiddenSize], kind: "ones" },
      { name: named(names.qkvWeight[0], layer), sizes: [qkv, hiddenSize], kind: "weight" },
      { name: named(names.qkvBias![0], layer), sizes: [qkv], kind: "weight" },
      { name: at("attentionOut"), sizes: [hiddenSize, headCount * headDim], kind: "residual" },
      { name: at("ffnNorm"), sizes: [hiddenSize], kind: "ones" },
      { name: named(names.ffnUp[0], layer), sizes: [2 * ffnSize, hiddenSize], kind: "weight" },
      { name: at("ffnDown"), sizes: [hiddenSize, ffnSize], kind: "residual" },
    ];
  });
  return [
    { name: embedding, sizes: [vocabSize, hiddenSize], kind: "weight" },
    ...layers.flat(),
    { name: finalNorm, sizes: [hiddenSize], kind: "ones" },
    { name: head, sizes: [vocabSize, hiddenSize], kind: "weight" },
  ];
}

/** A small model needs no more values than its largest matrix has; its pool need not be a prime. */
function largestMatrix({ hiddenSize, ffnSize, vocabSize }: CheckpointShape): number {
  return hiddenSize * Math.max(2 * ffnSize, vocabSize);
}

/** `count` bytes of `source` from `offset` on, beginning again at its end. */
export function* cycle(source: Uint8Array, offset: number, count: number): Generator<Uint8Array> {
  let begin = offset;
  let left = count;
  while (left > 0) {
    const piece = source.subarray(begin, begin + left);
    yield piece;
    left -= piece.length;
    begin = 0;
  }
}

/** Standard normal values, by Box and Muller's method. */
function normalValues(count: number, random: () => number): Float32Array {
  const values = new Float32Array(count);
  for (let index = 0; index < count; index += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[index] = radius * Math.cos(angle);
    if (index + 1 < count) values[index + 1] = radius * Math.sin(angle);
  }
  return values;
}

/** Uniform in [0, 1). Mulberry32. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Values times `scale` as little-endian float16, rounded to nearest. Finite values below 65504 only.
 * Scaling by 2^-112 gives a float32 the exponent field of the float16, subnormal numbers included.
 */
function toFloat16(values: Float32Array, scale: number): Uint8Array {
  const shifted = values.map((value) => value * scale * 2 ** -112);
  const bits = new Uint32Array(shifted.buffer);
  const halves = new Uint8Array(values.length * valueBytes);
  const view = new DataView(halves.buffer);
  for (let index = 0; index < bits.length; index++) {
    const word = bits[index]!;
    const magnitude = ((word & 0x7fffffff) + 0xfff + ((word >>> 13) & 1)) >>> 13;
    view.setUint16(index * valueBytes, ((word >>> 16) & 0x8000) | magnitude, true);
  }
  return halves;
}

const product = (sizes: readonly number[]): number => sizes.reduce((result, size) => result * size, 1);
