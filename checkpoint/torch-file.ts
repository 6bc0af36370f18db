/**
 * Reads files of torch.save (the zip form, the default since PyTorch 1.6) that hold a state dict: a pickle
 * that names tensors, and an entry of raw bytes per storage. The pickle is read by a machine that can build
 * plain containers only; the few names that state dicts need are known here, each stands for a description,
 * and any other is refused. A tensor stays a range of bytes of the file, which the engine maps.
 */
import type { FileHandle } from "node:fs/promises";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import {
  describeValue,
  type Fail,
  maxPickleBytes,
  PickleDict,
  PickleGlobal,
  type PickleHost,
  PickleList,
  PickleObject,
  type PickleValue,
  readPickle,
} from "./pickle.js";
import { elementBytes, readFully, type TensorEntry, type WeightsFile, withFile } from "./safetensors.js";
import { readZipEntries, type ZipEntry } from "./zip.js";

/** The types of storages, as safetensors names them. */
const storageTypes: ReadonlyMap<string, string> = new Map([
  ["torch.DoubleStorage", "F64"],
  ["torch.FloatStorage", "F32"],
  ["torch.HalfStorage", "F16"],
  ["torch.BFloat16Storage", "BF16"],
  ["torch.LongStorage", "I64"],
  ["torch.IntStorage", "I32"],
  ["torch.ShortStorage", "I16"],
  ["torch.CharStorage", "I8"],
  ["torch.ByteStorage", "U8"],
  ["torch.BoolStorage", "BOOL"],
]);

const orderedDict = "collections.OrderedDict";
const rebuildTensor = "torch._utils._rebuild_tensor_v2";
const rebuildParameter = "torch._utils._rebuild_parameter";
const callables = new Set([orderedDict, rebuildTensor, rebuildParameter]);
/** Plain containers beside the state dict of a training checkpoint: of each the one argument is kept. */
const trainingContainers = new Set(["torch.Size", "builtins.set", "__builtin__.set"]);
/** The state of NumPy's random numbers, which a training saves to go on alike. Its content is dropped. */
const numpyNames = new Set([
  "numpy.core.multiarray._reconstruct",
  "numpy._core.multiarray._reconstruct",
  "numpy.ndarray",
  "numpy.dtype",
  "_codecs.encode",
]);

/** Weights have up to three dimensions, those of convolutions five. */
export const maxDimensions = 8;
/** Far more than any shard has; a pickle can name one tensor again and again at the cost of some bytes. */
export const maxTensors = 100_000;

/** A storage: the bytes of one entry of the archive. */
class Storage extends PickleObject {
  override readonly kind = "a storage";
  constructor(
    readonly dtype: string,
    readonly entry: ZipEntry,
  ) {
    super();
  }
}

/** Stands for whatever it was. */
class NumpyObject extends PickleObject {
  override readonly kind = "a NumPy object";
  override readonly takesState = true;
}

/** A view of a storage; offset and strides count elements. */
class Tensor extends PickleObject {
  override readonly kind = "a tensor";
  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {
    super();
  }
}

/**
 * Reads and checks the pickle and the directory of one file.
 * @param under Key of the dict in the file under which the state dict lies; its other entries, which
 *              training wrote, must be plain values. Absent: the file holds the state dict itself.
 * @returns Tensors in the order of the state dict; tied ones share their bytes.
 * @throws RelayError invalid_model naming file, tensor, value and what was expected.
 */
export function readTorchFile(file: string, under?: string): Promise<WeightsFile> {
  return withFile(file, async (handle, byteLength) => {
    await checkKind(handle, file, byteLength);
    const archive = await openArchive(handle, file, byteLength);
    const pickle = await readEntry(handle, archive, "data.pkl", maxPickleBytes);
    const root = readPickle(pickle, `${file}: data.pkl`, new TorchHost(archive, under !== undefined));
    const tensors = stateDict(under === undefined ? root : entryOf(root, under, file), file);
    return { file, byteLength, header: description(tensors), tensors };
  });
}

const zipMagic = Buffer.from("PK\x03\x04", "latin1");
/** What else lies under the names of these files, by its first bytes. */
const otherKinds: readonly [magic: Buffer, kind: string][] = [
  [
    // The number 0x1950a86a20f9469cfc6c as the first value of a pickle.
    Buffer.from("80028a0a6cfc9c46f9206aa85019", "hex"),
    "has the form of torch.save before PyTorch 1.6, expected its zip form (load and save it with a newer one)",
  ],
  [Buffer.from("GGUF"), "is a GGUF file, expected a zip file of torch.save"],
  [Buffer.from("ggml"), "is a file of chatglm.cpp, expected a zip file of torch.save"],
  [Buffer.from("\x93NUMPY", "latin1"), "is a NumPy array, expected a zip file of torch.save"],
  [
    Buffer.from("version https://git-lfs"),
    "is a Git LFS pointer, expected the file itself (fetch it with git lfs pull)",
  ],
];
const kindBytes = 4096;

