/** Small files of a model, and their JSON: JSON.parse keeps the last of two equal keys, which is where lies could hide. */
import { readFile, stat } from "node:fs/promises";
import { RelayError } from "../common/errors.js";

/** A whole small file. @throws RelayError invalid_model when it cannot be read or exceeds the limit. */
export async function readModelFile(path: string, maxBytes: number): Promise<Uint8Array> {
  let size: number;
  try {
    const file = await stat(path);
    // Reading a pipe would wait for ever.
    if (!file.isFile()) throw new Error("not a regular file");
    size = file.size;
    if (size <= maxBytes) return await readFile(path);
  } catch (cause) {
    throw new RelayError("invalid_model", `cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  throw new RelayError("invalid_model", `${path} has ${size} bytes, expected at most ${maxBytes}`);
}

/**
 * Parses an object and refuses what is not one, or has a key twice at any depth.
 * @param where Names the file (and part) in messages.
 * @throws RelayError invalid_model
 */
export function parseJsonObject(bytes: Uint8Array, where: string): Record<string, unknown> {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (cause) {
    throw new RelayError("invalid_model", `${where} is not JSON: ${(cause as Error).message}`, { cause });
  }
  if (!isObject(value)) {
    throw new RelayError("invalid_model", `${where} holds no JSON object, expected {...}`);
  }
  const duplicate = duplicateKey(text);
  if (duplicate !== null) {
    throw new RelayError("invalid_model", `${where} has the key "${duplicate}" twice`);
  }
  return value;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The first key that its object holds twice. `text` is known to be valid JSON, so a scan is enough. */
function duplicateKey(text: string): string | null {
  // One entry per open bracket: the keys seen of an object, null for an array.
  const open: (Set<string> | null)[] = [];
  let keyExpected = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === "{") {
      open.push(new Set());
      keyExpected = true;
    } else if (c === "[") {
      open.push(null);
      keyExpected = false;
    } else if (c === "}" || c === "]") {
      open.pop();
      keyExpected = false;
    } else if (c === ",") {
      keyExpected = open.at(-1) !== null;
    } else if (c === '"') {
      const begin = i;
      for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
      const keys = open.at(-1);
      if (!keyExpected || !keys) continue;
      keyExpected = false;
      const key = JSON.parse(text.slice(begin, i + 1)) as string;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return null;
}
