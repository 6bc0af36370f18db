/**
 * What a model asks of the hardware: bytes read and operations done, per matrix and row, from its shape and
 * precision. The same for every place where its layers may stand.
 */
import type { PlacementModel } from "../../coordinator/placement/placement.js";
import { layerKvBytesPerToken, matrixBytes, type Precision } from "../../models/quantization.js";
import { type DType, dtypeBytes, ffnInputs, type ModelShape, qkvRows } from "../../models/shape.js";

/** A matrix, or a few that are computed as one. */
export interface MatrixWork {
  bytes: number;
  flopsPerRow: number;
}

/** All experts of a layer: of their weights those are read that some row is sent to. */
export interface ExpertWork extends MatrixWork {
  count: number;
  perToken: number;
}

export interface LayerWork {
  matrices: readonly MatrixWork[];
  experts: ExpertWork | null;
}

export interface SimulatedModel {
  title: string;
  shape: ModelShape;
  precision: Precision;
  placement: PlacementModel;
  /** Rows of a step that stages make room for. */
  maxRows: number;
  contextLength: number;
  /** Its prompts are read as a whole. */
  prefix: boolean;
  layers: readonly LayerWork[];
  head: MatrixWork;
  /** Operations of attention per row and key that it sees, and layer. */
  keyFlops: number;
  kvBytesPerToken: number;
  /** Of a row of activations, between stages. */
  rowBytes: number;
}

export interface ModelFacts {
  title: string;
  shape: ModelShape;
  /** Of the weights as stored. */
  storedType: DType;
  precision: Precision;
  placement: PlacementModel;
  maxRows: number;
  contextLength: number;
  prefix: boolean;
}

export function simulatedModel(facts: ModelFacts): SimulatedModel {
  const { shape, storedType, precision, placement, ...rest } = facts;
  const { hiddenSize, headCount, headDim, tokenCount } = shape;
  const { layerBytes, layerReadBytes = layerBytes } = placement;
  const dense = denseLayer(shape, storedType, precision);
  const routed = routedLayer(shape, storedType, precision);
  return {
    ...rest,
    shape,
    precision,
    placement,
    // Of a layer with experts a step of one row reads less than there is.
    layers: layerBytes.map((bytes, layer) => (layerReadBytes[layer]! < bytes ? routed : dense)),
    head: { bytes: placement.headBytes, flopsPerRow: 2 * tokenCount * hiddenSize },
    keyFlops: 4 * headCount * headDim,
    kvBytesPerToken: layerKvBytesPerToken(shape, precision.kvType),
    rowBytes: hiddenSize * dtypeBytes(precision.dtype),
  };
}

function matrix(rows: number, columns: number, stored: DType, { weights }: Precision): MatrixWork {
  return { bytes: matrixBytes(rows, columns, stored, weights), flopsPerRow: 2 * rows * columns };
}

function attentionMatrices(shape: ModelShape, stored: DType, precision: Precision): MatrixWork[] {
  const { hiddenSize, headCount, headDim } = shape;
  return [
    matrix(qkvRows(shape), hiddenSize, stored, precision),
    matrix(hiddenSize, headCount * headDim, stored, precision),
  ];
}

function feedForward(shape: ModelShape, size: number, stored: DType, precision: Precision): MatrixWork[] {
  return [
    matrix(ffnInputs(shape.form) * size, shape.hiddenSize, stored, precision),
    matrix(shape.hiddenSize, size, stored, precision),
  ];
}

function denseLayer(shape: ModelShape, stored: DType, precision: Precision): LayerWork {
  const matrices = [
    ...attentionMatrices(shape, stored, precision),
    ...feedForward(shape, shape.ffnSize, stored, precision),
  ];
  return { matrices, experts: null };
}

function routedLayer(shape: ModelShape, stored: DType, precision: Precision): LayerWork {
  const { experts, hiddenSize } = shape;
  if (experts === null) return denseLayer(shape, stored, precision);
  const { count, perToken, ffnSize, sharedFfnSize } = experts;
  const one = feedForward(shape, ffnSize, stored, precision);
  const sum = (of: (each: MatrixWork) => number) => one.reduce((total, each) => total + of(each), 0);
  const router = { bytes: count * hiddenSize * dtypeBytes(stored), flopsPerRow: 2 * count * hiddenSize };
  return {
    matrices: [
      ...attentionMatrices(shape, stored, precision),
      router,
      ...feedForward(shape, sharedFfnSize, stored, precision),
    ],
    experts: {
      count,
      perToken,
      bytes: count * sum(({ bytes }) => bytes),
      flopsPerRow: perToken * sum(({ flopsPerRow }) => flopsPerRow),
    },
  };
}
