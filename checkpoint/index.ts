/**
 * Opens a model directory: config.json, the weights' headers and the number of tokens, all checked
 * against each other, so that everything after it can trust what it reads. No weight is read here.
 */
import { existsSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard, TensorNames } from "../models/card.js";
import { cardFor } from "../models/index.js";
import type { DType, ModelShape } from "../models/shape.js";
import {
  type Config,
  configDtype,
  configStopTokens,
  configWarnings,
  defaultSampling,
  hasQkvBias,
  readConfig,
  readTokenizerConfig,
  shapeFrom,
} from "./config.js";
import { fingerprintOf } from "./fingerprint.js";
import { withPublishedNames } from "./newer-names.js";
import { refuseConfig, refuseDirectory, refuseModelFile, refuseTensors } from "./other-formats.js";
import { type OpenOptions, overridden, overridesText, overrideWarnings } from "./overrides.js";
import { mergeShards, readParallelShards } from "./parallel-shards.js";
import { type PrefixEncoder, prefixTensors, readPrefixEncoder } from "./prefix-encoder.js";
import type { TensorEntry } from "./safetensors.js";
import { shardConfig, shardWarnings } from "./shard-config.js";
import { type CheckpointTensors, hasWeights, type MergedTensor, readTensors, weightType } from "./tensors.js";
import { checkStopTokens, readTokenizerFile, stopTokenIds, tokenCountOf } from "./tokenizer-file.js";
import { unusedWarnings } from "./unused.js";

export type { OpenOptions } from "./overrides.js";
export type { PrefixEncoder } from "./prefix-encoder.js";
export type { TensorEntry } from "./safetensors.js";
export type { MergedTensor } from "./tensors.js";

export interface Model {
  directory: string;
  /** What clients call it. */
  id: string;
  card: ModelCard;
  shape: ModelShape;
  /** Positions the model was made for. */
  contextLength: number;
  /** Ids that end a reply; without a tokenizer those that config.json names. */
  stopTokens: number[];
  /** Used when a request does not say. */
  sampling: ModelCard["sampling"];
  /** The checkpoint's own type: that of config.json, else of the embedding. */
  dtype: DType;
  config: Config;
  /** Those that lie in one piece. */
  tensors: Map<string, TensorEntry>;
  /** All of them, also those that are put together from several ranges of bytes. */
  merged: Map<string, MergedTensor>;
  /** Keys and values that every sequence begins with (P-Tuning v2); null without. */
  prefixEncoder: PrefixEncoder | null;
  /** What in the directory is not followed, for people. */
  warnings: string[];
  /** Equal for two directories that would compute the same; see fingerprint.ts. */
  fingerprint: string;
  /** Of the tensors that the model uses. */
  parameterCount: number;
  /** Stored bytes of each layer. */
  layerBytes: number[];
  embeddingBytes: number;
  /** Head and final norm. */
  headBytes: number;
}

/** Structurally the engine's TensorSource, LayerTensors and the weight fields of its StageConfig. */
export interface TensorSource {
  file: string;
  byteOffset: number;
  byteLength: number;
  dtype: DType;
  shape: number[];
}

export interface LayerTensors {
  attentionNorm: TensorSource;
  /** Rows q | k | v. */
  qkvWeight: TensorSource[];
  qkvBias: TensorSource[] | null;
  attentionOut: TensorSource;
  /** Norm of what attention gives, before it is added to the residual stream. */
  attentionOutNorm: TensorSource | null;
  ffnNorm: TensorSource;
  /** Rows gate | up. */
  ffnGateUp: TensorSource[];
  ffnDown: TensorSource;
  /** Norm of what the feed-forward part gives. */
  ffnOutNorm: TensorSource | null;
}

export interface StageTensors {
  layers: LayerTensors[];
  embedding: TensorSource | null;
  finalNorm: TensorSource | null;
  head: TensorSource | null;
}

/**
 * @param options What changes how the directory is read; part of the fingerprint.
 * @throws RelayError invalid_model naming file, field or tensor, the value found and what was expected.
 */
