/** What a stage's configuration must fulfil before the engine, which trusts it, sees it. */

import type {
  DType,
  ExpertShape,
  LayerTensors,
  ModelShape,
  PrefixTensors,
  StageConfig,
  TensorSource,
  WeightCacheOptions,
  WeightFormat,
} from "./index.js";

/** Attention visits keys in tiles of 16 positions (CANON.md), and a tile lies in one block. */
const KEY_TILE = 16;
/** Row counts, columns and positions are 32-bit in the engine. */
const INT_MAX = 2 ** 31 - 1;
/** More threads than any machine has cores: a typing error, not a wish. */
const THREADS_MAX = 1024;
/** Of a layer; the largest GLM has 160. */
const EXPERTS_MAX = 4096;
/** The engine keeps the chosen groups in the bits of one word. */
const EXPERT_GROUPS_MAX = 64;
/** Slots of a prefix encoder in front of every sequence. */
const PREFIX_MAX = 4096;

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
  integerIn("contextRows", config.contextRows, 0, config.maxRows);
  integerIn("threads", config.threads, 1, THREADS_MAX);
  if (config.cpus != null && config.cpus.length !== config.threads)
    throw new Error(
      `cpus: ${config.cpus.length} of them, expected one for each of ${config.threads} threads`,
    );

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
  checkPresence("finalNorm", config.finalNorm && [config.finalNorm], isLast, "the last stage", [
    shape.hiddenSize,
  ]);
  checkPresence("head", config.head, isLast, "the last stage", vocabulary);
  if (config.finalNorm !== null) checkNorm("finalNorm", config.finalNorm, config.finalNormBias, shape);
  for (const name of ["positionEmbedding", "blockPositionEmbedding"] as const) {
    const table = config[name];
    if (table === null) continue;
    if (config.embedding === null) throw new Error(`${name}: belongs to the first stage only`);
    // Block positions count from one behind the context.
    checkTensor(name, table, [Math.max(shape.maxPositions + 1, table.shape[0] ?? 0), shape.hiddenSize]);
  }
  if (config.prefix !== null) checkPrefix(config.prefix, shape);
}

