/** Writes files as torch.save does (its zip form), and every lie that a test wants in them. */
import { writeFileSync } from "node:fs";
import type { TensorData } from "../../../checkpoint/safetensors-writer.js";

const storageClasses: Record<string, string> = {
  F64: "DoubleStorage",
  F32: "FloatStorage",
  F16: "HalfStorage",
  BF16: "BFloat16Storage",
  I64: "LongStorage",
  I32: "IntStorage",
  I16: "ShortStorage",
  I8: "CharStorage",
  U8: "ByteStorage",
  BOOL: "BoolStorage",
};

/** Opcodes of protocol 2, without the memo, which is for sharing only. */
export const pickle = {
  file: (...body: Buffer[]) => Buffer.concat([Buffer.from([0x80, 2]), ...body, Buffer.from(".")]),
  none: Buffer.from("N"),
  true: Buffer.from([0x88]),
  false: Buffer.from([0x89]),
  reduce: Buffer.from("R"),
  build: Buffer.from("b"),
  persistentId: Buffer.from("Q"),
  int: (value: number) => {
    const bytes = Buffer.alloc(10);
    bytes.set([0x8a, 8]);
    bytes.writeBigInt64LE(BigInt(value), 2);
    return bytes;
  },
  text: (value: string) => {
    const bytes = Buffer.from(value);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return Buffer.concat([Buffer.from("X"), length, bytes]);
  },
  global: (module: string, name: string) => Buffer.from(`c${module}\n${name}\n`),
  tuple: (...items: Buffer[]) => Buffer.concat([Buffer.from("("), ...items, Buffer.from("t")]),
  list: (...items: Buffer[]) => Buffer.concat([Buffer.from("]("), ...items, Buffer.from("e")]),
  dict: (...pairs: Buffer[]) => Buffer.concat([Buffer.from("}("), ...pairs, Buffer.from("u")]),
  orderedDict: (...pairs: Buffer[]) =>
    Buffer.concat([Buffer.from("ccollections\nOrderedDict\n)R("), ...pairs, Buffer.from("u")]),
  put: (index: number) => Buffer.from([0x71, index]),
  get: (index: number) => Buffer.from([0x68, index]),
};

export interface TensorView {
  dtype: string;
  /** The storage's key, and its number of elements. */
  key: string;
  count: number;
  offset?: number;
  shape: number[];
  /** Row-major by default. */
  strides?: number[];
}

function rowMajor(shape: number[]): number[] {
  return shape.map((_, axis) => shape.slice(axis + 1).reduce((product, size) => product * size, 1));
}

export function storageId(type: Buffer, key: string, count: number): Buffer {
  const { text, tuple, int, persistentId } = pickle;
  return Buffer.concat([tuple(text("storage"), type, text(key), text("cpu"), int(count)), persistentId]);
}

/** The pickle of a tensor: a call of _rebuild_tensor_v2. */
export function pickledTensor(view: TensorView): Buffer {
  const { dtype, key, count, offset = 0, shape, strides = rowMajor(shape) } = view;
  const { global, tuple, int } = pickle;
  const hooks = Buffer.from("ccollections\nOrderedDict\n)R");
  return Buffer.concat([
    global("torch._utils", "_rebuild_tensor_v2"),
    tuple(
      storageId(global("torch", storageClasses[dtype]!), key, count),
      int(offset),
      tuple(...shape.map(int)),
      tuple(...strides.map(int)),
      pickle.false,
      hooks,
    ),
    pickle.reduce,
  ]);
}

export interface ZipItem {
  name: string;
  data: Uint8Array;
  method?: number;
  flags?: number;
  /** The name in the local header. */
  localName?: string;
  /** The sizes in the directory. */
  size?: number;
}

export interface ZipOptions {
  zip64?: boolean;
  comment?: string;
  /** Changes the directory, the zip64 record or the end record before they are written. */
  edit?: (records: { directory: Buffer; end64: Buffer; end: Buffer }) => void;
}