export async function openModel(directory: string, options: OpenOptions = {}): Promise<Model> {
  const root = resolve(directory);
  if (!statSync(root, { throwIfNoEntry: false })?.isDirectory()) {
    refuseModelFile(root);
    throw new RelayError("invalid_model", `${root} is not a directory, expected one with config.json`);
  }
  const overrides = options.overrides ?? {};
  const { written, shards, warnings } = await readDirectory(root);
  const config = overridden(written, overrides);
  refuseConfig(config, root);
  const tokenizerConfig = await readTokenizerConfig(root);
  const hasFile = (name: string) => existsSync(join(root, name));
  const card = cardFor({ directory: root, config, tokenizerConfig, hasFile });
  const tokenizer = await readTokenizerFile(root, card);
  if (tokenizer) checkStopTokens(tokenizer, card, configStopTokens(config));
  const tokenCount = tokenizer && tokenCountOf(tokenizer, card);
  const shape = shapeFrom(config, card, tokenCount, root, overrides);
  const { files, tensors, merged } = shards ?? (await readTensors(root));
  refuseTensors(merged);

  const partial = { directory: root, card, shape, config, tensors, merged };
  const whole = stageTensors(partial, { layerBegin: 0, layerEnd: shape.layerCount, embed: true, head: true });
  const { layers, embedding, finalNorm, head } = whole as StageTensors & { [K in EndTensors]: TensorSource };
  const sources = [embedding, ...layers.flatMap(layerSources), finalNorm, head];
  const prefixDirectory = options.prefixEncoder ?? null;
  const prefix = await readPrefixEncoder({ ...partial, prefixDirectory });
  const prefixSources = prefix ? prefixTensors(prefix.encoder) : [];
  return {
    ...partial,
    prefixEncoder: prefix?.encoder ?? null,
    id: modelId(config, root),
    contextLength: shape.maxPositions,
    stopTokens: tokenizer ? stopTokenIds(tokenizer, card) : configStopTokens(config),
    sampling: await defaultSampling(card, root),
    dtype: configDtype(config, card, root) ?? embedding.dtype,
    warnings: [
      ...warnings,
      ...overrideWarnings(written, overrides, root),
      ...configWarnings(config, card, shape, root),
      ...unusedWarnings(merged, [...sources, ...prefixSources], root),
    ],
    fingerprint: await fingerprintOf(
      card,
      shape,
      overridesText(overrides),
      [...files, ...(prefix?.files ?? [])],
      [...sources, ...prefixSources],
    ),
    parameterCount: sources.reduce((sum, { shape: sizes }) => sum + product(sizes), 0),
    layerBytes: layers.map((layer) => byteSum(layerSources(layer))),
    embeddingBytes: embedding.byteLength,
    headBytes: finalNorm.byteLength + head.byteLength,
  };
}

/** What config.json says, or would say for tensor-parallel shards, which are read already then. */
async function readDirectory(
  root: string,
): Promise<{ written: Config; shards: CheckpointTensors | null; warnings: string[] }> {
  const parallel = hasWeights(root) ? null : await readParallelShards(root);
  if (parallel === null) {
    refuseDirectory(root);
    return { written: withPublishedNames(await readConfig(root)), shards: null, warnings: [] };
  }
  const shards = await mergeShards(parallel);
  const derived = existsSync(join(root, "config.json")) ? null : shardConfig(parallel, shards.merged);
  const warnings = shardWarnings(parallel, derived, shards.unknown);
  return { written: derived ?? withPublishedNames(await readConfig(root)), shards, warnings };
}

type EndTensors = "embedding" | "finalNorm" | "head";

export interface StageRange {
  layerBegin: number;
  /** Exclusive. */
  layerEnd: number;
  embed: boolean;
  head: boolean;
}

/** Of a layer's tensors those that every family has in one piece. */
type SingleTensor = "attentionNorm" | "attentionOut" | "ffnNorm" | "ffnDown";

/**
 * Where the weights of a stage lie: the weight fields of the engine's StageConfig.
 * @throws RelayError invalid_model for a tensor that is missing, of another shape or of another type.
 */
