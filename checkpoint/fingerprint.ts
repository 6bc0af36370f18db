/** One hash that tells whether two processes see the same model. */
import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import type { ModelCard } from "../models/card.js";
import type { ModelShape } from "../models/shape.js";
import { readFully, type WeightsFile } from "./safetensors.js";

const sampleBytes = 4096;

interface ByteRange {
  file: string;
  byteOffset: number;
  byteLength: number;
}

/**
 * SHA-256 over the family, the shape (with the number of tokens), the overridden fields of config.json, every file's header (of a
 * PyTorch file the list of its tensors), and the first and last 4 KiB of each tensor in use; the card's
 * rules leave no other choice. Hashing all 13 GB of a 6B model would cost a minute at every start; a
 * checkpoint that was trained on, quantized or cut off differs at the ends of its tensors too. Paths and
 * file names do not enter.
 */
export async function fingerprintOf(
  card: ModelCard,
  shape: ModelShape,
  /** As overridesText writes them. */
  overrides: string,
  files: WeightsFile[],
  tensors: ByteRange[],
): Promise<string> {
  const hash = createHash("sha256");
  hash.update(JSON.stringify([card.family, shape, ...(overrides === "" ? [] : [overrides])]));
  for (const { header } of [...files].sort((a, b) => Buffer.compare(a.header, b.header))) hash.update(header);

  const handles = new Map<string, FileHandle>();
  const sample = Buffer.alloc(sampleBytes);
  try {
    for (const { file, byteOffset, byteLength } of tensors) {
      let handle = handles.get(file);
      if (!handle) {
        handle = await open(file, "r");
        handles.set(file, handle);
      }
      const part = sample.subarray(0, Math.min(sampleBytes, byteLength));
      for (const begin of [byteOffset, byteOffset + byteLength - part.length]) {
        await readFully(handle, part, begin, file);
        hash.update(part);
      }
    }
  } finally {
    await Promise.all([...handles.values()].map((handle) => handle.close()));
  }
  return hash.digest("hex");
}
