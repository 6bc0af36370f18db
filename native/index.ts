/**
 * The typed door to the native engine: same names and order as addon/. JavaScript validates here,
 * a plain struct goes to the engine's own threads, and nothing below this file knows of models by
 * name, of gRPC or of the cluster.
 */

import { type AddonStage, chosenKernels, loadAddon } from "./addon-loader.js";
import { checkStageConfig, checkWeightCache } from "./check-config.js";
import { checkSlice, type Parked, parkedAfter } from "./check-slice.js";
import { checkStep } from "./check-step.js";
import { backendName, type Gpu } from "./device.js";

export { availableGpus, chooseDevice, freeGpuBytes, type Gpu } from "./device.js";

/** Storage type of float tensors, of the residual stream and of the KV cache. */
export type DType = "float32" | "float16" | "bfloat16";

/** How keys and values are stored; int8 has one FP16 scale per token and head. */
export type KvType = DType | "int8";

/** How a weight matrix is rounded when it is loaded (CANON.md, Rounded weights). */
export interface WeightFormat {
  type: "int8" | "int4";
  /** Weights of a row that share a scale: 32, 64 or 128; 0 is the whole row. */
  groupSize: number;
  /** The scale that fits the largest weight, or the one of several with the smallest squared error. */
  scales: "absmax" | "search";
}

/** How the layers of a family compute. */
export interface LayerForm {
  /** RMSNorm, or LayerNorm with bias. */
  norm: "rms" | "layer";
  /**
   * What attention or the feed-forward part gives is added to the residual stream, or to its own, normed
   * input times residualScale.
   */
  residual: "stream" | "normed";
  residualScale: number;
  /** Which dimensions of the rotated width w are a pair: (2j, 2j + 1), or (j, w / 2 + j). */
  ropePairs: "adjacent" | "halves";
  /** 2: one half of the rotated dimensions turns with the position, the other with the block position. */
  ropeAxes: 1 | 2;
  /** silu(first half) * second half; gelu (tanh); first half * gelu(second half) (erf). */
  ffn: "gatedSilu" | "gelu" | "gatedGelu";
}

/** The mixture of experts of those layers that have one. */
export interface ExpertShape {
  count: number;
  perToken: number;
  /** Experts are chosen within the best `groupsPerToken` of `groups` equal groups. */
  groups: number;
  groupsPerToken: number;
  ffnSize: number;
  /** Of the expert that every row passes through. */
  sharedFfnSize: number;
  /** The chosen experts' weights are divided by their sum. */
  normalizeWeights: boolean;
  /** Factor of all weights. */
  scale: number;
}

/** The shape of a model as the engine needs it; all facts come from the model's card and config. */
export interface ModelShape {
  hiddenSize: number;
  layerCount: number;
  headCount: number;
  /** Key/value heads; query head h reads KV head floor(h / (headCount / kvHeadCount)). */
  kvHeadCount: number;
  headDim: number;
  ffnSize: number;
  /** Rows of embedding and head. */
  vocabSize: number;
  /** Token ids >= tokenCount do not exist: their logits are masked before sampling and logprobs. */
  tokenCount: number;
  /** Rotated dimensions of each head, a multiple of 2 per axis; the rest passes unchanged. 0: none. */
  ropeDim: number;
  ropeBase: number;
  /** Positions are divided by it before they are rotated; 1 for most models. */
  ropePositionDivisor: number;
  normEps: number;
  maxPositions: number;
  form: LayerForm;
  /** null: no layer has experts. */
  experts: ExpertShape | null;
}

/** Where one tensor lies: a byte range of a file that the engine maps. Row-major, [out, in]. */
export interface TensorSource {
  file: string;
  byteOffset: number;
  byteLength: number;
  dtype: DType;
  shape: number[];
}

/**
 * Tensors of one layer. Matrices are [out, in]. The tensors of a list lie one below the other, or, where
 * each has all rows, side by side. null: the family has no such tensor.
 */
export interface LayerTensors {
  attentionNorm: TensorSource;
  attentionNormBias: TensorSource | null;
  /** Rows q | k | v. */
  qkvWeight: TensorSource[];
  qkvBias: TensorSource[] | null;
  /** RMSNorm of every head, [headDim]. */
  queryNorm: TensorSource | null;
  keyNorm: TensorSource | null;
  attentionOut: TensorSource[];
  attentionOutBias: TensorSource[] | null;
  /** Norm of what attention gives, before it is added to the residual stream. */
  attentionOutNorm: TensorSource | null;
  ffnNorm: TensorSource;
  ffnNormBias: TensorSource | null;
  /** The two halves of LayerForm.ffn one below the other. In a layer with experts: of the shared one. */
  ffnUp: TensorSource[];
  ffnUpBias: TensorSource[] | null;
  ffnDown: TensorSource[];
  ffnDownBias: TensorSource[] | null;
  /** Norm of what the feed-forward part gives. */
  ffnOutNorm: TensorSource | null;
  /** [experts, hidden], and what is added to an expert's score when it is chosen. null: no experts. */
  router: { weight: TensorSource; bias: TensorSource } | null;
  experts: { up: TensorSource[]; down: TensorSource[] }[];
}

