/**
 * Finds the prefix encoder of P-Tuning v2: learned keys and values that every sequence begins with, in each
 * layer, without positions of their own. It lies in the checkpoint, or in a directory as P-Tuning saves it,
 * which holds nothing else.
 * @see Liu et al., "P-Tuning v2" (2021).
 */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import type { DType, ModelShape } from "../models/shape.js";
import { readConfig } from "./config.js";
import type { WeightsFile } from "./safetensors.js";
import { type MergedTensor, readTensors, weightType } from "./tensors.js";

/** Trained ones have up to some hundreds; each slot costs every sequence a place in the KV cache. */
export const maxPrefixLength = 4096;

/** Structurally the checkpoint's TensorSource. */
export interface PrefixTensor {
  file: string;
  byteOffset: number;
  byteLength: number;
  dtype: DType;
  shape: number[];
}

export interface PrefixLinear {
  /** [out, in] */
  weight: PrefixTensor;
  /** [out] */
  bias: PrefixTensor;
}

/**
 * Keys and values of the prefix: row p of the embedding, through the projection where there is one (`out`
 * of the tanh of `hidden`), is [2 L, G, d]: of layer i the keys are in slot 2 i, the values in slot 2 i + 1.
 * Keys are used as they are, without RoPE.
 */
export interface PrefixEncoder {
  /** Slots in front of every sequence; positions of tokens are not shifted by them. */
  length: number;
  /** [length, 2 L G d], or with a projection [length, width] with the width of its first matrix. */
  embedding: PrefixTensor;
  projection: null | { hidden: PrefixLinear; out: PrefixLinear };
}

export interface PrefixRequest {
  /** Of the model. */
  directory: string;
  config: Readonly<Record<string, unknown>>;
  shape: Pick<ModelShape, "layerCount" | "kvHeadCount" | "headDim" | "hiddenSize">;
  merged: ReadonlyMap<string, MergedTensor>;
  /** Directory of the encoder alone; it wins over one in the checkpoint. */
  prefixDirectory: string | null;
}

export interface FoundPrefix {
  encoder: PrefixEncoder;
  /** Files beside the model's, for the fingerprint. */
  files: WeightsFile[];
}

/**
 * @returns null when there is none, or when config.json says with a "pre_seq_len" of 0 that it is not used.
 * @throws RelayError invalid_model naming the file, the tensor, its shape and what was expected.
 */
export async function readPrefixEncoder(request: PrefixRequest): Promise<FoundPrefix | null> {
  const { prefixDirectory } = request;
  if (prefixDirectory === null) {
    const { directory, config, merged } = request;
    const encoder = encoderIn({ directory, config, tensors: namedIn(merged), shape: request.shape });
    return encoder && { encoder, files: [] };
  }
  if (!statSync(prefixDirectory, { throwIfNoEntry: false })?.isDirectory()) {
    fail(prefixDirectory, "is not a directory, expected one with a prefix encoder");
  }
  const { files, merged } = await readTensors(prefixDirectory);
  const config = existsSync(join(prefixDirectory, "config.json")) ? await readConfig(prefixDirectory) : {};
  const tensors = namedIn(merged);
  const encoder = encoderIn({ directory: prefixDirectory, config, tensors, shape: request.shape });
  if (encoder) return { encoder, files };
  if (tensors.size > 0) fail(join(prefixDirectory, "config.json"), '"pre_seq_len" is 0, expected at least 1');
  return fail(
    prefixDirectory,
    `holds no tensor ${prefixes[0]}embedding.weight, expected a directory as P-Tuning v2 saves it`,
  );
}

/** All tensors of an encoder. */
export function prefixTensors({ embedding, projection }: PrefixEncoder): PrefixTensor[] {
  if (projection === null) return [embedding];
  const { hidden, out } = projection;
  return [embedding, hidden.weight, hidden.bias, out.weight, out.bias];
}

/** In front of the encoder's own names: as part of a model, and saved alone. */
const prefixes = ["transformer.prefix_encoder.", "prefix_encoder."] as const;
const ownNames = ["embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"];

/** The encoder's tensors by their own names. */
function namedIn(merged: ReadonlyMap<string, MergedTensor>): Map<string, MergedTensor> {
  const prefix = prefixes.find((candidate) => ownNames.some((name) => merged.has(candidate + name))) ?? "";
  const found = new Map<string, MergedTensor>();
  if (prefix === "") return found;
  for (const name of ownNames) {
    const tensor = merged.get(prefix + name);
    if (tensor) found.set(name, tensor);
  }
  return found;
}