async function checkKind(handle: FileHandle, file: string, byteLength: number): Promise<void> {
  const begin = Buffer.alloc(Math.min(kindBytes, byteLength));
  await readFully(handle, begin, 0, file);
  const has = (magic: Buffer) => begin.subarray(0, magic.length).equals(magic);
  if (has(zipMagic)) return;
  const other = otherKinds.find(([magic]) => has(magic));
  if (other) fail(file, other[1]);
  // Every pickle of protocol 2 or newer begins so; "numpy" stands near the front of those that hold arrays.
  if (begin.length >= 2 && begin[0] === 0x80 && begin[1]! <= 5) {
    const content = begin.includes("numpy") ? "NumPy arrays" : "Python objects";
    fail(file, `is a plain pickle of ${content}, expected a zip file of torch.save`);
  }
  fail(file, `does not begin as a zip file of torch.save does (${byteLength} bytes)`);
}

interface Archive {
  file: string;
  /** By their names below the archive's one folder: data.pkl, data/0, ... */
  entries: Map<string, ZipEntry>;
}

async function openArchive(handle: FileHandle, file: string, byteLength: number): Promise<Archive> {
  let folder = "";
  const all = await readZipEntries(handle, file, byteLength, (names) => {
    folder = archiveFolder(names, file);
  });
  const entries = new Map<string, ZipEntry>();
  for (const [name, entry] of all) {
    if (name.startsWith(folder)) entries.set(name.slice(folder.length), entry);
  }
  const archive = { file, entries };
  if (entries.has("byteorder")) {
    const order = (await readEntry(handle, archive, "byteorder", 16)).toString("latin1");
    if (order !== "little") fail(file, `has ${printValue(order)} as byteorder, expected "little"`);
  }
  return archive;
}

/** The one folder of the archive, named as the file was when it was written, with its slash. */
function archiveFolder(names: string[], file: string): string {
  const pickles = names.filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickles.length !== 1) {
    const numpy = names.some((name) => name.endsWith(".npy"));
    if (numpy) fail(file, "is a zip archive of NumPy arrays (.npz), expected a zip file of torch.save");
    fail(file, `is a zip archive with ${pickles.length} entries FOLDER/data.pkl, expected one`);
  }
  const folder = pickles[0]!.slice(0, -"data.pkl".length);
  if (names.includes(`${folder}constants.pkl`)) {
    fail(file, "is a TorchScript archive, which holds a program, expected a state dict of torch.save");
  }
  return folder;
}

async function readEntry(
  handle: FileHandle,
  { file, entries }: Archive,
  name: string,
  maxBytes: number,
): Promise<Buffer> {
  const { byteOffset, byteLength } = entries.get(name)!;
  if (byteLength > maxBytes) fail(file, `has ${byteLength} bytes of ${name}, expected at most ${maxBytes}`);
  const bytes = Buffer.alloc(byteLength);
  await readFully(handle, bytes, byteOffset, file);
  return bytes;
}

/** What the names in a state dict's pickle stand for. */
class TorchHost implements PickleHost {
  /** @param training The file holds more than a state dict. */
  constructor(
    private readonly archive: Archive,
    private readonly training: boolean,
  ) {}

  knows(name: string): boolean {
    return callables.has(name) || storageTypes.has(name) || this.isOfTraining(name);
  }

  call(name: string, args: readonly PickleValue[], fail: Fail): PickleValue {
    if (name === orderedDict && args.length === 0) return new PickleDict(true);
    if (name === rebuildTensor) {
      // (storage, offset, size, stride, requires_grad, backward_hooks[, metadata])
      const [storage, offset, shape, strides] = args;
      if (storage instanceof Storage && isCount(offset) && isCounts(shape) && isCounts(strides)) {
        if (shape.length === strides.length) return new Tensor(storage, offset, shape, strides);
      }
    }
    if (this.training && numpyNames.has(name)) return new NumpyObject();
    const [content] = args;
    if (this.training && trainingContainers.has(name) && args.length === 1) {
      if (Array.isArray(content) || content instanceof PickleList) return content as PickleValue;
    }
    // (data, requires_grad, backward_hooks)
    if (name === rebuildParameter && args[0] instanceof Tensor) return args[0];
    const printed = args.slice(0, maxDimensions).map(describeValue).join(", ");
    return fail(`calls ${name} with (${printed}), which describes no tensor`);
  }

