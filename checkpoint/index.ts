/**
 * Opens a model directory: config.json, the weights' headers and the number of tokens, all checked
 * against each other, so that everything after it can trust what it reads. No weight is read here.
 */
import { existsSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard } from "../models/card.js";
import { cardFor } from "../models/index.js";
import type { DType, ModelShape } from "../models/shape.js";
import {
  type Config,
  configDtype,
  configStopTokens,
  configWarnings,
  defaultSampling,
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
import { type PrefixModel, prefixModelOf } from "./prefix-model.js";
import type { TensorEntry } from "./safetensors.js";
import { shardConfig, shardWarnings } from "./shard-config.js";
import { endSources, layerSources, stageSources, stageTensors, type TensorSource } from "./stage-tensors.js";
import { type CheckpointTensors, hasWeights, type MergedTensor, readTensors } from "./tensors.js";
import { checkStopTokens, readTokenizerFile, stopTokenIds, tokenCountOf } from "./tokenizer-file.js";
import { unusedWarnings } from "./unused.js";

export type { OpenOptions } from "./overrides.js";
export type { PrefixEncoder } from "./prefix-encoder.js";
export { contextRowsOf, type PrefixModel } from "./prefix-model.js";
export type { TensorEntry } from "./safetensors.js";
export * from "./stage-tensors.js";
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
  /** KV slots in front of every sequence that they take. */
  prefixLength: number;
  /** How a prompt of a prefix-LM is divided; null for a causal model. */
  prefixModel: PrefixModel | null;
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

  const found = { directory: root, card, shape, config, tensors, merged };
  const prefixDirectory = options.prefixEncoder ?? null;
  const prefix = await readPrefixEncoder({ ...found, prefixDirectory });
  const prefixSources = prefix ? prefixTensors(prefix.encoder) : [];
  const partial = { ...found, prefixEncoder: prefix?.encoder ?? null };
  const whole = stageTensors(partial, { layerBegin: 0, layerEnd: shape.layerCount, embed: true, head: true });
  const sources = stageSources(whole);
  const layers = whole.layers.map(layerSources);
  return {
    ...partial,
    id: modelId(config, root),
    contextLength: shape.maxPositions,
    stopTokens: tokenizer ? stopTokenIds(tokenizer, card) : configStopTokens(config),
    sampling: await defaultSampling(card, root),
    dtype: configDtype(config, card, root) ?? whole.embedding![0]!.dtype,
    prefixModel: prefixModelOf(card, tokenizer, config),
    prefixLength: prefix?.encoder.length ?? 0,
    warnings: [
      ...warnings,
      ...overrideWarnings(written, overrides, root),
      ...configWarnings(config, card, shape, root),
      ...unusedWarnings(merged, [...sources, ...prefixSources], extraLayers(config, card, shape), root),
    ],
    fingerprint: await fingerprintOf(
      card,
      shape,
      overridesText(overrides),
      [...files, ...(prefix?.files ?? [])],
      [...sources, ...prefixSources],
    ),
    parameterCount: distinct(sources).reduce((sum, { shape: sizes }) => sum + product(sizes), 0),
    layerBytes: layers.map(byteSum),
    embeddingBytes: byteSum(endSources(whole, "first")),
    headBytes: byteSum(endSources(whole, "last")),
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

/** The published name when config.json has one (not a path of whoever saved it), else the directory's. */
function modelId(config: Config, directory: string): string {
  const name = config._name_or_path;
  const published = typeof name === "string" && /^\w[\w.-]*(\/\w[\w.-]*)?$/.test(name);
  return published ? name : basename(directory);
}

function extraLayers(config: Config, { extraLayersField }: ModelCard, { layerCount }: ModelShape) {
  const count = extraLayersField === undefined ? 0 : Number(config[extraLayersField] ?? 0);
  return { begin: layerCount, count };
}

/** Tied tensors are one. */
function distinct(sources: TensorSource[]): TensorSource[] {
  return [...new Map(sources.map((source) => [`${source.byteOffset} ${source.file}`, source])).values()];
}

const product = (sizes: number[]): number => sizes.reduce((result, size) => result * size, 1);
const byteSum = (sources: TensorSource[]): number =>
  sources.reduce((sum, { byteLength }) => sum + byteLength, 0);
