/**
 * Reads the headers of safetensors files: eight bytes of length, a JSON header, then the tensors'
 * bytes. Only headers come into memory; the engine maps the rest. Every claim of a header is checked
 * against the file, because whoever maps a byte range believes it.
 */
import { type FileHandle, open, stat } from "node:fs/promises";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { isObject, parseJsonObject } from "./json.js";

/** The format's own limit; a longer one is damage or an attack on memory. */
export const maxHeaderBytes = 100_000_000;

export const elementBytes: ReadonlyMap<string, number> = new Map(
  Object.entries({
    BOOL: 1,
    U8: 1,
    I8: 1,
    F8_E5M2: 1,
    F8_E4M3: 1,
    I16: 2,
    U16: 2,
    F16: 2,
    BF16: 2,
    I32: 4,
    U32: 4,
    F32: 4,
    F64: 8,
    I64: 8,
    U64: 8,
  }),
);

export interface TensorEntry {
  name: string;
  /** Path of the file that holds it. */
  file: string;
  /** From the beginning of the file. */
  byteOffset: number;
  byteLength: number;
  /** As written in the header (F32, F16, BF16, I64, ...). */
  dtype: string;
  shape: number[];
}

/** One file of weights, of whatever format. */
export interface WeightsFile {
  file: string;
  byteLength: number;
  /** What tells its tensors, for fingerprints: for safetensors the header's JSON as stored. */
  header: Uint8Array;
  tensors: TensorEntry[];
}

export interface SafetensorsFile extends WeightsFile {
  metadata: Record<string, unknown>;
}

/**
 * Reads and checks the header of one file.
 * @returns Tensors in the order of their bytes.
 * @throws RelayError invalid_model naming file, tensor, value and what was expected.
 */
export function readSafetensors(file: string): Promise<SafetensorsFile> {
  return withFile(file, async (handle, byteLength) => {
    const header = await readHeader(handle, file, byteLength);
    return { file, byteLength, header, ...parseHeader(header, file, byteLength) };
  });
}

/**
 * Opens a file for as long as `read` takes.
 * @throws RelayError invalid_model when it is not there, or not a file: opening a pipe would wait for ever.
 */
export async function withFile<T>(
  file: string,
  read: (handle: FileHandle, byteLength: number) => Promise<T>,
): Promise<T> {
  let handle: FileHandle;
  try {
    if (!(await stat(file)).isFile()) throw new Error("not a regular file");
    handle = await open(file, "r");
  } catch (cause) {
    throw new RelayError("invalid_model", `cannot open ${file}: ${(cause as Error).message}`, { cause });
  }
  try {
    return await read(handle, (await handle.stat()).size);
  } finally {
    await handle.close();
  }
}

async function readHeader(handle: FileHandle, file: string, fileBytes: number): Promise<Uint8Array> {
  if (fileBytes < 8) {
    throw new RelayError("invalid_model", `${file} is truncated: ${fileBytes} bytes, expected at least 8`);
  }
  const prefix = Buffer.alloc(8);
  await readFully(handle, prefix, 0, file);
  const claimed = prefix.readBigUInt64LE();
  if (claimed > BigInt(maxHeaderBytes)) {
    throw new RelayError(
      "invalid_model",
      `${file}: header length is ${claimed} bytes, expected at most ${maxHeaderBytes}`,
    );
  }
  const headerBytes = Number(claimed);
  if (8 + headerBytes > fileBytes) {
    throw new RelayError(
      "invalid_model",
      `${file} is truncated: header length is ${headerBytes} bytes, but only ${fileBytes - 8} bytes follow`,
    );
  }
  const header = Buffer.alloc(headerBytes);
  await readFully(handle, header, 8, file);
  return header;
}

/** Fills `target` from the file; a file that ends early is an error. */
export async function readFully(
  handle: FileHandle,
  target: Uint8Array,
  position: number,
  file: string,
): Promise<void> {
  let done = 0;
  while (done < target.length) {
    const { bytesRead } = await handle.read(target, done, target.length - done, position + done);
    if (bytesRead === 0) {
      throw new RelayError("invalid_model", `${file} ended at byte ${position + done} while it was read`);
    }
    done += bytesRead;
  }
}

function parseHeader(
  header: Uint8Array,
  file: string,
  fileBytes: number,
): Pick<SafetensorsFile, "metadata" | "tensors"> {
  const parsed = parseJsonObject(header, `header of ${file}`);
  const dataBegin = 8 + header.length;
  let metadata: Record<string, unknown> = {};
  const tensors: TensorEntry[] = [];
  for (const [name, value] of Object.entries(parsed)) {
    if (name === "__metadata__") {
      if (!isObject(value)) fail(file, name, "is not an object");
      metadata = value;
    } else {
      tensors.push(parseEntry(name, value, file, dataBegin, fileBytes));
    }
  }
  tensors.sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  checkLayout(tensors, file, dataBegin, fileBytes);
  return { metadata, tensors };
}

function parseEntry(
  name: string,
  value: unknown,
  file: string,
  dataBegin: number,
  fileBytes: number,
): TensorEntry {
  if (!isObject(value)) fail(file, name, "is not an object");
  const { dtype, shape, data_offsets: offsets } = value;
  const size = typeof dtype === "string" ? elementBytes.get(dtype) : undefined;
  if (typeof dtype !== "string" || size === undefined) {
    fail(file, name, `dtype is ${printValue(dtype)}, expected one of ${[...elementBytes.keys()].join(", ")}`);
  }
  if (!isSizes(shape)) fail(file, name, `shape is ${printValue(shape)}, expected whole numbers >= 0`);
  if (!isSizes(offsets) || offsets.length !== 2) {
    fail(file, name, `data_offsets is ${printValue(offsets)}, expected two whole numbers >= 0`);
  }
  const [begin, end] = offsets as [number, number];
  const dataBytes = fileBytes - dataBegin;
  if (begin > end || end > dataBytes) {
    fail(file, name, `data_offsets are [${begin}, ${end}], expected a range within [0, ${dataBytes}]`);
  }
  // A product beyond 2^53 is not exact, but then it is far beyond any file and still unequal.
  const expected = shape.reduce((product, dimension) => product * dimension, size);
  if (end - begin !== expected) {
    fail(
      file,
      name,
      `has ${end - begin} bytes, expected ${expected} for shape [${shape.join(", ")}] of ${dtype}`,
    );
  }
  return { name, file, byteOffset: dataBegin + begin, byteLength: end - begin, dtype, shape };
}

/** Tensors neither overlap nor leave bytes that belong to nobody: the reference reader demands both. */
function checkLayout(tensors: TensorEntry[], file: string, dataBegin: number, fileBytes: number): void {
  let position = dataBegin;
  let previous = "the header";
  for (const tensor of tensors) {
    if (tensor.byteOffset < position) {
      fail(
        file,
        tensor.name,
        `begins at byte ${tensor.byteOffset} and overlaps ${previous}, expected >= ${position}`,
      );
    }
    if (tensor.byteOffset > position) {
      fail(
        file,
        tensor.name,
        `begins at byte ${tensor.byteOffset}, but ${previous} ended at ${position}: the bytes between belong to no tensor`,
      );
    }
    position += tensor.byteLength;
    previous = `tensor ${tensor.name}`;
  }
  if (position !== fileBytes) {
    throw new RelayError(
      "invalid_model",
      `${file} has ${fileBytes} bytes, but its tensors end at byte ${position}`,
    );
  }
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

function fail(file: string, tensor: string, problem: string): never {
  throw new RelayError("invalid_model", `${file}: tensor ${tensor} ${problem}`);
}