/** Stored entries, each padded to 64 bytes by an extra field; sizes in the directory only, as torch does. */
export function zipBytes(items: ZipItem[], options: ZipOptions = {}): Buffer {
  const zip64 = options.zip64 ?? true;
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let position = 0;
  for (const item of items) {
    const name = Buffer.from(item.name);
    const localName = Buffer.from(item.localName ?? item.name);
    const padding = (64 - ((position + 30 + localName.length + 4) % 64)) % 64;
    const local = Buffer.alloc(30 + localName.length + 4 + padding, "Z");
    local.fill(0, 0, 30);
    local.writeUInt32LE(0x04034b50);
    local.writeUInt16LE(item.flags ?? 0x808, 6);
    local.writeUInt16LE(localName.length, 26);
    local.writeUInt16LE(4 + padding, 28);
    localName.copy(local, 30);
    local.write("FB", 30 + localName.length);
    local.writeUInt16LE(padding, 30 + localName.length + 2);

    const size = item.size ?? item.data.length;
    const wide = zip64 ? 28 : 0;
    const central = Buffer.alloc(46 + name.length + wide);
    central.writeUInt32LE(0x02014b50);
    central.writeUInt16LE(item.flags ?? 0x808, 8);
    central.writeUInt16LE(item.method ?? 0, 10);
    central.writeUInt16LE(name.length, 28);
    central.writeUInt16LE(wide, 30);
    name.copy(central, 46);
    if (zip64) {
      for (const at of [20, 24, 42]) central.writeUInt32LE(0xffffffff, at);
      const field = 46 + name.length;
      central.writeUInt16LE(1, field);
      central.writeUInt16LE(24, field + 2);
      [size, size, position].forEach((value, i) => {
        central.writeBigUInt64LE(BigInt(value), field + 4 + 8 * i);
      });
    } else {
      central.writeUInt32LE(size, 20);
      central.writeUInt32LE(size, 24);
      central.writeUInt32LE(position, 42);
    }
    directory.push(central);
    parts.push(local, Buffer.from(item.data));
    position += local.length + item.data.length;
  }
  const records = {
    directory: Buffer.concat(directory),
    end64: Buffer.alloc(zip64 ? 76 : 0),
    end: Buffer.alloc(22 + (options.comment?.length ?? 0)),
  };
  const { end64, end } = records;
  if (zip64) {
    end64.writeUInt32LE(0x06064b50);
    end64.writeBigUInt64LE(44n, 4);
    end64.writeBigUInt64LE(BigInt(items.length), 24);
    end64.writeBigUInt64LE(BigInt(items.length), 32);
    end64.writeBigUInt64LE(BigInt(records.directory.length), 40);
    end64.writeBigUInt64LE(BigInt(position), 48);
    end64.writeUInt32LE(0x07064b50, 56);
    end64.writeBigUInt64LE(BigInt(position + records.directory.length), 64);
    end64.writeUInt32LE(1, 72);
  }
  end.writeUInt32LE(0x06054b50);
  end.writeUInt16LE(items.length, 8);
  end.writeUInt16LE(items.length, 10);
  end.writeUInt32LE(records.directory.length, 12);
  end.writeUInt32LE(position, 16);
  end.writeUInt16LE(options.comment?.length ?? 0, 20);
  end.write(options.comment ?? "", 22);
  options.edit?.(records);
  return Buffer.concat([...parts, records.directory, end64, end]);
}

/** An archive with this pickle and these storages, in the order in which torch writes them. */
export function torchBytes(
  data: Buffer,
  storages: Record<string, Uint8Array> = {},
  more: ZipItem[] = [],
  options?: ZipOptions,
): Buffer {
  return zipBytes(
    [
      { name: "archive/data.pkl", data },
      { name: "archive/byteorder", data: Buffer.from("little") },
      ...Object.entries(storages).map(([key, bytes]) => ({ name: `archive/data/${key}`, data: bytes })),
      { name: "archive/version", data: Buffer.from("3\n") },
      ...more,
    ],
    options,
  );
}

/** The state dict of these tensors, a storage for each. */
export function stateDictBytes(tensors: TensorData[], options?: ZipOptions): Buffer {
  const storages: Record<string, Uint8Array> = {};
  const pairs = tensors.flatMap(({ name, dtype, shape, data }, i) => {
    storages[i] = data;
    const count = shape.reduce((product, size) => product * size, 1);
    return [pickle.text(name), pickledTensor({ dtype, key: String(i), count, shape })];
  });
  return torchBytes(pickle.file(pickle.orderedDict(...pairs)), storages, [], options);
}

export function writeTorchFile(file: string, tensors: TensorData[]): void {
  writeFileSync(file, stateDictBytes(tensors));
}

/** A training checkpoint: the state dict of these tensors under "module", with other entries beside it. */
export function trainingBytes(tensors: TensorData[], others: Buffer[] = [], key = "module"): Buffer {
  const storages: Record<string, Uint8Array> = {};
  const pairs = tensors.flatMap(({ name, dtype, shape, data }, i) => {
    storages[i] = data;
    const count = shape.reduce((product, size) => product * size, 1);
    return [pickle.text(name), pickledTensor({ dtype, key: String(i), count, shape })];
  });
  const state = pickle.orderedDict(...pairs);
  return torchBytes(pickle.file(pickle.dict(pickle.text(key), state, ...others)), storages);
}
