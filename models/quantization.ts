/**
 * How weights are rounded and keys and values are stored: names for people and messages, sizes for plans.
 * Facts of the layout are those of native/quant/format.h; a test holds these sums against the engine's.
 */
import { type DType, dtypeBytes, type ModelShape } from "./shape.js";

/** How keys and values are stored; int8 has one FP16 scale per token and head. */
export type KvType = DType | "int8";
export const kvTypes: readonly KvType[] = ["float32", "float16", "bfloat16", "int8"];

/** Structurally the engine's WeightFormat. */
export interface WeightFormat {
  type: "int8" | "int4";
  /** Weights of a row that share a scale; 0 is the whole row. */
  groupSize: number;
  scales: "absmax" | "search";
}

/** What becomes of the layers' matrices and of the head when they are loaded; null: as stored. */
export interface Quantization {
  weights: WeightFormat | null;
  head: WeightFormat | null;
}

/** Everything beside the model that decides the bits of a result (numerics id, DESIGN.md). */
export interface Precision extends Quantization {
  /** Residual stream and wire. */
  dtype: DType;
  kvType: KvType;
}

export const groupSizes: readonly number[] = [32, 64, 128, 0];
const stored = "stored";

/** "stored", "int8-g32-search", "int4-row-absmax": stands in messages between processes and in the numerics id. */
export function formatName(format: WeightFormat | null): string {
  if (format === null) return stored;
  const group = format.groupSize === 0 ? "row" : `g${format.groupSize}`;
  return `${format.type}-${group}-${format.scales}`;
}

/** The format with this name; undefined when there is none. */
export function parseFormatName(name: string): WeightFormat | null | undefined {
  if (name === stored) return null;
  const match = /^(int[48])-(?:g(32|64|128)|row)-(absmax|search)$/.exec(name);
  if (match === null) return undefined;
  const [, type, group, scales] = match;
  return { type, groupSize: Number(group ?? 0), scales } as WeightFormat;
}

const stripRows = 32;
const tileColumns = 32;
const scaleLineBytes = stripRows * 2;
const tileBytes = { int4: (stripRows * tileColumns) / 2, int8: stripRows * tileColumns };

/**
 * Bytes of a matrix [rows, columns] in the engine's memory: strips of 32 rows, in the stored type or as
 * tiles of 32 columns with a line of scales per group.
 */
export function matrixBytes(
  rows: number,
  columns: number,
  dtype: DType,
  format: WeightFormat | null,
): number {
  const strips = Math.ceil(rows / stripRows);
  if (format === null) return strips * stripRows * columns * dtypeBytes(dtype);
  const tiles = Math.ceil(columns / tileColumns);
  const groups = format.groupSize === 0 ? 1 : Math.ceil((tiles * tileColumns) / format.groupSize);
  return strips * (groups * scaleLineBytes + tiles * tileBytes[format.type]);
}

/** Bytes of keys and values that one token needs in one layer. */
export function layerKvBytesPerToken(shape: ModelShape, kvType: KvType): number {
  const headBytes = kvType === "int8" ? shape.headDim + 2 : shape.headDim * dtypeBytes(kvType);
  return 2 * shape.kvHeadCount * headBytes;
}
