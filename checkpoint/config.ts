/** Turns config.json into the shape of the model, by the card's mapping. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard, RopeFacts } from "../models/card.js";
import { printValue } from "../models/print.js";
import type { DType, ExpertShape, ModelShape } from "../models/shape.js";
import { parseJsonObject, readModelFile } from "./json.js";
import type { Overrides } from "./overrides.js";

/** Real ones have 2 KiB, and one of a tokenizer some more for its chat template. */
const maxConfigBytes = 1024 * 1024;

export type Config = Record<string, unknown>;

export async function readConfig(directory: string): Promise<Config> {
  const path = join(directory, "config.json");
  return parseJsonObject(await readModelFile(path, maxConfigBytes), path);
}

/** null without one. */
export async function readTokenizerConfig(directory: string): Promise<Config | null> {
  const path = join(directory, "tokenizer_config.json");
  if (!existsSync(path)) return null;
  return parseJsonObject(await readModelFile(path, maxConfigBytes), path);
}

/**
 * @param tokenCount Ids that exist by the tokenizer; null without one: then those that the family was published
 *                   with, and for another size of the vocabulary all rows of the embedding.
 * @throws RelayError invalid_model naming the field, its value and what was expected.
 */
export function shapeFrom(
  config: Config,
  card: ModelCard,
  tokenCount: number | null,
  directory: string,
  overrides: Overrides = {},
): ModelShape {
  const path = join(directory, "config.json");
  const size = (field: string) => sizeOf(config, field, path);
  const fields = card.config;
  const hiddenSize = size(fields.hiddenSize);
  const layerCount = size(fields.layerCount);
  const headCount = size(fields.headCount);
  if (fields.headDim === null && hiddenSize % headCount !== 0) {
    fail(path, fields.headCount, headCount, `a divisor of ${fields.hiddenSize}, which is ${hiddenSize}`);
  }
  const headDim = fields.headDim === null ? hiddenSize / headCount : size(fields.headDim);
  const ropeDim = headDim * card.rope.fraction;
  const ropeUnit = 2 * card.form.ropeAxes;
  if (ropeDim % ropeUnit !== 0) {
    fail(
      path,
      fields.headDim ?? fields.hiddenSize,
      headDim,
      `a multiple of ${ropeUnit / card.rope.fraction} per head`,
    );
  }
  const kvHeadCount = fields.kvHeadCount === null ? headCount : size(fields.kvHeadCount);
  if (fields.kvHeadCount !== null && headCount % kvHeadCount !== 0) {
    fail(path, fields.kvHeadCount, kvHeadCount, `a divisor of ${fields.headCount}, which is ${headCount}`);
  }
  const vocabSize = size(fields.vocabSize);
  if (tokenCount !== null && tokenCount > vocabSize) {
    const tokens = `at least ${tokenCount}: ${card.tokenizer.file} and the special tokens have that many ids`;
    fail(path, fields.vocabSize, vocabSize, tokens);
  }
  const normEps = config[fields.normEps];
  if (typeof normEps !== "number" || !(normEps > 0 && normEps < 1)) {
    fail(path, fields.normEps, normEps, "a number between 0 and 1");
  }
  return {
    hiddenSize,
    layerCount,
    headCount,
    kvHeadCount,
    headDim,
    ffnSize: size(fields.ffnSize),
    vocabSize,
    tokenCount: tokenCount ?? publishedTokens(card, vocabSize) ?? vocabSize,
    ropeDim,
    ropeBase: ropeBase(config, card.rope, size(fields.maxPositions), overrides, path),
    ropePositionDivisor: ratioOf(config, card.rope, "positions", path),
    normEps,
    maxPositions: size(fields.maxPositions),
    form: { ...card.form, residualScale: residualScale(card, layerCount) },
    experts: expertShape(config, card, path),
  };
}

function residualScale({ form }: ModelCard, layerCount: number): number {
  return form.residualScale === "sqrt(2 layers)" ? Math.sqrt(2 * layerCount) : form.residualScale;
}

function publishedTokens(card: ModelCard, vocabSize: number): number | undefined {
  return card.vocabularies?.find(({ rows }) => rows === vocabSize)?.tokens;
}

function ropeBase(
  config: Config,
  rope: RopeFacts,
  maxPositions: number,
  overrides: Overrides,
  path: string,
): number {
  const written = positive(config, rope.baseField, rope.base, 1e12, path);
  const base = written * ratioOf(config, rope, "base", path);
  // Whoever sets the base has seen the warning about the file's, and decides.
  if (rope.baseField !== undefined && Object.hasOwn(overrides, rope.baseField)) return base;
  return ropeCorrection(rope, base, maxPositions) ?? base;
}

/** The ratio where it has this meaning, else 1. */
function ratioOf(config: Config, rope: RopeFacts, meaning: RopeFacts["ratioMeaning"], path: string): number {
  return rope.ratioMeaning === meaning ? positive(config, rope.ratioField, 1, 1e6, path) : 1;
}

function positive(
  config: Config,
  field: string | undefined,
  whenAbsent: number,
  most: number,
  path: string,
): number {
  if (field === undefined) return whenAbsent;
  const value = config[field] ?? whenAbsent;
  if (typeof value === "number" && value > 0 && value <= most) return value;
  return fail(path, field, value, `a number above 0 and at most ${most.toExponential().replace("+", "")}`);
}

