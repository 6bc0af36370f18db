/**
 * What placement needs to know of a model: the bytes that the engine will hold, from the checkpoint's
 * tensors and the precision. The workspace repeats what native/model/layer_loop.cc allocates on a CPU (gpu.ts: on a
 * GPU); a test holds every figure of this file against the engine's own.
 */
import { contextRowsOf, type Model, stageTensors } from "../../checkpoint/index.js";
import { maxStepRows } from "../../common/limits.js";
import { layerKvBytesPerToken, matrixBytes, type Precision } from "../../models/quantization.js";
import { dtypeBytes, ffnInputs, type ModelShape, qkvRows } from "../../models/shape.js";
import { gpuBytes } from "./gpu.js";
import { type HeldLayer, type HeldMatrix, heldLayer, vectorSize } from "./layer-tensors.js";
import type { PlacementModel, WorkspaceBytes } from "./placement.js";

/** Rows that pass through a layer together, and rows whose logits exist at the same time. */
const rowTile = 96;
const logitTile = 16;
/** Keys in a tile of attention, and queries of one call. */
const keyTile = 16;
const maxQueries = 32;
/** Four rows of 32 rounded activations with their scales. */
const activationTileBytes = 160;
const float32Bytes = 4;
/**
 * The process around a stage: Node, the engine's code, messages on their way. Measured on workers of one
 * to four stages, 6B-shaped and tiny, after a minute of requests (bench/memory.ts).
 */
const processBytes = 100 * 2 ** 20;

/**
 * Rows of one step that the stages make room for: of a prefix-LM, whose context is read as a whole, one
 * longest context beside what other sequences have in the step.
 */
export function engineRows(model: Pick<Model, "card" | "shape">): number {
  return maxStepRows + contextRowsOf(model);
}

/** @param maxRows Rows of one step. */
export function placementModel(model: Model, precision: Precision, maxRows: number): PlacementModel {
  const { shape } = model;
  const all = { layerBegin: 0, layerEnd: shape.layerCount, embed: true, head: true };
  const { layers, head, prefix, ...ends } = stageTensors(model, all);
  const { embedding, positionEmbedding, blockPositionEmbedding, finalNorm, finalNormBias } = ends;
  const tables = [embedding, positionEmbedding, blockPositionEmbedding].flat();
  const prefixBytes = (prefix?.length ?? 0) * 2 * shape.kvHeadCount * shape.headDim * float32Bytes;
  const headMatrix: HeldMatrix = {
    rows: shape.tokenCount,
    columns: shape.hiddenSize,
    dtype: head![0]!.dtype,
    format: precision.head,
  };
  const headVectors = [finalNorm, finalNormBias].flatMap((norm) =>
    norm === null ? [] : [vectorSize([norm])],
  );
  const held = layers.map((layer) => heldLayer(layer, shape, precision.weights));
  const sizes = held.map((layer) => layerBytes(layer, shape));
  const contextRows = Math.min(contextRowsOf(model), maxRows);
  return {
    layerBytes: sizes.map(({ all }) => all + prefixBytes),
    layerReadBytes: sizes.map(({ read }) => read + prefixBytes),
    embeddingBytes: tables.reduce((sum, table) => sum + (table?.byteLength ?? 0), 0),
    headBytes: vectorBytes(headVectors) + bytesOf(headMatrix),
    layerKvBytesPerToken: layerKvBytesPerToken(shape, precision.kvType),
    workspace: workspaceBytes(shape, precision, maxRows, contextRows),
    processBytes,
    gpu: gpuBytes({ shape, layers: held, head: headMatrix, headVectors, prefix, maxRows, contextRows }),
  };
}

/** All of a layer, and what one token reads of it: of the experts only those that it is sent to. */
function layerBytes(layer: HeldLayer, { experts }: ModelShape): { all: number; read: number } {
  const sum = (matrices: readonly HeldMatrix[]) => matrices.reduce((bytes, one) => bytes + bytesOf(one), 0);
  const shared = sum(layer.matrices) + vectorBytes(layer.vectors);
  const routed = sum(layer.experts);
  const chosen = routed === 0 ? 0 : (routed * experts!.perToken) / experts!.count;
  return { all: shared + routed, read: shared + chosen };
}

function bytesOf({ rows, columns, dtype, format }: HeldMatrix): number {
  return matrixBytes(rows, columns, dtype, format);
}

/** Norms and biases are kept as float32. */
function vectorBytes(sizes: readonly number[]): number {
  return sizes.reduce((sum, size) => sum + size * float32Bytes, 0);
}

function workspaceBytes(
  shape: ModelShape,
  precision: Precision,
  maxRows: number,
  contextRows: number,
): WorkspaceBytes {
  const { hiddenSize, headCount, headDim, tokenCount, ropeDim, experts } = shape;
  const queryColumns = headCount * headDim;
  const ffnSize = Math.max(shape.ffnSize, experts?.sharedFfnSize ?? 0);
  const tile = Math.min(maxRows, rowTile);
  const logitRows = Math.min(maxRows, logitTile);
  // Residual stream, queries, rotations; sequence, slot, what it sees and two positions of every row.
  const stepRow = hiddenSize + queryColumns + ropeDim + 5;
  const inner = ffnInputs(shape.form) + 1;
  const tileRow = 2 * hiddenSize + qkvRows(shape) + queryColumns + inner * ffnSize + expertRow(shape);
  const layerColumns = Math.max(hiddenSize, queryColumns, ffnSize, experts?.ffnSize ?? 0);
  const attention = 2 * keyTile * headDim + maxQueries * (headDim + 2 * keyTile + 2 + keyTile);
  const rounded = (columns: number) => Math.ceil(tile / 4) * Math.ceil(columns / 32) * activationTileBytes;
  const layerRounded = precision.weights === null ? 0 : rounded(layerColumns);
  const lastRounded = precision.head === null ? 0 : rounded(hiddenSize);
  return {
    // The residual stream of a context that is read in slices waits beside the step's.
    stage: (contextRows * hiddenSize + maxRows * stepRow + tile * tileRow) * float32Bytes + layerRounded,
    perThread: (attention + 2 * (experts?.count ?? 0)) * float32Bytes,
    first: maxRows * hiddenSize * dtypeBytes(precision.dtype),
    last: logitRows * (hiddenSize + 2 * tokenCount) * float32Bytes + Math.max(0, lastRounded - layerRounded),
    lastPerThread: 2 * tokenCount * float32Bytes,
    perBlock: 0,
  };
}

/** Float32s of one row of a tile that is routed to experts: what mixExperts takes, and what it gives. */
function expertRow({ hiddenSize, experts }: ModelShape): number {
  if (experts === null) return 0;
  const { count, perToken, ffnSize } = experts;
  // Logits, the gathered row, the inside of one expert, what all chosen ones give, and the choices.
  return count + hiddenSize + 3 * ffnSize + perToken * (hiddenSize + 3) + 1 + hiddenSize;
}
