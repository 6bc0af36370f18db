/** What the engine holds of a layer, whatever it computes on: matrices, and vectors of float32. Pure. */
import type { LayerTensors, TensorSource } from "../../checkpoint/index.js";
import type { WeightFormat } from "../../models/quantization.js";
import type { DType, ModelShape } from "../../models/shape.js";

export interface HeldMatrix {
  rows: number;
  columns: number;
  /** Of the stored weights. */
  dtype: DType;
  /** null: as stored. */
  format: WeightFormat | null;
}

export interface HeldLayer {
  /** Every row passes through them. */
  matrices: HeldMatrix[];
  /** Of all experts, which are of one size. */
  experts: HeldMatrix[];
  /** Values of each norm and bias. */
  vectors: number[];
}

export function heldLayer(layer: LayerTensors, shape: ModelShape, format: WeightFormat | null): HeldLayer {
  const { router, experts, qkvWeight, attentionOut, ffnUp, ffnDown, ...vectors } = layer;
  const { hiddenSize, headCount, headDim } = shape;
  const matrix = (parts: TensorSource[], columns: number | null) => matrixOf(parts, columns, format);
  const down = (parts: TensorSource[]) => matrix(parts, parts.length === 1 ? parts[0]!.shape[1]! : null);
  return {
    matrices: [
      matrix(qkvWeight, hiddenSize),
      matrix(attentionOut, headCount * headDim),
      matrix(ffnUp, hiddenSize),
      down(ffnDown),
      ...(router === null ? [] : [matrixOf([router.weight], hiddenSize, null)]),
    ],
    experts: experts.flatMap((expert) => [matrix(expert.up, hiddenSize), down(expert.down)]),
    vectors: [...Object.values(vectors), router?.bias ?? null].flatMap((parts) =>
      parts === null ? [] : [vectorSize([parts].flat())],
    ),
  };
}

/** Values of a vector that lies in these parts. */
export function vectorSize(parts: readonly TensorSource[]): number {
  return parts.reduce((sum, { shape }) => sum + shape[0]!, 0);
}

/** A matrix of tensors that lie one below the other, or, where they have fewer columns, side by side. */
function matrixOf(parts: TensorSource[], columns: number | null, format: WeightFormat | null): HeldMatrix {
  const [first] = parts as [TensorSource, ...TensorSource[]];
  const { dtype } = first;
  const sideBySide = first.shape[1] !== columns;
  const total = (axis: 0 | 1) => parts.reduce((sum, { shape }) => sum + shape[axis]!, 0);
  const rows = sideBySide ? first.shape[0]! : total(0);
  return { rows, columns: sideBySide ? total(1) : columns!, dtype, format };
}
