/** Finds the tensors of a checkpoint directory: one file, or shards with their index; safetensors or PyTorch. */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import type { DType } from "../models/shape.js";
import { isObject, parseJsonObject, readModelFile } from "./json.js";
import { maxHeaderBytes, readSafetensors, type TensorEntry, type WeightsFile } from "./safetensors.js";
import { readTorchFile } from "./torch-file.js";

interface Format {
  singleFile: string;
  indexFile: string;
  /** Of the shards that the index names. */
  extension: string;
  read: (file: string) => Promise<WeightsFile>;
}

/** The first that is there is read: many published directories hold the same weights in both formats. */
const formats: readonly Format[] = [
  {
    singleFile: "model.safetensors",
    indexFile: "model.safetensors.index.json",
    extension: ".safetensors",
    read: readSafetensors,
  },
  {
    singleFile: "pytorch_model.bin",
    indexFile: "pytorch_model.bin.index.json",
    extension: ".bin",
    read: readTorchFile,
  },
];

/** A tensor that lies in one or more ranges of bytes. */
export interface MergedTensor {
  name: string;
  /** As the files name it, the same for all parts. */
  dtype: string;
  shape: number[];
  /** Along it the parts follow each other; of no meaning with a single one. */
  axis: 0 | 1;
  /** At least one, each contiguous; other dimensions than `axis` are those of the whole. */
  parts: TensorEntry[];
}

export interface CheckpointTensors {
  files: WeightsFile[];
  /** Those that lie in one piece. */
  tensors: Map<string, TensorEntry>;
  /** All of them, as parts. */
  merged: Map<string, MergedTensor>;
}

/** Whether the directory holds weights in a form that readTensors reads. */
export function hasWeights(directory: string): boolean {
  return formats.some(({ singleFile, indexFile }) =>
    [singleFile, indexFile].some((name) => existsSync(join(directory, name))),
  );
}

/**
 * Reads every header of the checkpoint. A whole file wins over an index, as everywhere else.
 * @throws RelayError invalid_model when nothing is there, or a tensor is in two shards or in none.
 */
export async function readTensors(directory: string): Promise<CheckpointTensors> {
  for (const { singleFile, indexFile, extension, read } of formats) {
    if (existsSync(join(directory, singleFile))) {
      const file = await read(join(directory, singleFile));
      return wholeTensors([file], new Map(file.tensors.map((tensor) => [tensor.name, tensor])));
    }
    if (existsSync(join(directory, indexFile))) return readShards(directory, indexFile, extension, read);
  }
  const expected = formats.flatMap(({ singleFile, indexFile }) => [singleFile, indexFile]);
  const other = readdirSync(directory)
    .sort()
    .find((name) => /\.(safetensors|bin|pt|pth)$/.test(name));
  const found = other ? `; ${other} is there, but no file that says it is the model` : "";
  throw new RelayError(
    "invalid_model",
    `no weights in ${directory}: expected one of ${expected.join(", ")}${found}`,
  );
}

async function readShards(
  directory: string,
  indexFile: string,
  extension: string,
  read: Format["read"],
): Promise<CheckpointTensors> {
  const path = join(directory, indexFile);
  const index = parseJsonObject(await readModelFile(path, maxHeaderBytes), path);
  const weightMap = index.weight_map;
  if (!isObject(weightMap) || Object.keys(weightMap).length === 0) {
    throw new RelayError(
      "invalid_model",
      `${path}: "weight_map" is ${printValue(weightMap)}, expected {tensor: file}`,
    );
  }
  const shards = new Map<string, WeightsFile>();
  const tensors = new Map<string, TensorEntry>();
  for (const shard of new Set(Object.values(weightMap))) {
    // A plain name only: an index must not lead us out of the model's directory.
    if (typeof shard !== "string" || shard !== basename(shard) || !shard.endsWith(extension)) {
      throw new RelayError(
        "invalid_model",
        `${path}: "weight_map" names the file ${printValue(shard)}, expected a ${extension} file of this directory`,
      );
    }
    const file = await read(join(directory, shard));
    shards.set(shard, file);
    for (const tensor of file.tensors) {
      const other = tensors.get(tensor.name);
      if (other) {
        throw new RelayError(
          "invalid_model",
          `tensor ${tensor.name} is in ${other.file} and in ${tensor.file}, expected in one`,
        );
      }
      tensors.set(tensor.name, tensor);
    }
  }
  for (const [name, shard] of Object.entries(weightMap)) {
    const expected = shards.get(shard as string)?.file;
    const tensor = tensors.get(name);
    if (tensor?.file !== expected) {
      const actual = tensor ? `it is in ${tensor.file}` : "it is in no shard";
      throw new RelayError("invalid_model", `${path} puts tensor ${name} into ${expected}, but ${actual}`);
    }
  }
  return wholeTensors([...shards.values()], tensors);
}

function wholeTensors(files: WeightsFile[], tensors: Map<string, TensorEntry>): CheckpointTensors {
  const merged = new Map<string, MergedTensor>();
  for (const [key, tensor] of tensors) {
    const { name, dtype, shape } = tensor;
    merged.set(key, { name, dtype, shape, axis: 0, parts: [tensor] });
  }
  return { files, tensors, merged };
}

const weightTypes: ReadonlyMap<string, DType> = new Map([
  ["F32", "float32"],
  ["F16", "float16"],
  ["BF16", "bfloat16"],
]);

/** The tensor's type as the engine names it. @throws RelayError invalid_model for any other type. */
export function weightType(tensor: TensorEntry): DType {
  const dtype = weightTypes.get(tensor.dtype);
  if (dtype) return dtype;
  throw new RelayError(
    "invalid_model",
    `${tensor.file}: tensor ${tensor.name} has dtype ${tensor.dtype}, expected F32, F16 or BF16`,
  );
}