export function stageTensors(
  model: Pick<Model, "directory" | "card" | "shape" | "config" | "tensors">,
  range: StageRange,
): StageTensors {
  const { card, shape } = model;
  const { hiddenSize, vocabSize, headCount, kvHeadCount, headDim, ffnSize } = shape;
  const names: TensorNames = card.tensors;
  const source = (name: string, ...expected: number[]) => sourceOf(model, name, expected);
  const qkvBias = hasQkvBias(model.config, card, model.directory);

  const qkvParts = [headCount, kvHeadCount, kvHeadCount].map((heads) => heads * headDim);
  /** One tensor with all rows, or one for each of `rows`. */
  const parts = (list: readonly string[], rows: number[], layer: number, ...columns: number[]) => {
    const sizes = list.length === 1 ? [sum(rows)] : rows;
    const found = list.map((name, i) => source(nameIn(name, layer), sizes[i]!, ...columns));
    const other = found.findIndex(({ dtype }) => dtype !== found[0]!.dtype);
    if (other < 0) return found;
    const names = [list[0]!, list[other]!].map((name) => nameIn(name, layer));
    throw new RelayError(
      "invalid_model",
      `tensor ${names[0]} is ${found[0]!.dtype} and ${names[1]} is ${found[other]!.dtype}, expected one type (${found[0]!.file})`,
    );
  };
  const optional = (name: "attentionOutNorm" | "ffnOutNorm", layer: number) => {
    const pattern = names.layer[name];
    return pattern === undefined ? null : source(nameIn(pattern, layer), hiddenSize);
  };

  const layers: LayerTensors[] = [];
  for (let layer = range.layerBegin; layer < range.layerEnd; layer++) {
    const at = (name: SingleTensor) => nameIn(names.layer[name], layer);
    layers.push({
      attentionNorm: source(at("attentionNorm"), hiddenSize),
      qkvWeight: parts(names.layer.qkvWeight, qkvParts, layer, hiddenSize),
      qkvBias: qkvBias ? parts(names.layer.qkvBias, qkvParts, layer) : null,
      attentionOut: source(at("attentionOut"), hiddenSize, headCount * headDim),
      attentionOutNorm: optional("attentionOutNorm", layer),
      ffnNorm: source(at("ffnNorm"), hiddenSize),
      ffnGateUp: parts(names.layer.ffnGateUp, [ffnSize, ffnSize], layer, hiddenSize),
      ffnDown: source(at("ffnDown"), hiddenSize, ffnSize),
      ffnOutNorm: optional("ffnOutNorm", layer),
    });
  }
  return {
    layers,
    embedding: range.embed ? source(names.embedding, vocabSize, hiddenSize) : null,
    finalNorm: range.head ? source(names.finalNorm, hiddenSize) : null,
    head: range.head ? source(names.head, vocabSize, hiddenSize) : null,
  };
}

function sourceOf(
  model: Pick<Model, "directory" | "tensors">,
  name: string,
  expected: number[],
): TensorSource {
  const tensor = model.tensors.get(name);
  if (!tensor) throw new RelayError("invalid_model", `missing tensor ${name} in ${model.directory}`);
  const { file, byteOffset, byteLength, shape } = tensor;
  if (shape.length !== expected.length || shape.some((size, axis) => size !== expected[axis])) {
    throw new RelayError(
      "invalid_model",
      `tensor ${name} has shape [${shape.join(", ")}], expected [${expected.join(", ")}] (${file})`,
    );
  }
  return { file, byteOffset, byteLength, dtype: weightType(tensor), shape };
}

/** All tensors of a layer. */
export function layerSources(layer: LayerTensors): TensorSource[] {
  return Object.values(layer)
    .flat()
    .filter((source): source is TensorSource => source !== null);
}

const nameIn = (pattern: string, layer: number): string => pattern.replace("{i}", String(layer));

/** The published name when config.json has one (not a path of whoever saved it), else the directory's. */
function modelId(config: Config, directory: string): string {
  const name = config._name_or_path;
  const published = typeof name === "string" && /^\w[\w.-]*(\/\w[\w.-]*)?$/.test(name);
  return published ? name : basename(directory);
}

const sum = (sizes: readonly number[]): number => sizes.reduce((total, size) => total + size, 0);
const product = (sizes: number[]): number => sizes.reduce((result, size) => result * size, 1);
const byteSum = (sources: TensorSource[]): number =>
  sources.reduce((sum, { byteLength }) => sum + byteLength, 0);