/** @throws Error that names the field. */
export function checkWeightCache({ directory, maxBytes, fingerprint }: WeightCacheOptions): void {
  if (directory === "") throw new Error("cache.directory: empty, expected a directory");
  if (fingerprint === "") throw new Error("cache.fingerprint: empty, expected that of the checkpoint");
  integerIn("cache.maxBytes", maxBytes, 1, Number.MAX_SAFE_INTEGER);
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
  const { form, experts } = shape;
  oneOf("shape.form.norm", form.norm, ["rms", "layer"]);
  oneOf("shape.form.residual", form.residual, ["stream", "normed"]);
  oneOf("shape.form.ropePairs", form.ropePairs, ["adjacent", "halves"]);
  oneOf("shape.form.ffn", form.ffn, ["gatedSilu", "gelu", "gatedGelu"]);
  integerIn("shape.form.ropeAxes", form.ropeAxes, 1, 2);
  if (!(form.residualScale > 0 && Number.isFinite(form.residualScale))) {
    throw new Error(`shape.form.residualScale ${form.residualScale}: expected a positive number`);
  }
  const unit = 2 * form.ropeAxes;
  if (shape.ropeDim % unit !== 0) {
    throw new Error(`shape.ropeDim ${shape.ropeDim}: expected a multiple of ${unit}`);
  }
  if (experts !== null) checkExperts(experts);
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

function checkExperts(experts: ExpertShape): void {
  const { count, perToken, groups, groupsPerToken, scale } = experts;
  integerIn("shape.experts.count", count, 1, EXPERTS_MAX);
  integerIn("shape.experts.groups", groups, 1, EXPERT_GROUPS_MAX);
  integerIn("shape.experts.groupsPerToken", groupsPerToken, 1, groups);
  if (count % groups !== 0) {
    throw new Error(`shape.experts.count ${count}: expected a multiple of the ${groups} groups`);
  }
  integerIn("shape.experts.perToken", perToken, 1, (count / groups) * groupsPerToken);
  integerIn("shape.experts.ffnSize", experts.ffnSize, 1, INT_MAX);
  integerIn("shape.experts.sharedFfnSize", experts.sharedFfnSize, 1, INT_MAX);
  if (!Number.isFinite(scale)) throw new Error(`shape.experts.scale ${scale}: expected a number`);
}

function oneOf(name: string, value: string, allowed: string[]): void {
  if (!allowed.includes(value)) throw new Error(`${name} ${value}: expected ${allowed.join(", ")}`);
}

type OptionalTensor = {
  [K in keyof LayerTensors]: LayerTensors[K] extends TensorSource | null ? K : never;
}[keyof LayerTensors];
type TensorList = {
  [K in keyof LayerTensors]: LayerTensors[K] extends TensorSource[] | null ? K : never;
}[keyof LayerTensors];

function checkLayer(tensors: LayerTensors, shape: ModelShape, layer: number): void {
  const { hiddenSize, headDim, form, experts } = shape;
  const queryColumns = shape.headCount * headDim;
  const qkvColumns = queryColumns + 2 * shape.kvHeadCount * headDim;
  const hasExperts = tensors.router !== null;
  const ffnSize = hasExperts ? (experts?.sharedFfnSize ?? 0) : shape.ffnSize;
  const inner = form.ffn === "gelu" ? ffnSize : 2 * ffnSize;
  const role = (name: string) => `layer ${layer} ${name}`;
  const one = (name: OptionalTensor, size: number) => {
    const source = tensors[name];
    if (source !== null) checkTensor(role(name), source, [size]);
  };
  const parts = (name: TensorList, ...size: number[]) => {
    const list = tensors[name];
    if (list !== null) checkParts(role(name), list, size);
  };
  checkNorm(role("attentionNorm"), tensors.attentionNorm, tensors.attentionNormBias, shape);
  parts("qkvWeight", qkvColumns, hiddenSize);
  parts("qkvBias", qkvColumns);
  one("queryNorm", headDim);
  one("keyNorm", headDim);
  parts("attentionOut", hiddenSize, queryColumns);
  parts("attentionOutBias", hiddenSize);
  one("attentionOutNorm", hiddenSize);
  checkNorm(role("ffnNorm"), tensors.ffnNorm, tensors.ffnNormBias, shape);
  parts("ffnUp", inner, hiddenSize);
  parts("ffnUpBias", inner);
  parts("ffnDown", hiddenSize, ffnSize);
  parts("ffnDownBias", hiddenSize);
  one("ffnOutNorm", hiddenSize);
  const expected = hasExperts ? (experts?.count ?? 0) : 0;
  if (hasExperts && experts === null) throw new Error(`${role("router")}: the shape has no experts`);
  if (tensors.experts.length !== expected) {
    throw new Error(`${role("experts")}: expected ${expected}, got ${tensors.experts.length}`);
  }
  if (tensors.router === null || experts === null) return;
  checkTensor(role("router weight"), tensors.router.weight, [experts.count, hiddenSize]);
  checkTensor(role("router bias"), tensors.router.bias, [experts.count]);
  tensors.experts.forEach(({ up, down }, i) => {
    checkParts(role(`expert ${i} up`), up, [2 * experts.ffnSize, hiddenSize]);
    checkParts(role(`expert ${i} down`), down, [hiddenSize, experts.ffnSize]);
  });
}

function checkNorm(role: string, weight: TensorSource, bias: TensorSource | null, shape: ModelShape): void {
  checkTensor(role, weight, [shape.hiddenSize]);
  if ((bias !== null) !== (shape.form.norm === "layer")) {
    throw new Error(`tensor ${role}: expected a bias with LayerNorm, and none with RMSNorm`);
  }
  if (bias !== null) checkTensor(`${role}Bias`, bias, [shape.hiddenSize]);
}

/** Parts have the rows of the shape together and all else of it each; or all rows each, and the columns together. */
function checkParts(role: string, parts: TensorSource[], shape: number[]): void {
  if (parts.length === 1) {
    checkTensor(role, parts[0]!, shape);
    return;
  }
  const [rows, ...rest] = shape as [number, ...number[]];
  const [columns] = rest;
  const sideBySide =
    columns !== undefined && parts.length > 0 && parts.every((part) => part.shape[0] === rows);
  const axis = sideBySide ? 1 : 0;
  const found = parts.reduce((sum, part) => sum + (part.shape[axis] ?? 0), 0);
  const expected = sideBySide ? columns : rows;
  if (found !== expected) {
    const what = sideBySide ? "columns" : "rows";
    throw new Error(`tensor ${role}: ${found} ${what} in ${parts.length} parts, expected ${expected}`);
  }
  for (const part of parts) {
    checkTensor(role, part, sideBySide ? [rows, part.shape[1] ?? 0] : [part.shape[0]!, ...rest]);
    if (part.dtype !== parts[0]!.dtype) {
      throw new Error(`tensor ${role}: parts of ${parts[0]!.dtype} and of ${part.dtype}, expected one type`);
    }
  }
}

function checkPrefix(prefix: PrefixTensors, shape: ModelShape): void {
  const { length, embedding, hidden, out } = prefix;
  integerIn("prefix.length", length, 1, PREFIX_MAX);
  const columns = 2 * shape.layerCount * shape.kvHeadCount * shape.headDim;
  if (hidden === null || out === null) {
    if (hidden !== out) throw new Error("prefix: expected both of hidden and out, or none");
    checkTensor("prefix embedding", embedding, [length, columns]);
    return;
  }
  const inner = hidden.weight.shape[0] ?? 0;
  const outer = embedding.shape[1] ?? 0;
  checkTensor("prefix embedding", embedding, [length, outer]);
  checkTensor("prefix hidden weight", hidden.weight, [inner, outer]);
  checkTensor("prefix hidden bias", hidden.bias, [inner]);
  checkTensor("prefix out weight", out.weight, [columns, inner]);
  checkTensor("prefix out bias", out.bias, [columns]);
}

function checkPresence(
  role: string,
  parts: TensorSource[] | null,
  wanted: boolean,
  where: string,
  shape: number[],
): void {
  if (wanted && parts === null) throw new Error(`${role}: missing on ${where}`);
  if (!wanted && parts !== null) throw new Error(`${role}: belongs to ${where} only`);
  if (parts !== null) checkParts(role, parts, shape);
}

/** Whether the bytes lie in the file is seen by the engine, which opens it. */
function checkTensor(role: string, source: TensorSource, shape: number[]): void {
  const tensor = `tensor ${role} of ${source.file}`;
  checkDType(tensor, source.dtype);
  if (source.shape.length !== shape.length || source.shape.some((size, i) => size !== shape[i])) {
    throw new Error(`${tensor}: expected shape [${shape.join(", ")}], got [${source.shape.join(", ")}]`);
  }
  if (shape.some((size) => size < 1)) {
    throw new Error(`${tensor}: shape [${shape.join(", ")}], expected at least 1 everywhere`);
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
