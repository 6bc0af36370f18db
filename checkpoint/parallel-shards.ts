/**
 * Reads the shards of a tensor-parallel checkpoint (GLM-130B and GLM-10B as DeepSpeed saved them): a file per
 * rank, each with a part of every matrix under the matrix's own name. Nothing is copied: a merged tensor is a
 * list of byte ranges, as the family's layout (models/shards.ts) puts them together.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { type ShardLayout, type ShardMerge, shardLayouts } from "../models/shards.js";
import { readModelFile } from "./json.js";
import { checkReplicas } from "./replicas.js";
import { elementBytes, type TensorEntry, type WeightsFile } from "./safetensors.js";
import type { CheckpointTensors, MergedTensor } from "./tensors.js";
import { readTorchFile } from "./torch-file.js";

/** GLM-130B was published for 8; its authors cut it for up to 32 GPUs. */
export const maxRanks = 256;
/** Of all ranks together; GLM-130B's 8 have some 7,000. */
export const maxShardTensors = 200_000;

/** As DeepSpeed names them: two digits, or more where two are not enough. */
const rankFile = /^mp_rank_(\d\d|[1-9]\d\d)_model_states\.pt$/;
/** Hold the name of the folder that was saved last. */
const latestFiles = ["latest", "latest_checkpointed_iteration.txt"];
const maxLatestBytes = 4096;
/** Key of the state dict beside what training wrote. */
const stateDictKey = "module";

export interface ParallelShards {
  /** Where the files lie. */
  directory: string;
  layout: ShardLayout;
  /** In the order of their ranks; all hold tensors of the same names, types and shapes. */
  ranks: WeightsFile[];
}

/**
 * Reads the headers of all ranks.
 * @returns null when the directory holds no such shards.
 * @throws RelayError invalid_model for a missing rank, ranks that differ, quantized shards and other families.
 */
export async function readParallelShards(directory: string): Promise<ParallelShards | null> {
  const folder = await shardFolder(directory);
  if (folder === null) return null;
  const files = rankFiles(folder);
  const ranks: WeightsFile[] = [];
  for (const file of files) {
    const rank = await readTorchFile(file, stateDictKey);
    ranks.push(rank);
    if (rank.tensors.length * files.length > maxShardTensors) {
      const most = Math.floor(maxShardTensors / files.length);
      fail(
        file,
        `has ${rank.tensors.length} tensors, expected at most ${most} in each of ${files.length} shards`,
      );
    }
    checkAlike(ranks[0]!, rank);
  }
  checkQuantized(ranks[0]!);
  return { directory: folder, layout: layoutOf(ranks[0]!), ranks };
}

/** The tensors put together, and what has no place in the layout. */
export interface MergedShards extends CheckpointTensors {
  /** Names without a rule, which are left out. */
  unknown: string[];
}

/** @throws RelayError invalid_model for a shape that cannot be cut, and for copies that differ. */
export async function mergeShards({ layout, ranks }: ParallelShards): Promise<MergedShards> {
  const merged = new Map<string, MergedTensor>();
  const tensors = new Map<string, TensorEntry>();
  const unknown: string[] = [];
  const replicas: TensorEntry[][] = [];
  const byRank = ranks.map((rank) => new Map(rank.tensors.map((tensor) => [tensor.name, tensor])));
  for (const { name } of ranks[0]!.tensors) {
    const merge = mergeOf(layout, name);
    const shards = byRank.map((rank) => rank.get(name)!);
    if (merge === undefined) unknown.push(name);
    if (merge === undefined || merge.kind === "ignored") continue;
    if (merge.kind === "replicated") replicas.push(shards);
    const tensor = merge.kind === "replicated" ? whole(shards[0]!) : concatenated(shards, merge);
    merged.set(name, tensor);
    if (tensor.parts.length === 1) tensors.set(name, tensor.parts[0]!);
  }
  await checkReplicas(replicas, ranks);
  return { files: ranks, tensors, merged, unknown };
}

/** @returns null when there is neither a rank's file nor one that names a folder with them. */
async function shardFolder(directory: string): Promise<string | null> {
  const holdsRanks = (folder: string) => readdirSync(folder).some((name) => rankFile.test(name));
  if (holdsRanks(directory)) return directory;
  const path = latestFiles.map((name) => join(directory, name)).find((file) => existsSync(file));
  if (path === undefined) return null;
  const name = Buffer.from(await readModelFile(path, maxLatestBytes))
    .toString("utf8")
    .trim();
  // A plain name only: the file must not lead us out of the model's directory.
  if (!/^\w[\w.-]*$/.test(name)) {
    fail(path, `holds ${printValue(name)}, expected the name of a folder beside it`);
  }
  const folder = join(directory, name);
  const isFolder = statSync(folder, { throwIfNoEntry: false })?.isDirectory() ?? false;
  if (isFolder && holdsRanks(folder)) return folder;
  return fail(path, `names ${printValue(name)}, expected a folder with mp_rank_00_model_states.pt`);
}

