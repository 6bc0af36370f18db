/**
 * A GGUF file of architecture `chatglm` with random weights, for the peer in peers.ts: the sizes of our
 * random checkpoint's matrices in the types that llama.cpp's own `Q4_0` recipe gives it (linears and embedding
 * Q4_0, head Q6_K, norms and biases F32). Like there, the weights are views of a pool.
 * @see the gguf package's constants for keys and types, ggml-common.h for the blocks.
 */
import { open } from "node:fs/promises";
import { type CheckpointShape, gain } from "./random-checkpoint.js";
import { cycle, uniform } from "./random-values.js";

const magic = Buffer.from("GGUF");
const version = 3;
/** Tensors begin at multiples of this, counted from the first. */
const alignment = 32;

/** ggml's numbers and the sizes of its blocks. */
const types = {
  F32: { id: 0, values: 1, bytes: 4 },
  /** float16 scale d; 32 nibbles n; value (n - 8) d. */
  Q4_0: { id: 2, values: 32, bytes: 18 },
  /** 256 6-bit values in 128 + 64 bytes; 16 int8 scales s; float16 d; value (n - 32) s d. */
  Q6_K: { id: 14, values: 256, bytes: 210 },
} as const;
type TypeName = keyof typeof types;

/** The largest primes below 2^20 and 2^16: pools of 18 and 13 MB in which no two rows are alike. */
const poolBlocks = { Q4_0: 1_048_573, Q6_K: 65_521 };

/** Deviation of a uniform 4-bit and a uniform 6-bit value; of the product with a scale of Q6_K's pool. */
const nibbleDeviation = Math.sqrt((16 ** 2 - 1) / 12);
const sixBitDeviation = Math.sqrt((64 ** 2 - 1) / 12);
const sixBitScale = 32;

interface GgufTensor {
  name: string;
  type: TypeName;
  /** As we count: [out, in]. GGUF writes the innermost first. */
  sizes: number[];
  /** Of all its values; only norms have it. */
  ones: boolean;
}

/** A ModelShape has all of it. Rotated is half of every head unless `ropeDim` says otherwise. */
export type GgufShape = Omit<CheckpointShape, "config"> & { ropeDim?: number };

export async function writeRandomGguf(
  file: string,
  shape: GgufShape,
  progress?: (writtenBytes: number, totalBytes: number) => void,
): Promise<void> {
  const tensors = tensorsOf(shape);
  const total = tensors.reduce((sum, tensor) => sum + padded(byteLength(tensor)), 0);
  const pools = makePools(shape, tensors);
  const random = uniform(2);
  let written = 0;
  const handle = await open(file, "w");
  try {
    await handle.writeFile(header(shape, tensors));
    for (const tensor of tensors) {
      const pool = pools[tensor.ones ? "ones" : tensor.type];
      const block = types[tensor.type].bytes;
      const offset = tensor.ones ? 0 : Math.floor((random() * pool.length) / block) * block;
      const bytes = byteLength(tensor);
      for (const piece of cycle(pool, offset, bytes)) {
        await handle.writeFile(piece);
        written += piece.length;
      }
      await handle.writeFile(Buffer.alloc(padded(bytes) - bytes));
      written += padded(bytes) - bytes;
      progress?.(written, total);
    }
  } finally {
    await handle.close();
  }
}

/** Of a step's weights all but these are read. */
export function ggufEmbeddingBytes(shape: GgufShape): number {
  return byteLength(tensorsOf(shape).find(({ name }) => name === "token_embd.weight")!);
}

function tensorsOf(shape: GgufShape): GgufTensor[] {
  const { layerCount, hiddenSize, headCount, kvHeadCount, headDim, ffnSize, vocabSize } = shape;
  const qkv = (headCount + 2 * kvHeadCount) * headDim;
  const matrix = (name: string, out: number, input: number, type: TypeName = "Q4_0"): GgufTensor => ({
    name,
    type,
    sizes: [out, input],
    ones: false,
  });
  const vector = (name: string, length: number, ones: boolean): GgufTensor => ({
    name,
    type: "F32",
    sizes: [length],
    ones,
  });
  const layers = Array.from({ length: layerCount }, (_, layer) => [
    vector(`blk.${layer}.attn_norm.weight`, hiddenSize, true),
    matrix(`blk.${layer}.attn_qkv.weight`, qkv, hiddenSize),
    vector(`blk.${layer}.attn_qkv.bias`, qkv, false),
    matrix(`blk.${layer}.attn_output.weight`, hiddenSize, headCount * headDim),
    vector(`blk.${layer}.ffn_norm.weight`, hiddenSize, true),
    matrix(`blk.${layer}.ffn_up.weight`, 2 * ffnSize, hiddenSize),
    matrix(`blk.${layer}.ffn_down.weight`, hiddenSize, ffnSize),
  ]);
  return [
    matrix("token_embd.weight", vocabSize, hiddenSize),
    ...layers.flat(),
    vector("output_norm.weight", hiddenSize, true),
    matrix("output.weight", vocabSize, hiddenSize, "Q6_K"),
  ];
}

/** @throws Error when rows are no whole blocks: llama.cpp would refuse the file. */
function byteLength({ name, type, sizes }: GgufTensor): number {
  const { values, bytes } = types[type];
  if (sizes.at(-1)! % values !== 0) {
    throw new Error(`${name} has rows of ${sizes.at(-1)}, expected a multiple of ${values} for ${type}`);
  }
  return (sizes.reduce((product, size) => product * size, 1) / values) * bytes;
}

const padded = (bytes: number): number => Math.ceil(bytes / alignment) * alignment;

