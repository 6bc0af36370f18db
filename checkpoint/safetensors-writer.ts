/** Writes safetensors files that the reader, and every other reader of the format, accepts. */
import { open } from "node:fs/promises";

export interface TensorData {
  name: string;
  /** F32, F16, BF16, ... */
  dtype: string;
  shape: number[];
  /** Row-major, little-endian. */
  data: Uint8Array;
}

/**
 * Writes the tensors in the given order. The header is padded with spaces to a multiple of 8, so that
 * the first tensor is aligned for whoever maps the file.
 */
export async function writeSafetensors(
  file: string,
  tensors: TensorData[],
  metadata: Record<string, string> = { format: "pt" },
): Promise<void> {
  const entries: [string, unknown][] = [["__metadata__", metadata]];
  let offset = 0;
  for (const { name, dtype, shape, data } of tensors) {
    entries.push([name, { dtype, shape, data_offsets: [offset, offset + data.length] }]);
    offset += data.length;
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, " ");
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  const handle = await open(file, "w");
  try {
    await handle.writeFile(header);
    for (const { data } of tensors) await handle.writeFile(data);
  } finally {
    await handle.close();
  }
}
