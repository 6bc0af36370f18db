/** Small models for tests of the engine: writing, reading, cutting into stages, running. */

import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { plainForm } from "../../models/shape.js";
import {
  type DType,
  type KvType,
  type LayerTensors,
  type ModelShape,
  type SampleRequest,
  type SequenceRows,
  Stage,
  type StageConfig,
  type StepInput,
  type StepOutput,
  type TensorSource,
  type WeightFormat,
} from "../../native/index.js";

/** Tensors of a model by their name in ChatGLM3 checkpoints. */
export type Tensors = Map<string, TensorSource>;

const ST_DTYPES: Record<string, DType> = { F32: "float32", F16: "float16", BF16: "bfloat16" };

/** The least of a safetensors reader: enough for our own fixtures. */
export function readSafetensors(file: string): Tensors {
  const handle = openSync(file, "r");
  try {
    const prefix = Buffer.alloc(8);
    readSync(handle, prefix, 0, 8, 0);
    const headerBytes = Number(prefix.readBigUInt64LE());
    const header = Buffer.alloc(headerBytes);
    readSync(handle, header, 0, headerBytes, 8);
    const entries = JSON.parse(header.toString()) as Record<
      string,
      { dtype: string; shape: number[]; data_offsets: [number, number] }
    >;
    const tensors: Tensors = new Map();
    for (const [name, entry] of Object.entries(entries)) {
      if (name === "__metadata__") continue;
      const [begin, end] = entry.data_offsets;
      tensors.set(name, {
        file,
        byteOffset: 8 + headerBytes + begin,
        byteLength: end - begin,
        dtype: ST_DTYPES[entry.dtype]!,
        shape: entry.shape,
      });
    }
    return tensors;
  } finally {
    closeSync(handle);
  }
}

function tensor(tensors: Tensors, name: string): TensorSource {
  const source = tensors.get(name);
  if (source === undefined) throw new Error(`no tensor ${name}`);
  return source;
}

function layerTensors(tensors: Tensors, layer: number): LayerTensors {
  const name = (suffix: string) => `transformer.encoder.layers.${layer}.${suffix}`;
  const qkvBias = tensors.get(name("self_attention.query_key_value.bias")) ?? null;
  return {
    attentionNorm: tensor(tensors, name("input_layernorm.weight")),
    attentionNormBias: null,
    qkvWeight: [tensor(tensors, name("self_attention.query_key_value.weight"))],
    qkvBias: qkvBias && [qkvBias],
    queryNorm: null,
    keyNorm: null,
    attentionOut: [tensor(tensors, name("self_attention.dense.weight"))],
    attentionOutBias: null,
    attentionOutNorm: null,
    ffnNorm: tensor(tensors, name("post_attention_layernorm.weight")),
    ffnNormBias: null,
    ffnUp: [tensor(tensors, name("mlp.dense_h_to_4h.weight"))],
    ffnUpBias: null,
    ffnDown: [tensor(tensors, name("mlp.dense_4h_to_h.weight"))],
    ffnDownBias: null,
    ffnOutNorm: null,
    router: null,
    experts: [],
  };
}

export interface StageOptions {
  dtype?: DType;
  kvType?: KvType;
  weights?: WeightFormat;
  headWeights?: WeightFormat;
  threads?: number;
  blockCount?: number;
  blockSize?: number;
  maxRows?: number;
  contextRows?: number;
}

export const INT4: WeightFormat = { type: "int4", groupSize: 32, scales: "search" };
export const INT8: WeightFormat = { type: "int8", groupSize: 32, scales: "search" };

