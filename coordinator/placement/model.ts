/**
 * What placement needs to know of a model: the bytes that the engine will hold, from the checkpoint's
 * tensors and the precision. The workspace repeats what native/model/layer_loop.cc allocates; a test
 * holds every figure of this file against the engine's own.
 */
import { type LayerTensors, type Model, stageTensors, type TensorSource } from "../../checkpoint/index.js";
import {
  layerKvBytesPerToken,
  matrixBytes,
  type Precision,
  type WeightFormat,
} from "../../models/quantization.js";
import { dtypeBytes, type ModelShape, qkvRows } from "../../models/shape.js";
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

/** @param maxRows Rows of one step. */
export function placementModel(model: Model, precision: Precision, maxRows: number): PlacementModel {
  const { shape } = model;
  const all = { layerBegin: 0, layerEnd: shape.layerCount, embed: true, head: true };
  const { layers, embedding, finalNorm, head } = stageTensors(model, all);
  const headRows = shape.tokenCount;
  return {
    layerBytes: layers.map((layer) => layerBytes(layer, precision.weights)),
    embeddingBytes: embedding!.byteLength,
    headBytes: vectorBytes(finalNorm!) + matrixBytes(headRows, shape.hiddenSize, head!.dtype, precision.head),
    layerKvBytesPerToken: layerKvBytesPerToken(shape, precision.kvType),
    workspace: workspaceBytes(shape, precision, maxRows),
    processBytes,
  };
}

function layerBytes(layer: LayerTensors, format: WeightFormat | null): number {
  return Object.values(layer).reduce((sum, tensor) => sum + tensorBytes([tensor ?? []].flat(), format), 0);
}

/** A matrix or vector with the rows of all parts. */
function tensorBytes(parts: readonly TensorSource[], format: WeightFormat | null): number {
  const [first] = parts;
  if (first === undefined) return 0;
  const rows = parts.reduce((sum, { shape }) => sum + shape[0]!, 0);
  const columns = first.shape[1];
  return columns === undefined ? rows * float32Bytes : matrixBytes(rows, columns, first.dtype, format);
}

/** Norms and biases are kept as float32. */
function vectorBytes({ shape }: TensorSource): number {
  return shape[0]! * float32Bytes;
}

function workspaceBytes(shape: ModelShape, precision: Precision, maxRows: number): WorkspaceBytes {
  const { hiddenSize, ffnSize, headCount, headDim, tokenCount, ropeDim } = shape;
  const queryColumns = headCount * headDim;
  const tile = Math.min(maxRows, rowTile);
  const logitRows = Math.min(maxRows, logitTile);
  // Residual stream, queries, rotations, sequence and position of every row; then one tile's activations.
  const stepRow = hiddenSize + queryColumns + ropeDim + 2;
  const tileRow = 2 * hiddenSize + qkvRows(shape) + queryColumns + 3 * ffnSize;
  const layerColumns = Math.max(hiddenSize, queryColumns, ffnSize);
  const attention = 2 * keyTile * headDim + maxQueries * (headDim + 2 * keyTile + 2 + keyTile);
  const rounded = (columns: number) => Math.ceil(tile / 4) * Math.ceil(columns / 32) * activationTileBytes;
  const layerRounded = precision.weights === null ? 0 : rounded(layerColumns);
  const lastRounded = precision.head === null ? 0 : rounded(hiddenSize);
  return {
    stage: (maxRows * stepRow + tile * tileRow) * float32Bytes + layerRounded,
    perThread: attention * float32Bytes,
    first: maxRows * hiddenSize * dtypeBytes(precision.dtype),
    last: logitRows * (hiddenSize + 2 * tokenCount) * float32Bytes + Math.max(0, lastRounded - layerRounded),
    lastPerThread: 2 * tokenCount * float32Bytes,
  };
}
