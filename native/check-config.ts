/** What a stage's configuration must fulfil before the engine, which trusts it, sees it. */

import type { DType, LayerTensors, ModelShape, StageConfig, TensorSource, WeightFormat } from "./index.js";

/** Attention visits keys in tiles of 16 positions (CANON.md), and a tile lies in one block. */
const KEY_TILE = 16;
/** Row counts, columns and positions are 32-bit in the engine. */
const INT_MAX = 2 ** 31 - 1;
/** More threads than any machine has cores: a typing error, not a wish. */
const THREADS_MAX = 1024;

export function dtypeBytes(dtype: DType): number {
  return dtype === "float32" ? 4 : 2;
}

/** @throws Error that names the field, or the tensor with its file. */
export function checkStageConfig(config: StageConfig): void {
  const { shape } = config;
  checkShape(shape);
  checkDType("dtype", config.dtype);
  if (config.kvType !== "int8") checkDType("kvType", config.kvType);
  checkWeightFormat("weights", config.weights);
  checkWeightFormat("headWeights", config.headWeights);
  integerIn("layerBegin", config.layerBegin, 0, shape.layerCount - 1);
  integerIn("layerEnd", config.layerEnd, config.layerBegin + 1, shape.layerCount);
  integerIn("blockCount", config.blockCount, 1, INT_MAX);
  integerIn("blockSize", config.blockSize, 1, INT_MAX);
  if (config.blockSize % KEY_TILE !== 0) {
    throw new Error(`blockSize ${config.blockSize}: expected a multiple of ${KEY_TILE}`);
  }
  integerIn("maxRows", config.maxRows, 1, INT_MAX);
  integerIn("threads", config.threads, 1, THREADS_MAX);

  const layerCount = config.layerEnd - config.layerBegin;
  if (config.layers.length !== layerCount) {
    throw new Error(
      `layers: expected ${layerCount} for [${config.layerBegin}, ${config.layerEnd}), got ${config.layers.length}`,
    );
  }
  config.layers.forEach((tensors, i) => {
    checkLayer(tensors, shape, config.layerBegin + i);
  });

  const vocabulary = [shape.vocabSize, shape.hiddenSize];
  checkPresence("embedding", config.embedding, config.layerBegin === 0, "the first stage", vocabulary);
  const isLast = config.layerEnd === shape.layerCount;
  checkPresence("finalNorm", config.finalNorm, isLast, "the last stage", [shape.hiddenSize]);
  checkPresence("head", config.head, isLast, "the last stage", vocabulary);
}

function checkShape(shape: ModelShape): void {
  const counts = [
    "hiddenSize",
    "layerCount",
    "headCount",
    "kvHeadCount",
    "headDim",
    "ffnSize",
    "vocabSize",
    "tokenCount",
    "maxPositions",
  ] as const;
  for (const name of counts) integerIn(`shape.${name}`, shape[name], 1, INT_MAX);
  if (shape.headCount % shape.kvHeadCount !== 0) {
    throw new Error(
      `shape.headCount ${shape.headCount}: expected a multiple of kvHeadCount ${shape.kvHeadCount}`,
    );
  }
  integerIn("shape.tokenCount", shape.tokenCount, 1, shape.vocabSize);
  integerIn("shape.ropeDim", shape.ropeDim, 0, shape.headDim);
  if (shape.ropeDim % 2 !== 0) throw new Error(`shape.ropeDim ${shape.ropeDim}: expected an even number`);
  if (!(shape.ropeBase > 0 && Number.isFinite(shape.ropeBase))) {
    throw new Error(`shape.ropeBase ${shape.ropeBase}: expected a positive number`);
  }
  const { ropePositionDivisor } = shape;
  if (!(ropePositionDivisor > 0 && Number.isFinite(ropePositionDivisor))) {
    throw new Error(`shape.ropePositionDivisor ${ropePositionDivisor}: expected a positive number`);
  }
  if (!(shape.normEps >= 0 && Number.isFinite(shape.normEps))) {
    throw new Error(`shape.normEps ${shape.normEps}: expected zero or a positive number`);
  }
}