/** The configuration of the stage with layers [layerBegin, layerEnd). */
export function stageConfig(
  tensors: Tensors,
  shape: ModelShape,
  layerBegin: number,
  layerEnd: number,
  options: StageOptions = {},
): StageConfig {
  const layers: LayerTensors[] = [];
  for (let layer = layerBegin; layer < layerEnd; layer++) layers.push(layerTensors(tensors, layer));
  const isLast = layerEnd === shape.layerCount;
  return {
    shape,
    layerBegin,
    layerEnd,
    layers,
    embedding: layerBegin === 0 ? [tensor(tensors, "transformer.embedding.word_embeddings.weight")] : null,
    finalNorm: isLast ? tensor(tensors, "transformer.encoder.final_layernorm.weight") : null,
    positionEmbedding: null,
    blockPositionEmbedding: null,
    finalNormBias: null,
    prefix: null,
    head: isLast ? [tensor(tensors, "transformer.output_layer.weight")] : null,
    weights: options.weights ?? null,
    headWeights: options.headWeights ?? null,
    dtype: options.dtype ?? "float32",
    kvType: options.kvType ?? options.dtype ?? "float32",
    blockCount: options.blockCount ?? 16,
    blockSize: options.blockSize ?? 16,
    maxRows: options.maxRows ?? 64,
    contextRows: options.contextRows ?? 0,
    threads: options.threads ?? 1,
  };
}

/** All stages of a model, used like one. */
export class TestPipeline {
  constructor(readonly stages: Stage[]) {}

  /** @param cuts First layer of every stage but the first. */
  static async create(
    tensors: Tensors,
    shape: ModelShape,
    cuts: number[],
    options: StageOptions = {},
  ): Promise<TestPipeline> {
    const stages: Stage[] = [];
    const borders = [0, ...cuts, shape.layerCount];
    for (let i = 0; i + 1 < borders.length; i++) {
      stages.push(await Stage.create(stageConfig(tensors, shape, borders[i]!, borders[i + 1]!, options)));
    }
    return new TestPipeline(stages);
  }

  /** Sends a step through all stages; samples and scores reach the last one. */
  async step(input: StepInput): Promise<StepOutput> {
    let current: StepInput = { ...input, samples: [], scores: [] };
    for (const [i, stage] of this.stages.entries()) {
      const isLast = i === this.stages.length - 1;
      const output = await stage.step(
        isLast ? { ...current, samples: input.samples, scores: input.scores } : current,
      );
      if (isLast) return output;
      current = { ...current, tokenIds: null, activations: output.activations };
    }
    throw new Error("a pipeline without stages");
  }

  async close(): Promise<void> {
    await Promise.all(this.stages.map((stage) => stage.close()));
  }
}

/** Numbers of mulberry32: the same on every machine. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Rounds float32 values to a storage type by hand-written rules, to nearest even. */
export function encode(values: Float32Array, dtype: DType): Buffer {
  if (dtype === "float32") return Buffer.from(values.buffer.slice(0), 0, values.byteLength);
  const out = Buffer.alloc(values.length * 2);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < values.length; i++) {
    const bit = bits[i]!;
    if (dtype === "bfloat16") {
      out.writeUInt16LE(((bit + 0x7fff + ((bit >>> 16) & 1)) >>> 16) & 0xffff, i * 2);
    } else {
      out.writeUInt16LE(halfBits(values[i]!), i * 2);
    }
  }
  return out;
}