/** A linear layer of a prefix encoder. */
export interface PrefixLinear {
  weight: TensorSource;
  bias: TensorSource;
}

/**
 * A P-Tuning v2 prefix encoder: rows of the embedding, or out(tanh(hidden(row))), are keys and values of
 * all layers in front of every sequence, [length, 2 * layers * KV columns].
 */
export interface PrefixTensors {
  length: number;
  embedding: TensorSource;
  hidden: PrefixLinear | null;
  out: PrefixLinear | null;
}

export interface StageConfig {
  shape: ModelShape;
  /** Layers [layerBegin, layerEnd) of the model. */
  layerBegin: number;
  layerEnd: number;
  layers: LayerTensors[];
  /** Present on the first stage. [vocabSize, hiddenSize] */
  embedding: TensorSource[] | null;
  /** Learned tables [positions, hiddenSize] that are added to it, in families that have them. */
  positionEmbedding: TensorSource | null;
  blockPositionEmbedding: TensorSource | null;
  /** Present on the last stage: final norm and head [vocabSize, hiddenSize]. */
  finalNorm: TensorSource | null;
  finalNormBias: TensorSource | null;
  head: TensorSource[] | null;
  prefix: PrefixTensors | null;
  /** What becomes of the matrices of all layers, and of the head; null: they stay as stored. */
  weights: WeightFormat | null;
  headWeights: WeightFormat | null;
  /** Residual stream and wire type. */
  dtype: DType;
  kvType: KvType;
  /** KV cache: blockCount blocks of blockSize token slots, allocated once. */
  blockCount: number;
  blockSize: number;
  /** Rows of one step never exceed this; workspace is allocated for it. */
  maxRows: number;
  /** Rows of the longest context that is read in slices, at most maxRows; 0: none is. */
  contextRows: number;
  /** Compute threads of this stage (>= 1). */
  threads: number;
  /** The processor that each thread stays on; null: the system moves them. */
  cpus?: Int32Array | null;
}

/** Rows of one sequence in a step, consecutive in the step's input. */
export interface SequenceRows {
  rowCount: number;
  /** Position of the first of these rows; KV slots before it are valid. */
  startPosition: number;
  /**
   * Rows [0, contextLength) see all of each other (prefix-LM): they come in one step, or in slices. 0: none do.
   */
  contextLength: number;
  /** What stands for the position of every row from contextLength on; -1: positions go on. */
  maskPosition: number;
  /** Block ids covering the prefix encoder's slots and positions [0, startPosition + rowCount). */
  blockTable: Int32Array;
}

/**
 * Draw one token from the logits of a row. Behind that row may stand rows of a draft: one more token is drawn
 * from each of them, exactly as it would be alone, as long as all tokens drawn before are the draft's.
 */
export interface SampleRequest {
  /** Row index within the step. */
  row: number;
  /** Position that the sampled token will have: the Philox counter. One more for each row of the draft. */
  position: number;
  /** Token ids of the rows behind `row`, in order; empty: no draft. */
  draft: Int32Array;
  /** 0 is greedy (ties go to the lowest id). */
  temperature: number;
  /** 0 switches it off. */
  topK: number;
  /** 1 switches it off. */
  topP: number;
  /** 0 switches it off. */
  minP: number;
  /** Philox key, 64 bits. */
  seed: bigint;
  /** Ids that may not be drawn (min_tokens, ignore_eos). Logprobs are those of the raw logits. */
  bannedTokens: Int32Array;
  /** -1: no logprobs; 0..20: the drawn token's and that many best alternatives. */
  topLogprobs: number;
}

/** Logprob of a known next token under a row's logits (echo with logprobs). */
export interface ScoreRequest {
  row: number;
  token: number;
  topLogprobs: number;
}

export interface TokenResult {
  token: number;
  /** Natural log of softmax over the raw logits; NaN when not asked for. */
  logprob: number;
  /** 1-based rank among all ids; 0 when not asked for. */
  rank: number;
  topTokens: Int32Array;
  topLogprobs: Float32Array;
  /** False when a logit of this row was NaN or infinite: the other fields mean nothing then. */
  finite: boolean;
}