function checkLayer(tensors: LayerTensors, shape: ModelShape, layer: number): void {
  const { hiddenSize, ffnSize } = shape;
  const queryColumns = shape.headCount * shape.headDim;
  const qkvColumns = queryColumns + 2 * shape.kvHeadCount * shape.headDim;
  const role = (name: keyof LayerTensors) => `layer ${layer} ${name}`;
  const optional = (name: "attentionOutNorm" | "ffnOutNorm") => {
    const source = tensors[name];
    if (source !== null) checkTensor(role(name), source, [hiddenSize]);
  };
  checkTensor(role("attentionNorm"), tensors.attentionNorm, [hiddenSize]);
  checkParts(role("qkvWeight"), tensors.qkvWeight, [qkvColumns, hiddenSize]);
  if (tensors.qkvBias !== null) checkParts(role("qkvBias"), tensors.qkvBias, [qkvColumns]);
  checkTensor(role("attentionOut"), tensors.attentionOut, [hiddenSize, queryColumns]);
  optional("attentionOutNorm");
  checkTensor(role("ffnNorm"), tensors.ffnNorm, [hiddenSize]);
  checkParts(role("ffnGateUp"), tensors.ffnGateUp, [2 * ffnSize, hiddenSize]);
  checkTensor(role("ffnDown"), tensors.ffnDown, [hiddenSize, ffnSize]);
  optional("ffnOutNorm");
}

/** The rows of all parts together are those of the shape; all else of it each part has. */
function checkParts(role: string, parts: TensorSource[], shape: number[]): void {
  const [rows, ...rest] = shape as [number, ...number[]];
  const found = parts.reduce((sum, part) => sum + (part.shape[0] ?? 0), 0);
  if (found !== rows)
    throw new Error(`tensor ${role}: ${found} rows in ${parts.length} parts, expected ${rows}`);
  for (const part of parts) {
    checkTensor(role, part, [part.shape[0]!, ...rest]);
    if (part.dtype !== parts[0]!.dtype) {
      throw new Error(`tensor ${role}: parts of ${parts[0]!.dtype} and of ${part.dtype}, expected one type`);
    }
  }
}

function checkPresence(
  role: string,
  source: TensorSource | null,
  wanted: boolean,
  where: string,
  shape: number[],
): void {
  if (wanted && source === null) throw new Error(`${role}: missing on ${where}`);
  if (!wanted && source !== null) throw new Error(`${role}: belongs to ${where} only`);
  if (source !== null) checkTensor(role, source, shape);
}

/** Whether the bytes lie in the file is seen by the engine, which opens it. */
function checkTensor(role: string, source: TensorSource, shape: number[]): void {
  const tensor = `tensor ${role} of ${source.file}`;
  checkDType(tensor, source.dtype);
  if (source.shape.length !== shape.length || source.shape.some((size, i) => size !== shape[i])) {
    throw new Error(`${tensor}: expected shape [${shape.join(", ")}], got [${source.shape.join(", ")}]`);
  }
  const byteLength = shape.reduce((product, size) => product * size, dtypeBytes(source.dtype));
  if (source.byteLength !== byteLength) {
    throw new Error(`${tensor}: expected ${byteLength} bytes of ${source.dtype}, got ${source.byteLength}`);
  }
  if (!Number.isSafeInteger(source.byteOffset) || source.byteOffset < 0) {
    throw new Error(`${tensor}: byteOffset ${source.byteOffset} is no file position`);
  }
}

const GROUP_SIZES: readonly number[] = [32, 64, 128, 0];

function checkWeightFormat(name: string, format: WeightFormat | null): void {
  if (format === null) return;
  const { type, groupSize, scales } = format;
  if (type !== "int8" && type !== "int4") {
    throw new Error(`${name}.type ${String(type)}: expected int8 or int4`);
  }
  if (!GROUP_SIZES.includes(groupSize)) {
    throw new Error(`${name}.groupSize ${groupSize}: expected 32, 64, 128 or 0 for a whole row`);
  }
  if (scales !== "absmax" && scales !== "search") {
    throw new Error(`${name}.scales ${String(scales)}: expected absmax or search`);
  }
}

function checkDType(name: string, dtype: DType): void {
  if (dtype !== "float32" && dtype !== "float16" && dtype !== "bfloat16") {
    throw new Error(`${name}: dtype ${String(dtype)}; expected float32, float16 or bfloat16`);
  }
}

/** Shared with the checks of a step. */
export function integerIn(name: string, value: number, min: number, max: number): void {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new Error(`${name} ${value}: expected an integer from ${min} to ${max}`);
  }
}