  private isOfTraining(name: string): boolean {
    return this.training && (trainingContainers.has(name) || numpyNames.has(name));
  }

  /** ("storage", type, key, location, number of elements); where it lay once is of no interest. */
  persistent(id: PickleValue, fail: Fail): PickleValue {
    const [tag, type, key, , count] = Array.isArray(id) && id.length === 5 ? (id as PickleValue[]) : [];
    if (tag !== "storage" || !(type instanceof PickleGlobal) || typeof key !== "string" || !isCount(count)) {
      return fail(`has ${describeValue(id)} as a persistent id, expected that of a storage`);
    }
    const dtype = storageTypes.get(type.name);
    if (dtype === undefined) return fail(`has a storage of type ${type.name}, expected torch.*Storage`);
    const entry = this.archive.entries.get(`data/${key}`);
    if (!entry) return fail(`uses storage ${printValue(key)}, which the archive does not have`);
    const bytes = count * elementBytes.get(dtype)!;
    if (entry.byteLength !== bytes) {
      return fail(
        `claims ${count} elements of ${dtype} (${bytes} bytes) for storage ${printValue(key)}, which has ${entry.byteLength} bytes`,
      );
    }
    return new Storage(dtype, entry);
  }
}

function entryOf(root: PickleValue, key: string, file: string): PickleValue {
  const value = root instanceof PickleDict ? root.entries.get(key) : undefined;
  if (value instanceof PickleDict) return value;
  if (!(root instanceof PickleDict)) {
    fail(file, `holds ${describeValue(root)}, expected a dict with the state dict under ${printValue(key)}`);
  }
  return fail(file, `has ${describeValue(value)} under ${printValue(key)}, expected the state dict`);
}

function stateDict(root: PickleValue, file: string): TensorEntry[] {
  if (!(root instanceof PickleDict)) fail(file, `holds ${describeValue(root)}, expected a dict of tensors`);
  if (root.entries.size > maxTensors) {
    fail(file, `has ${root.entries.size} tensors, expected at most ${maxTensors}`);
  }
  return [...root.entries].map(([name, value]) => {
    if (typeof name !== "string" || !(value instanceof Tensor)) {
      fail(file, `has ${describeValue(value)} under ${printValue(name)}, expected a dict of tensors by name`);
    }
    return tensorEntry(name, value, file);
  });
}

function tensorEntry(name: string, tensor: Tensor, file: string): TensorEntry {
  const { storage, offset, shape, strides } = tensor;
  const { dtype, entry } = storage;
  const size = elementBytes.get(dtype)!;
  // Not exact beyond 2^53, but then far beyond any entry; so few dimensions cannot make it infinite.
  const count = shape.reduce((product, dimension) => product * dimension, 1);
  const refuse = (problem: string): never => {
    const printed = `shape [${shape.join(", ")}] and strides [${strides.join(", ")}]`;
    return fail(`${file}: tensor`, `${name} has ${printed}, ${problem}`);
  };
  if (count > 0 && !isContiguous(shape, strides)) refuse("expected contiguous rows");
  if ((offset + count) * size > entry.byteLength) {
    refuse(`which from element ${offset} on is more than its storage of ${entry.byteLength} bytes holds`);
  }
  const byteOffset = entry.byteOffset + offset * size;
  return { name, file, byteOffset, byteLength: count * size, dtype, shape: [...shape] };
}

/** Whether the elements lie in row-major order without gaps; the stride of a single row says nothing. */
function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] === 1) continue;
    if (strides[axis] !== expected) return false;
    expected *= shape[axis]!;
  }
  return true;
}

/** The same for the same tensors at the same places, whatever the pickle around them looks like. */
function description(tensors: TensorEntry[]): Uint8Array {
  const sorted = [...tensors].sort((a, b) => (a.name < b.name ? -1 : 1));
  const entries = sorted.map(({ name, dtype, shape, byteOffset }) => [name, dtype, shape, byteOffset]);
  return Buffer.from(JSON.stringify(["torch", entries]));
}

function isCount(value: PickleValue | undefined): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isCounts(value: PickleValue | undefined): value is readonly number[] {
  return Array.isArray(value) && value.length <= maxDimensions && value.every(isCount);
}

function fail(where: string, problem: string): never {
  throw new RelayError("invalid_model", `${where} ${problem}`);
}