function ropeCorrection(rope: RopeFacts, base: number, maxPositions: number): number | undefined {
  return rope.corrections?.find((one) => one.written === base && one.maxPositions === maxPositions)?.base;
}

/** What config.json says and is not followed, for people. */
export function configWarnings(
  config: Config,
  card: ModelCard,
  shape: ModelShape,
  directory: string,
): string[] {
  const path = join(directory, "config.json");
  const warnings: string[] = [];
  const { baseField } = card.rope;
  const written = baseField === undefined ? undefined : config[baseField];
  const corrected =
    typeof written === "number" && ropeCorrection(card.rope, written, shape.maxPositions) !== undefined;
  if (corrected && shape.ropeBase !== written) {
    warnings.push(
      `${path}: "${baseField}" is ${written}, which contradicts the authors' code for this model; ${shape.ropeBase} is used`,
    );
  }
  const scaling = config.rope_scaling ?? null;
  if (scaling !== null && !card.rules.some(({ field }) => field === "rope_scaling")) {
    warnings.push(`${path}: "rope_scaling" is ${printValue(scaling)}, which the authors' code does not read`);
  }
  return warnings;
}

/** The checkpoint's own dtype, or null when config.json does not say. */
export function configDtype(config: Config, card: ModelCard, directory: string): DType | null {
  const value = config[card.config.dtype];
  if (value === undefined || value === null) return null;
  if (value === "float32" || value === "float16" || value === "bfloat16") return value;
  return fail(join(directory, "config.json"), card.config.dtype, value, '"float32", "float16" or "bfloat16"');
}

/** End tokens by config.json's eos_token_id: one id, a list, or nothing. */
export function configStopTokens(config: Config): number[] {
  return [config.eos_token_id].flat().filter((id): id is number => Number.isSafeInteger(id));
}

/**
 * Sampling when a request does not say: the card's, unless generation_config.json decides otherwise
 * (a model made for exact answers asks for greedy decoding there).
 */
export async function defaultSampling(card: ModelCard, directory: string): Promise<ModelCard["sampling"]> {
  const path = join(directory, "generation_config.json");
  if (!existsSync(path)) return card.sampling;
  const config = parseJsonObject(await readModelFile(path, maxConfigBytes), path);
  const read = (field: string, otherwise: number, accepts: (value: number) => boolean, expected: string) => {
    const value = config[field] ?? otherwise;
    return typeof value === "number" && accepts(value) ? value : fail(path, field, value, expected);
  };
  const { temperature, topP } = card.sampling;
  return {
    temperature:
      config.do_sample === false
        ? 0
        : read("temperature", temperature, (value) => value >= 0 && value <= 2, "a number from 0 to 2"),
    topP: read("top_p", topP, (value) => value > 0 && value <= 1, "a number above 0 and at most 1"),
  };
}

/** A switch of config.json that is true or false; absent means false. @throws RelayError invalid_model */
export function configSwitch(config: Config, field: string, directory: string): boolean {
  const value = config[field] ?? false;
  if (typeof value === "boolean") return value;
  return fail(join(directory, "config.json"), field, value, "true or false");
}

/** Layers in front of the first with experts. @throws RelayError invalid_model */
export function denseLayerCount(config: Config, card: ModelCard, directory: string): number {
  if (card.experts === undefined) return Number.POSITIVE_INFINITY;
  const field = card.experts.denseLayers;
  const value = config[field] ?? 0;
  if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
  return fail(join(directory, "config.json"), field, value, "a whole number from 0");
}

/** null for a family without experts. */
function expertShape(config: Config, card: ModelCard, path: string): ExpertShape | null {
  const fields = card.experts;
  if (fields === undefined) return null;
  const count = sizeOf(config, fields.count, path);
  const groups = sizeOf(config, fields.groups, path, 1);
  if (count % groups !== 0 || groups > 64) {
    fail(path, fields.groups, groups, `a divisor of ${fields.count}, which is ${count}, and at most 64`);
  }
  const groupsPerToken = sizeOf(config, fields.groupsPerToken, path, 1);
  if (groupsPerToken > groups) fail(path, fields.groupsPerToken, groupsPerToken, `at most ${groups}`);
  const perToken = sizeOf(config, fields.perToken, path);
  const choosable = (count / groups) * groupsPerToken;
  if (perToken > choosable) fail(path, fields.perToken, perToken, `at most ${choosable}`);
  const scale = config[fields.scale] ?? 1;
  if (typeof scale !== "number" || !(scale > 0 && scale < 1e6)) {
    fail(path, fields.scale, scale, "a number above 0");
  }
  const ffnSize = sizeOf(config, fields.ffnSize, path);
  return {
    count,
    perToken,
    groups,
    groupsPerToken,
    ffnSize,
    sharedFfnSize: ffnSize * sizeOf(config, fields.sharedCount, path),
    normalizeWeights: configSwitch(config, fields.normalizeWeights, dirname(path)),
    scale,
  };
}

function sizeOf(config: Config, field: string, path: string, whenAbsent?: number): number {
  const value = config[field] ?? whenAbsent;
  if (Number.isSafeInteger(value) && (value as number) > 0 && (value as number) < 2 ** 31) {
    return value as number;
  }
  return fail(path, field, value, "a whole number from 1 to 2^31 - 1");
}

function fail(path: string, field: string, value: unknown, expected: string): never {
  throw new RelayError("invalid_model", `${path}: "${field}" is ${printValue(value)}, expected ${expected}`);
}
