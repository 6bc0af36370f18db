/** Rounded weights, activations and heads by CANON.md, and products with them. */
import type { WeightFormat } from "../../../native/index.js";
import { f32, fma, half, roundEven, treeSum } from "./numbers.js";

const tile = 32;

/** [rows, columns] as integers with a scale per weight group. */
export interface RoundedMatrix {
  rows: number;
  columns: number;
  groupSize: number;
  values: Int8Array;
  scales: Float32Array;
}

interface Range {
  low: number;
  high: number;
  top: number;
}

function squaredError(group: Float32Array, scale: number, range: Range): number {
  const lanes = new Float32Array(16);
  const inverse = inverseOf(scale);
  for (let i = 0; i < group.length; i++) {
    const error = f32(group[i]! - f32(integerOf(group[i]!, inverse, range) * scale));
    lanes[i % 16] = lanes[i % 16]! + f32(error * error);
  }
  return treeSum(lanes);
}

const inverseOf = (scale: number): number => (scale === 0 ? 0 : f32(1 / scale));

function integerOf(weight: number, inverse: number, { low, high }: Range): number {
  const value = roundEven(f32(weight * inverse));
  return value < low ? low : value > high ? high : value;
}

function scaleOf(group: Float32Array, range: Range, scales: WeightFormat["scales"]): number {
  const magnitude = group.reduce((most, w) => Math.max(most, Math.abs(w)), 0);
  let best = half(f32(magnitude / range.high));
  if (scales === "absmax") return best;
  const dominant = group.includes(magnitude) ? magnitude : -magnitude;
  let error = squaredError(group, best, range);
  for (let i = -8; i <= 4; i++) {
    const scale = half(f32(-dominant / f32(range.top * (1 + i / 32))));
    const candidate = squaredError(group, scale, range);
    if (candidate < error) {
      error = candidate;
      best = scale;
    }
  }
  return best;
}

export function roundMatrix(
  weights: Float32Array,
  rows: number,
  columns: number,
  format: WeightFormat,
): RoundedMatrix {
  const range = format.type === "int4" ? { low: -8, high: 7, top: 8 } : { low: -127, high: 127, top: 127 };
  const groupSize = format.groupSize === 0 ? columns : format.groupSize;
  const groups = Math.ceil(columns / groupSize);
  const matrix = {
    rows,
    columns,
    groupSize,
    values: new Int8Array(rows * columns),
    scales: new Float32Array(rows * groups),
  };
  for (let row = 0; row < rows; row++) {
    for (let group = 0; group < groups; group++) {
      const begin = row * columns + group * groupSize;
      const count = Math.min(groupSize, columns - group * groupSize);
      const part = weights.subarray(begin, begin + count);
      const scale = scaleOf(part, range, format.scales);
      matrix.scales[row * groups + group] = scale;
      const inverse = inverseOf(scale);
      for (let i = 0; i < count; i++) matrix.values[begin + i] = integerOf(part[i]!, inverse, range);
    }
  }
  return matrix;
}

/** The weights that the rounded ones stand for; exact in float32. */
export function restoreMatrix({ rows, columns, groupSize, values, scales }: RoundedMatrix): Float32Array {
  const groups = Math.ceil(columns / groupSize);
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const row = Math.floor(i / columns);
    return values[i]! * scales[row * groups + Math.floor((i % columns) / groupSize)]!;
  });
}

interface RoundedRow {
  values: Int8Array;
  scales: Float32Array;
}

function roundActivations(x: Float32Array): RoundedRow {
  const scales = new Float32Array(Math.ceil(x.length / tile));
  const values = new Int8Array(x.length);
  for (let group = 0; group < scales.length; group++) {
    const part = x.subarray(group * tile, (group + 1) * tile);
    const magnitude = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    if (magnitude < 2 ** -100) continue;
    scales[group] = f32(magnitude / 127);
    const inverse = f32(127 / magnitude);
    for (let i = 0; i < part.length; i++) values[group * tile + i] = roundEven(f32(part[i]! * inverse));
  }
  return { values, scales };
}

/** x times the matrix, activations rounded. */
export function roundedProduct(x: Float32Array, matrix: RoundedMatrix): Float32Array {
  const { rows, columns, groupSize, values, scales } = matrix;
  const groups = Math.ceil(columns / groupSize);
  const input = roundActivations(x);
  const y = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let begin = 0; begin < columns; begin += tile) {
      const end = Math.min(columns, begin + tile);
      let dot = 0;
      for (let k = begin; k < end; k++) dot += input.values[k]! * values[row * columns + k]!;
      const weightScale = scales[row * groups + Math.floor(begin / groupSize)]!;
      sum = fma(dot, f32(weightScale * input.scales[begin / tile]!), sum);
    }
    y[row] = sum;
  }
  return y;
}

/** A key or value of one head as it comes back from an INT8 cache. */
export function roundHead(head: Float32Array): Float32Array {
  const magnitude = head.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const scale = half(f32(magnitude / 127));
  const inverse = scale === 0 ? 0 : f32(1 / scale);
  return head.map((x) => roundEven(Math.min(Math.max(f32(x * inverse), -127), 127)) * scale);
}