/**
 * Layers [layerBegin, layerEnd) of the model, all of this stage, for the rows of one whole context. Between
 * its slices the stage keeps their residual stream ("parked"), of one context at a time. No layers, at the
 * stage's first one: rows of the previous stage arrive.
 */
export interface SliceInput {
  /** Exactly the context's rows. */
  rows: SequenceRows;
  layerBegin: number;
  layerEnd: number;
  /** First stage, with the context's first slice: token id per row. Otherwise null. */
  tokenIds: Int32Array | null;
  /** Later stages, when the context arrives: rows x hiddenSize in dtype, little-endian. Otherwise null. */
  activations: Uint8Array | null;
}

/** A block becomes what another one is, in all layers of the stage: sequences that begin alike go on differently. */
export interface BlockCopy {
  from: number;
  to: number;
}

export interface StepInput {
  /** Made in front of everything else, in order. */
  copies?: readonly BlockCopy[];
  /** Computed in front of the step's rows, which may read what it stores. */
  slice?: SliceInput;
  /** May be empty beside a slice. */
  sequences: SequenceRows[];
  /** First stage: token id per row. Otherwise, and without rows, null. */
  tokenIds: Int32Array | null;
  /** Later stages: rows x hiddenSize in dtype, little-endian. Otherwise, and without rows, null. */
  activations: Uint8Array | null;
  /** Last stage only; empty elsewhere. */
  samples: SampleRequest[];
  scores: ScoreRequest[];
}

export interface StepOutput {
  /** rows x hiddenSize in dtype, little-endian; null on the last stage and without rows. */
  activations: Uint8Array | null;
  /** The same of the context whose slice ended with the stage's last layer; null or absent otherwise. */
  sliceActivations?: Uint8Array | null;
  /**
   * In the order of the requests. One with a draft of k has 1 to k + 1 of them: the last one is the first that
   * is not the draft's token at its place (or not finite), or the one behind the whole draft.
   */
  samples: TokenResult[];
  scores: TokenResult[];
  /** Wall time inside the engine, in microseconds. */
  computeUs: number;
}

/** How far the rounded weights of one matrix are from the stored ones. */
export interface TensorRounding {
  /** "layer 3 ffnDown" */
  tensor: string;
  /** Root mean square of the errors over that of the weights. */
  relativeError: number;
}

/** Bytes of the checkpoint read so far, and in all. */
export interface LoadProgress {
  loadedBytes: number;
  totalBytes: number;
}

/** Where a stage keeps what it has made of its matrices, for the next one (docs/weights-cache.md). */
export interface WeightCacheOptions {
  /** Made when the first file is written; any number of processes share it. */
  directory: string;
  /** Of all files in it: the least recently used ones that no process uses go first. */
  maxBytes: number;
  /** Of the whole checkpoint. */
  fingerprint: string;
}

/** What a stage's cache has done so far. Files are of one layer each, or of the head. */
export interface WeightCacheReport {
  /** Files that were mapped, and that were not there or could not be used. */
  hits: number;
  misses: number;
  /** Of the matrices in mapped files: they are part of the stage's weightBytes. */
  mappedBytes: number;
  filesWritten: number;
  writtenBytes: number;
  /** Why a file was not used, or why nothing more is kept. */
  warnings: string[];
}

/** The device does not answer this process any more, whatever stage it builds: only another process can use it. */
export function isDeviceLost(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "DEVICE_LOST";
}

export interface EngineInfo {
  /** The variant in use, for example "avx2" (docs/kernels.md) or "cuda-sm_86" (docs/cuda.md). */
  kernels: string;
  /** Variants that this CPU can run, best first. */
  available: string[];
  /** Goes up when a result may change in any bit (CANON.md); part of the numerics id. */
  canonVersion: number;
  /** "cpu", or the GPU's family: results of two of them may differ. */
  backend: string;
}

/** A stage that was to be created found no room for something, which the message names. */
export function isOutOfMemory(error: unknown): error is Error {
  return error instanceof Error && /^(no room for |not enough memory$)/.test(error.message);
}

const CANON_VERSION = 1;
/** The same for what GPUs compute, which is not the CPU's canon (docs/cuda.md). */
const CUDA_CANON_VERSION = 1;

/**
 * What the engine runs on. GLM_RELAY_KERNELS forces a variant, by its name (docs/kernels.md).
 * @param device Null: the CPU.
 * @throws Error when the forced variant does not exist here, or the engine has not been built.
 */