/** Everything in front of the tensors' bytes: counts, metadata, tensor infos, padding. */
function header(shape: GgufShape, tensors: readonly GgufTensor[]): Buffer {
  const metadata = metadataOf(shape);
  const parts = [magic, uint32(version), uint64(tensors.length), uint64(metadata.length), ...metadata];
  let offset = 0;
  for (const tensor of tensors) {
    parts.push(string(tensor.name), uint32(tensor.sizes.length), ...tensor.sizes.toReversed().map(uint64));
    parts.push(uint32(types[tensor.type].id), uint64(offset));
    offset += padded(byteLength(tensor));
  }
  const bytes = Buffer.concat(parts);
  return Buffer.concat([bytes, Buffer.alloc(padded(bytes.length) - bytes.length)]);
}

/** GGUF's numbers for the types of metadata values. */
const uint32Type = 4;
const int32Type = 5;
const float32Type = 6;
const stringType = 8;
const arrayType = 9;

/** llama.cpp's numbers for kinds of tokens. */
const normalToken = 1;
const unknownToken = 2;
const controlToken = 3;
const byteToken = 6;

/** One buffer per key with its value. The tokenizer is the least that is accepted: nobody uses it. */
function metadataOf(shape: GgufShape): Buffer[] {
  const of = (key: string, type: number, value: Buffer) => Buffer.concat([string(key), uint32(type), value]);
  const number = (key: string, value: number) => of(`chatglm.${key}`, uint32Type, uint32(value));
  const real = (key: string, value: number) => of(`chatglm.${key}`, float32Type, float32(value));
  const list = (key: string, type: number, items: Buffer[]) =>
    of(key, arrayType, Buffer.concat([uint32(type), uint64(items.length), ...items]));
  const tokens = Array.from({ length: shape.vocabSize }, (_, id) => tokenOf(id));
  return [
    of("general.architecture", stringType, string("chatglm")),
    of("general.name", stringType, string("random")),
    number("context_length", shape.contextLength),
    number("embedding_length", shape.hiddenSize),
    number("feed_forward_length", shape.ffnSize),
    number("block_count", shape.layerCount),
    number("attention.head_count", shape.headCount),
    number("attention.head_count_kv", shape.kvHeadCount),
    real("attention.layer_norm_rms_epsilon", 1e-5),
    number("rope.dimension_count", shape.ropeDim ?? shape.headDim / 2),
    real("rope.freq_base", 10_000),
    of("tokenizer.ggml.model", stringType, string("llama")),
    list(
      "tokenizer.ggml.tokens",
      stringType,
      tokens.map(({ text }) => string(text)),
    ),
    list(
      "tokenizer.ggml.scores",
      float32Type,
      tokens.map((_, id) => float32(-id)),
    ),
    list(
      "tokenizer.ggml.token_type",
      int32Type,
      tokens.map(({ kind }) => uint32(kind)),
    ),
    of("tokenizer.ggml.bos_token_id", uint32Type, uint32(1)),
    of("tokenizer.ggml.eos_token_id", uint32Type, uint32(2)),
  ];
}

function tokenOf(id: number): { text: string; kind: number } {
  if (id === 0) return { text: "<unk>", kind: unknownToken };
  if (id < 3) return { text: id === 1 ? "<s>" : "</s>", kind: controlToken };
  const byte = id - 3;
  if (byte < 256) {
    return { text: `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`, kind: byteToken };
  }
  return { text: `token${id}`, kind: normalToken };
}

/** Scales have either sign, so that the values' mean is zero although 4 and 6 bits reach further down than up. */
function makePools(shape: GgufShape, tensors: readonly GgufTensor[]): Record<TypeName | "ones", Uint8Array> {
  const random = uniform(1);
  const std = gain / Math.sqrt(shape.hiddenSize);
  const negative = () => random() < 0.5;
  /** Blocks of random bytes; a small model needs no more than its largest tensor has. */
  const blocks = (type: "Q4_0" | "Q6_K", finish: (block: Buffer) => void): Buffer => {
    const { bytes } = types[type];
    const largest = Math.max(...tensors.filter((tensor) => tensor.type === type).map(byteLength));
    const pool = randomBytes(Math.min(poolBlocks[type] * bytes, largest), random);
    for (let begin = 0; begin < pool.length; begin += bytes) finish(pool.subarray(begin, begin + bytes));
    return pool;
  };
  const fourBitScale = halfBits(std / nibbleDeviation);
  const sixBitBlockScale = halfBits(std / (sixBitDeviation * sixBitScale));
  const biases = Math.max(...tensors.filter(({ type }) => type === "F32").map(({ sizes }) => sizes[0]!));
  return {
    Q4_0: blocks("Q4_0", (block) => block.writeUInt16LE(fourBitScale | (negative() ? 0x8000 : 0), 0)),
    Q6_K: blocks("Q6_K", (block) => {
      for (let group = 0; group < 16; group++)
        block.writeInt8(negative() ? -sixBitScale : sixBitScale, 192 + group);
      block.writeUInt16LE(sixBitBlockScale, 208);
    }),
    F32: new Uint8Array(Float32Array.from({ length: biases }, () => std * (2 * random() - 1)).buffer),
    ones: new Uint8Array(new Float32Array(shape.hiddenSize).fill(1).buffer),
  };
}

function randomBytes(length: number, random: () => number): Buffer {
  const words = Uint32Array.from({ length: Math.ceil(length / 4) }, () => random() * 2 ** 32);
  return Buffer.from(words.buffer, 0, length);
}

/** The float16 of a positive number, subnormal ones included, cut off towards zero. */
function halfBits(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value * 2 ** -112).buffer);
  return bits[0]! >>> 13;
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([uint64(bytes.length), bytes]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function float32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}
