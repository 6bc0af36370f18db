/** Writes safetensors files that the reader, and every other reader of the format, accepts. */
import { type FileHandle, open } from "node:fs/promises";
import { elementBytes } from "./safetensors.js";

export interface TensorData {
  name: string;
  /** F32, F16, BF16, ... */
  dtype: string;
  shape: number[];
  /** Row-major, little-endian. */
  data: Uint8Array;
}

/** A tensor that should not lie in memory at once: its bytes come piece by piece while it is written. */
export interface TensorPieces extends Omit<TensorData, "data"> {
  data: Iterable<Uint8Array>;
}

/**
 * Writes the tensors in the given order, a piece at a time. The header is padded with spaces to a
 * multiple of 8, so that the first tensor is aligned for whoever maps the file.
 * @throws Error when a tensor's data is not as long as its shape says; the file is then of no use.
 */
export async function writeSafetensors(
  file: string,
  tensors: (TensorData | TensorPieces)[],
  metadata: Record<string, string> = { format: "pt" },
): Promise<void> {
  const entries: [string, unknown][] = [["__metadata__", metadata]];
  let offset = 0;
  for (const { name, dtype, shape } of tensors) {
    const end = offset + byteLength(name, dtype, shape);
    entries.push([name, { dtype, shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, " ");
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  const handle = await open(file, "w");
  try {
    await handle.writeFile(header);
    for (const tensor of tensors) await writeData(handle, tensor);
  } finally {
    await handle.close();
  }
}

async function writeData(handle: FileHandle, tensor: TensorData | TensorPieces): Promise<void> {
  const { name, dtype, shape, data } = tensor;
  let written = 0;
  for (const piece of data instanceof Uint8Array ? [data] : data) {
    await handle.writeFile(piece);
    written += piece.length;
  }
  const expected = byteLength(name, dtype, shape);
  if (written !== expected) {
    throw new Error(`tensor ${name} has ${written} bytes, expected ${expected} for its shape`);
  }
}

function byteLength(name: string, dtype: string, shape: readonly number[]): number {
  const size = elementBytes.get(dtype);
  if (size === undefined) {
    throw new Error(`tensor ${name} has dtype ${dtype}, which the format does not know`);
  }
  return shape.reduce((product, dimension) => product * dimension, size);
}