/** The nearest half-precision number of a finite value below 65504. */
function halfBits(x: number): number {
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(x);
  if (magnitude < 2 ** -14) return sign | roundEven(magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  return sign | (roundEven((magnitude / 2 ** exponent - 1) * 1024) + ((exponent + 15) << 10));
}

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

export interface TestTensor {
  name: string;
  dtype: DType;
  shape: number[];
  values: Float32Array;
}

/** One file with the tensors one after the other, each at an odd offset when `unaligned`. */
export function writeTensors(file: string, list: TestTensor[], unaligned = false): Tensors {
  const tensors: Tensors = new Map();
  const parts: Buffer[] = [];
  let offset = 0;
  for (const { name, dtype, shape, values } of list) {
    const padding = Buffer.alloc(unaligned ? (offset % 2 === 0 ? 1 : 2) : 0, 0xff);
    const data = encode(values, dtype);
    parts.push(padding, data);
    offset += padding.length;
    tensors.set(name, { file, byteOffset: offset, byteLength: data.length, dtype, shape });
    offset += data.length;
  }
  writeFileSync(file, Buffer.concat(parts));
  return tensors;
}

/** Random weights for any shape, under the names of ChatGLM3. */
export function randomModel(shape: ModelShape, dtype: DType, seed: number): TestTensor[] {
  const random = seededRandom(seed);
  const make = (name: string, rows: number, columns: number, scale: number, offset = 0): TestTensor => {
    const values = new Float32Array(rows * columns);
    for (let i = 0; i < values.length; i++) values[i] = offset + scale * (2 * random() - 1);
    return { name, dtype, shape: columns === 1 ? [rows] : [rows, columns], values };
  };
  const { hiddenSize, ffnSize } = shape;
  const queries = shape.headCount * shape.headDim;
  const qkv = queries + 2 * shape.kvHeadCount * shape.headDim;
  const spread = (columns: number) => Math.sqrt(3 / columns);
  const list = [make("transformer.embedding.word_embeddings.weight", shape.vocabSize, hiddenSize, 1)];
  for (let layer = 0; layer < shape.layerCount; layer++) {
    const name = (suffix: string) => `transformer.encoder.layers.${layer}.${suffix}`;
    list.push(
      make(name("input_layernorm.weight"), hiddenSize, 1, 0.2, 1),
      make(name("self_attention.query_key_value.weight"), qkv, hiddenSize, 2 * spread(hiddenSize)),
      make(name("self_attention.query_key_value.bias"), qkv, 1, 0.3),
      make(name("self_attention.dense.weight"), hiddenSize, queries, spread(queries)),
      make(name("post_attention_layernorm.weight"), hiddenSize, 1, 0.2, 1),
      make(name("mlp.dense_h_to_4h.weight"), 2 * ffnSize, hiddenSize, spread(hiddenSize)),
      make(name("mlp.dense_4h_to_h.weight"), hiddenSize, ffnSize, spread(ffnSize)),
    );
  }
  list.push(
    make("transformer.encoder.final_layernorm.weight", hiddenSize, 1, 0.2, 1),
    make("transformer.output_layer.weight", shape.vocabSize, hiddenSize, 3 * spread(hiddenSize)),
  );
  return list;
}

/** A folder that goes when the tests of a file are over. */
export function temporaryFolder(): { path: string; remove: () => void } {
  const path = mkdtempSync(join(tmpdir(), "glm-relay-native-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** Odd sizes everywhere: no dimension is a multiple of a strip, a vector or a tile. */
export const ODD: ModelShape = {
  hiddenSize: 52,
  layerCount: 4,
  headCount: 6,
  kvHeadCount: 2,
  headDim: 12,
  ffnSize: 70,
  vocabSize: 101,
  tokenCount: 97,
  ropeDim: 6,
  ropeBase: 500,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 128,
  form: plainForm,
  experts: null,
};

/** The smallest shape that the engine must take: a vocabulary of 5, heads of 4. */
export const TINY: ModelShape = {
  hiddenSize: 32,
  layerCount: 4,
  headCount: 4,
  kvHeadCount: 2,
  headDim: 4,
  ffnSize: 24,
  vocabSize: 5,
  tokenCount: 5,
  ropeDim: 2,
  ropeBase: 10000,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 256,
  form: plainForm,
  experts: null,
};

export function rows(startPosition: number, rowCount: number, blockTable: number[]): SequenceRows {
  return {
    startPosition,
    rowCount,
    contextLength: 0,
    maskPosition: -1,
    blockTable: Int32Array.from(blockTable),
  };
}

export function greedy(row: number, position: number, topLogprobs = -1): SampleRequest {
  return {
    row,
    position,
    draft: new Int32Array(0),
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    seed: 0n,
    bannedTokens: new Int32Array(0),
    topLogprobs,
  };
}

/** A step of token ids with nothing asked for. */
export function tokenStep(sequences: SequenceRows[], tokenIds: number[]): StepInput {
  return { sequences, tokenIds: Int32Array.from(tokenIds), activations: null, samples: [], scores: [] };
}

/** All that a step tells of the rows that it scored, row by row. */
export function scoresOf({ scores }: StepOutput) {
  return scores.map(({ logprob, rank, finite, topTokens, topLogprobs }) => [
    logprob,
    rank,
    finite,
    ...topTokens,
    ...topLogprobs,
  ]);
}