/** The files in the order of their ranks. */
function rankFiles(folder: string): string[] {
  const found = new Map<number, string>();
  for (const name of readdirSync(folder)) {
    const rank = rankFile.exec(name)?.[1];
    if (rank !== undefined) found.set(Number(rank), join(folder, name));
  }
  const highest = Math.max(...found.keys());
  if (highest >= maxRanks) fail(folder, `has a shard of rank ${highest}, expected fewer than ${maxRanks}`);
  return Array.from({ length: highest + 1 }, (_, rank) => {
    const file = found.get(rank);
    if (file !== undefined) return file;
    const name = `mp_rank_${String(rank).padStart(2, "0")}_model_states.pt`;
    return fail(
      folder,
      `has no ${name}, expected one for every rank up to that of ${basename(found.get(highest)!)}`,
    );
  });
}

function checkAlike(first: WeightsFile, other: WeightsFile): void {
  const tensors = new Map(other.tensors.map((tensor) => [tensor.name, tensor]));
  for (const { name, dtype, shape } of first.tensors) {
    const tensor = tensors.get(name);
    if (!tensor) fail(other.file, `has no tensor ${name}, expected the names of ${first.file}`);
    const [expected, found] = [printType(dtype, shape), printType(tensor.dtype, tensor.shape)];
    if (found !== expected) {
      fail(other.file, `has tensor ${name} as ${found}, expected ${expected} as in ${first.file}`);
    }
    tensors.delete(name);
  }
  for (const name of tensors.keys()) {
    fail(other.file, `has tensor ${name}, which ${first.file} does not have, expected the same names`);
  }
}

/** Their column-split matrices have a scale per row and shard, so that no plain concatenation is right. */
function checkQuantized({ file, tensors }: WeightsFile): void {
  const scale = tensors.find(({ name }) => name.endsWith("_scale"));
  const small = tensors.find(({ name, dtype }) => name.endsWith(".weight") && dtype === "I8");
  const found = scale?.name ?? small?.name;
  if (found === undefined) return;
  fail(
    file,
    `has tensor ${found}: quantized shards are not read yet, expected the FP16 ones (--quantization int4 rounds them when they are loaded)`,
  );
}

function layoutOf({ file, tensors }: WeightsFile): ShardLayout {
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]));
  const inFirstLayer = (name: string) => shapes.get(name.replace("{i}", "0"));
  const layout = shardLayouts.find(({ sizes, ffnUpRatio }) => {
    const [up, down] = [inFirstLayer(sizes.ffnUp), inFirstLayer(sizes.ffnDown)];
    const has = (name: string | undefined) => name === undefined || shapes.has(name);
    return has(sizes.embedding) && has(sizes.positions) && up?.[0] === ffnUpRatio * (down?.[1] ?? Number.NaN);
  });
  if (layout) return layout;
  const known = shardLayouts.map(({ title, sizes }) => `${title} (${sizes.positions ?? sizes.embedding})`);
  return fail(
    file,
    `holds ${tensors.length} tensors of no known family, expected those of ${known.join(" or ")}`,
  );
}

/** undefined for a name that the layout does not know. */
function mergeOf({ tensors }: ShardLayout, name: string): ShardMerge | undefined {
  const pattern = name.replace(/\.layers\.(?:0|[1-9]\d{0,5})\./, ".layers.{i}.");
  return Object.hasOwn(tensors, pattern) ? tensors[pattern] : undefined;
}

function whole(tensor: TensorEntry): MergedTensor {
  const { name, dtype, shape } = tensor;
  return { name, dtype, shape, axis: 0, parts: [tensor] };
}

function concatenated(
  shards: TensorEntry[],
  { axis, pieces }: Extract<ShardMerge, { kind: "concat" }>,
): MergedTensor {
  const first = shards[0]!;
  if (shards.length === 1) return whole(first);
  const { name, dtype, file } = first;
  const size = first.shape[axis] ?? 0;
  if (size === 0 || size % pieces !== 0) {
    const expected = `a multiple of ${pieces} along dimension ${axis}`;
    fail(file, `has tensor ${name} with shape [${first.shape.join(", ")}], expected ${expected}`);
  }
  const shape = first.shape.with(axis, size * shards.length);
  const parts = Array.from({ length: pieces }, (_, piece) =>
    shards.map((shard) => rowRange(shard, axis, piece, pieces)),
  ).flat();
  return { name, dtype, shape, axis, parts };
}

/** One of `pieces` equal parts of the rows; a whole shard where there is one piece. */
function rowRange(shard: TensorEntry, axis: 0 | 1, piece: number, pieces: number): TensorEntry {
  if (pieces === 1) return shard;
  const shape = shard.shape.with(axis, shard.shape[axis]! / pieces);
  const byteLength = shape.reduce((product, size) => product * size, elementBytes.get(shard.dtype)!);
  return { ...shard, shape, byteLength, byteOffset: shard.byteOffset + piece * byteLength };
}

const printType = (dtype: string, shape: readonly number[]) => `${dtype} [${shape.join(", ")}]`;

function fail(where: string, problem: string): never {
  throw new RelayError("invalid_model", `${where} ${problem}`);
}