interface Candidate {
  directory: string;
  config: Readonly<Record<string, unknown>>;
  tensors: ReadonlyMap<string, MergedTensor>;
  shape: PrefixRequest["shape"];
}

function encoderIn({ directory, config, tensors, shape }: Candidate): PrefixEncoder | null {
  const path = join(directory, "config.json");
  const written = config.pre_seq_len ?? null;
  if (written !== null && !isLength(written)) {
    fail(
      path,
      `"pre_seq_len" is ${printValue(written)}, expected a whole number from 0 to ${maxPrefixLength}`,
    );
  }
  const length = written as number | null;
  if (length === 0 || (length === null && tensors.size === 0)) return null;

  const { layerCount, kvHeadCount, headDim, hiddenSize } = shape;
  const width = 2 * layerCount * kvHeadCount * headDim;
  const projected = projectionOf(config, tensors, path);
  const matrix = (name: string, rows: number | null, columns: readonly number[]) =>
    source(directory, tensors, name, [rows === null ? null : [rows], columns]);
  const vector = (name: string, size: number) => source(directory, tensors, name, [[size]]);

  // One family's projection begins with the hidden size, the next one's with the width of the whole prefix.
  const embedding = matrix("embedding.weight", length, projected ? [hiddenSize, width] : [width]);
  const rows = embedding.shape[0]!;
  if (rows < 1 || rows > maxPrefixLength) {
    fail(
      embedding.file,
      `has a prefix of ${rows} (tensor ${prefixes[0]}embedding.weight), expected 1 to ${maxPrefixLength}`,
    );
  }
  if (!projected) return { length: rows, embedding, projection: null };
  const linear = (part: string, out: number, columns: number): PrefixLinear => ({
    weight: matrix(`${part}.weight`, out, [columns]),
    bias: vector(`${part}.bias`, out),
  });
  const hidden = linear("trans.0", hiddenSize, embedding.shape[1]!);
  return {
    length: rows,
    embedding,
    projection: { hidden, out: linear("trans.2", width, hiddenSize) },
  };
}

/** By config.json; where it does not say, by the tensors that are there. */
function projectionOf(
  config: Readonly<Record<string, unknown>>,
  tensors: ReadonlyMap<string, MergedTensor>,
  path: string,
): boolean {
  const written = config.prefix_projection ?? null;
  const there = [...tensors.keys()].some((name) => name.startsWith("trans."));
  if (written === null) return there;
  if (typeof written !== "boolean") {
    fail(path, `"prefix_projection" is ${printValue(written)}, expected true or false`);
  }
  if (!written && there) {
    fail(
      path,
      `"prefix_projection" is false, but there is a tensor ${prefixes[0]}trans.0.weight, expected true`,
    );
  }
  return written;
}

/** @param sizes For each dimension the sizes that it may have; null for any. */
function source(
  directory: string,
  tensors: ReadonlyMap<string, MergedTensor>,
  name: string,
  sizes: readonly (readonly number[] | null)[],
): PrefixTensor {
  const tensor = tensors.get(name);
  const full = `${prefixes[0]}${name}`;
  if (!tensor) {
    return fail(
      directory,
      `has no tensor ${full}, expected it for the prefix encoder of its config.json (a "pre_seq_len" of 0 means none)`,
    );
  }
  const [part, ...more] = tensor.parts;
  const { shape } = tensor;
  const fits =
    shape.length === sizes.length && sizes.every((some, axis) => some?.includes(shape[axis]!) ?? true);
  if (!fits || more.length > 0) {
    const expected = sizes.map((some) => some?.join(" or ") ?? "length").join(", ");
    fail(
      part!.file,
      `has tensor ${tensor.name} with shape [${shape.join(", ")}], expected [${expected}] for this model`,
    );
  }
  const { file, byteOffset, byteLength } = part!;
  return { file, byteOffset, byteLength, dtype: weightType(part!), shape };
}

function isLength(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= maxPrefixLength;
}

function fail(where: string, problem: string): never {
  throw new RelayError("invalid_model", `${where}${problem.startsWith('"') ? ":" : ""} ${problem}`);
}