export function engineInfo(device: Gpu | null = null): EngineInfo {
  const addon = loadAddon();
  if (device !== null) {
    const name = backendName(device);
    return {
      kernels: name,
      available: [...addon.availableKernels],
      canonVersion: CUDA_CANON_VERSION,
      backend: name,
    };
  }
  return {
    kernels: chosenKernels(addon),
    available: [...addon.availableKernels],
    canonVersion: CANON_VERSION,
    backend: "cpu",
  };
}

/**
 * A contiguous range of layers with its weights, KV cache and compute threads. Steps run one after the
 * other in the order they were submitted, away from the event loop.
 */
export class Stage {
  /** Weights as held in memory: packed strips, float32 norms, the mapped embedding. On a GPU: in its memory. */
  readonly weightBytes: number;
  /** Reserved for keys and values; pages that no token has reached take no memory. */
  readonly kvBytes: number;
  /** Everything else, sized by maxRows and contextRows. On a GPU: in its memory. */
  readonly workspaceBytes: number;
  /** The kernel variant this stage runs. */
  readonly kernels: string;
  /** Of every matrix that was rounded, in the order of loading. */
  readonly roundings: readonly TensorRounding[];
  readonly #config: StageConfig;
  readonly #addonStage: AddonStage;
  readonly #cache: WeightCacheOptions | null;
  #parked: Parked | null = null;
  #closed: Promise<void> | null = null;

  private constructor(config: StageConfig, addonStage: AddonStage, cache: WeightCacheOptions | null) {
    const { weightBytes, kvBytes, workspaceBytes } = addonStage.memory();
    this.weightBytes = weightBytes;
    this.kvBytes = kvBytes;
    this.workspaceBytes = workspaceBytes;
    this.kernels = addonStage.kernels();
    this.roundings = addonStage.roundings().map(({ tensor, squaredError, squaredWeight }) => ({
      tensor,
      relativeError: squaredWeight === 0 ? 0 : Math.sqrt(squaredError / squaredWeight),
    }));
    this.#cache = cache;
    this.#config = config;
    this.#addonStage = addonStage;
  }

  /**
   * Reads the stage's tensors, and no others, and allocates all its memory.
   * @param started Gets a function that tells at any time how far the loading is.
   * @param cache Matrices are mapped from it where it has them, and are written into it beside everything else
   *   where it has not. Null: all are made from the checkpoint.
   * @param device A GPU (chooseDevice); null: the CPU.
   * @throws Error (as a rejection) naming the field, or the tensor and its file, that does not fit.
   */
  static async create(
    config: StageConfig,
    started: (progress: () => LoadProgress) => void = () => {},
    cache: WeightCacheOptions | null = null,
    device: Gpu | null = null,
  ): Promise<Stage> {
    checkStageConfig(config);
    if (cache !== null) checkWeightCache(cache);
    const addon = loadAddon();
    const addonStage = new addon.Stage(config, chosenKernels(addon), cache, device);
    started(() => addonStage.loading());
    try {
      await addonStage.load();
    } catch (cause) {
      await addonStage.close();
      throw cause;
    }
    return new Stage(config, addonStage, cache);
  }

  /**
   * Computes one step. The input's arrays are copied before this returns.
   * @throws Error (as a rejection) for input that does not fit; the stage stays usable. For one of isDeviceLost no
   *   stage of this process is usable any more.
   */
  async step(input: StepInput): Promise<StepOutput> {
    if (this.#closed !== null) throw new Error("the stage is closed");
    const { slice = null, copies = [] } = input;
    checkStep(input, this.#config);
    if (slice !== null) {
      checkSlice(slice, this.#parked, this.#config);
      this.#parked = parkedAfter(slice, this.#config);
    }
    return await this.#addonStage.step({ ...input, copies, slice });
  }

  /** A counter that moves while the engine computes: every tile of every kernel bumps it. */
  progress(): bigint {
    return this.#addonStage.progress();
  }

  /** What its cache has done so far; null without one. */
  get weightCache(): WeightCacheReport | null {
    return this.#cache === null ? null : this.#addonStage.cacheReport();
  }

  /** Resolves when the cache has written what the load has made, or has given up doing so. */
  async weightCacheWritten(): Promise<void> {
    if (this.#closed === null) await this.#addonStage.cacheWritten();
  }

  /** Frees all memory after the steps submitted so far; steps after it are rejected. */
  close(): Promise<void> {
    this.#closed ??= this.#addonStage.close();
    return this.#closed;
  }
}
