/** The reader of torch.save's files: what it finds and what it refuses. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  maxMemoEntries,
  maxOpenMarks,
  maxPickleBytes,
  maxPickleOpcodes,
  maxStackDepth,
  maxStringBytes,
} from "../../../checkpoint/pickle.js";
import { maxTensors, readTorchFile } from "../../../checkpoint/torch-file.js";
import { tensor } from "./model-fixture.js";
import {
  pickle,
  pickledTensor,
  stateDictBytes,
  storageId,
  type TensorView,
  torchBytes,
  type ZipOptions,
  zipBytes,
} from "./torch-fixture.js";
import { directory, expectRefusal, file, read, sixteen } from "./torch-reading.js";

const { dict, get, global, int, list, none, orderedDict, put, text, tuple } = pickle;
const join2 = (...parts: Buffer[]) => Buffer.concat(parts);

/** An archive whose state dict is {"w": this value}, beside a storage of 16 bytes, 8 float16. */
const holding = (...value: Buffer[]) =>
  torchBytes(pickle.file(orderedDict(text("w"), ...value)), { 0: sixteen });
const view = (changes: Partial<TensorView>) =>
  holding(pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [8], ...changes }));

const written = [
  tensor("a", [2, 3]),
  tensor("empty", [0, 4]),
  tensor("scalar", [], "F32"),
  tensor("wide", [1, 1, 5], "BF16"),
];

describe("reading", () => {
  it.each<[string, ZipOptions]>([
    ["zip64, as torch writes it", {}],
    ["plain zip", { zip64: false }],
    ["a comment behind the directory that looks like one", { comment: "PK\x05\x06, or so it seems to be" }],
  ])("gives back what was written: %s", async (_, options) => {
    const found = await read(stateDictBytes(written, options));
    const bytes = readFileSync(file);
    expect(found.byteLength).toBe(bytes.length);
    expect(found.tensors.map(({ name }) => name)).toEqual(["a", "empty", "scalar", "wide"]);
    for (const { name, shape, dtype, data } of written) {
      const entry = found.tensors.find((candidate) => candidate.name === name)!;
      expect(entry).toMatchObject({ shape, dtype, file, byteLength: data.length });
      const stored = bytes.subarray(entry.byteOffset, entry.byteOffset + entry.byteLength);
      expect(Buffer.compare(stored, data)).toBe(0);
    }
  });

  it.each(["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"])(
    "names the type %s as safetensors does",
    async (dtype) => {
      const bytes = dtype.endsWith("64") ? 8 : dtype.endsWith("32") ? 4 : dtype.endsWith("16") ? 2 : 1;
      const value = pickledTensor({ dtype, key: "0", count: 16 / bytes, shape: [16 / bytes] });
      const { tensors } = await read(holding(value));
      expect(tensors).toMatchObject([{ dtype, byteLength: 16 }]);
    },
  );

  it("takes a contiguous view from the middle of a storage", async () => {
    const { byteOffset, ...part } = (await read(view({ offset: 3, shape: [2, 2] }))).tensors[0]!;
    expect(part).toMatchObject({ byteLength: 8, shape: [2, 2] });
    const stored = readFileSync(file).subarray(byteOffset, byteOffset + 8);
    expect([...stored]).toEqual([6, 7, 8, 9, 10, 11, 12, 13]);
  });

  it("does not mind the strides of single rows and of empty tensors", async () => {
    const single = (await read(view({ shape: [1, 8], strides: [77, 1] }))).tensors[0]!;
    expect(single).toMatchObject({ byteLength: 16, shape: [1, 8] });
    const empty = (await read(view({ shape: [0, 3], strides: [5, 5] }))).tensors[0]!;
    expect(empty).toMatchObject({ byteLength: 0, shape: [0, 3] });
    const huge = (await read(view({ shape: [0, ...Array(7).fill(2 ** 52)], strides: Array(8).fill(1) })))
      .tensors[0]!;
    expect(huge.byteLength).toBe(0);
  });

  it("lets tied tensors share their bytes, by their storage and by the memo", async () => {
    const value = pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [2, 4] });
    const { tensors } = await read(
      torchBytes(pickle.file(dict(text("a"), value, text("b"), value, put(7), text("c"), get(7))), {
        0: new Uint8Array(16),
      }),
    );
    const places = tensors.map(({ byteOffset, byteLength }) => [byteOffset, byteLength]);
    expect(places).toEqual([places[0], places[0], places[0]]);
  });

  it("takes parameters, and passes over the attributes of the state dict", async () => {
    const value = pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [8] });
    const parameter = join2(
      global("torch._utils", "_rebuild_parameter"),
      tuple(value, pickle.true, orderedDict()),
      pickle.reduce,
    );
    const metadata = dict(text("_metadata"), orderedDict(text(""), dict(text("version"), int(1))));
    const state = join2(orderedDict(text("w"), parameter), metadata, pickle.build);
    const { tensors } = await read(torchBytes(pickle.file(state), { 0: sixteen }));
    expect(tensors).toMatchObject([{ name: "w", shape: [8] }]);
  });

  it("takes protocol 4: frames, short strings, names from the stack", async () => {
    const short = (value: string) =>
      join2(Buffer.from([0x8c, value.length]), Buffer.from(value), Buffer.from([0x94]));
    const named = (module: string, name: string) =>
      join2(short(module), short(name), Buffer.from([0x93, 0x94]));
    const storage = join2(
      tuple(short("storage"), named("torch", "HalfStorage"), short("0"), short("cpu"), int(8)),
      pickle.persistentId,
    );
    const value = join2(
      named("torch._utils", "_rebuild_tensor_v2"),
      tuple(storage, int(0), tuple(int(8)), tuple(int(1)), pickle.false, none),
      pickle.reduce,
    );
    const frame = Buffer.from([0x80, 4, 0x95, 9, 0, 0, 0, 0, 0, 0, 0]);
    const data = join2(frame, Buffer.from("}"), short("w"), value, Buffer.from("s."));
    const { tensors } = await read(torchBytes(data, { 0: sixteen }));
    expect(tensors).toMatchObject([{ name: "w", dtype: "F16", shape: [8] }]);
  });

  it("describes equal tensors equally, and others otherwise", async () => {
    const header = async (bytes: Buffer) => Buffer.from((await read(bytes)).header).toString();
    const base = await header(view({ shape: [1, 6] }));
    expect(await header(view({ shape: [1, 6], strides: [3, 1] }))).toBe(base);
    for (const changes of [{ shape: [2, 3] }, { shape: [1, 6], offset: 1 }]) {
      expect(await header(view(changes))).not.toBe(base);
    }
  });
});

describe("files of other kinds are refused by what they are", () => {
  const start = (bytes: string | number[]) =>
    Buffer.concat([
      typeof bytes === "string" ? Buffer.from(bytes, "latin1") : Buffer.from(bytes),
      Buffer.alloc(200),
    ]);
  it.each([
    ["an empty file", Buffer.alloc(0), "0 bytes"],
    [
      "torch.save before 1.6",
      start([0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e]),
      "before PyTorch 1.6",
    ],
    ["a pickle of NumPy arrays", start("\x80\x04\x95cnumpy.core.multiarray\n_reconstruct\n"), "NumPy arrays"],
    ["a pickle of anything", pickle.file(none), "plain pickle of Python objects"],
    ["a NumPy array", start([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]), "is a NumPy array"],
    ["a Git LFS pointer", start("version https://git-lfs.github.com/spec/v1\noid"), "Git LFS pointer"],
    ["text", start("hello"), "does not begin as a zip file"],
  ])("%s", async (_, bytes, message) => {
    await expectRefusal(bytes, message);
  });

  it("TorchScript, .npz and other zip archives", async () => {
    const script = torchBytes(pickle.file(dict()), {}, [
      { name: "archive/constants.pkl", data: pickle.file(none) },
      { name: "archive/code/__torch__.py", data: Buffer.from("of no interest"), method: 8 },
    ]);
    await expectRefusal(script, "TorchScript");
    await expectRefusal(zipBytes([{ name: "a.npy", data: Buffer.alloc(9), method: 8 }]), ".npz");
    await expectRefusal(zipBytes([{ name: "a.txt", data: Buffer.alloc(9) }]), "0 entries FOLDER/data.pkl");
    const two = ["a/data.pkl", "b/data.pkl"].map((name) => ({ name, data: pickle.file(dict()) }));
    await expectRefusal(zipBytes(two), "2 entries FOLDER/data.pkl");
  });

  it("one of another byte order", async () => {
    const items = ["data.pkl", "byteorder"].map((name) => ({ name: `a/${name}`, data: Buffer.from("big") }));
    await expectRefusal(zipBytes(items), '"big" as byteorder');
  });

  it("a missing file and a directory", async () => {
    await expect(readTorchFile(join(directory, "none"))).rejects.toThrow(/cannot open .*none/);
    mkdirSync(join(directory, "folder.bin"));
    await expect(readTorchFile(join(directory, "folder.bin"))).rejects.toThrow(/cannot open .*not a regular/);
  });
});

describe("names and opcodes", () => {
  it.each([
    ["os", "system"],
    ["builtins", "eval"],
    ["builtins", "getattr"],
    ["posix", "system"],
    ["subprocess", "Popen"],
    ["numpy.core.multiarray", "_reconstruct"],
    ["torch._utils", "_rebuild_qtensor"],
    ["torch", "QInt8Storage"],
    ["torch", "load"],
    ["collections", "defaultdict"],
    ["__proto__", "constructor"],
  ])("refuses %s.%s by its name, before anything is done with it", async (module, name) => {
    await expectRefusal(holding(global(module, name)), `data.pkl names "${module}.${name}"`);
    const call = join2(global(module, name), tuple(text("touch /tmp/owned")), pickle.reduce);
    await expectRefusal(holding(call), `data.pkl names "${module}.${name}"`);
    const stacked = join2(text(module), text(name), Buffer.from([0x93]));
    await expectRefusal(holding(stacked), `data.pkl names "${module}.${name}"`);
  });

  it.each([
    ["INST", Buffer.from("(ios\nsystem\n")],
    ["OBJ", Buffer.from("(o")],
    ["NEWOBJ", Buffer.from([0x81])],
    ["NEWOBJ_EX", Buffer.from([0x92])],
    ["EXT1", Buffer.from([0x82, 1])],
    ["PERSID", Buffer.from("Pstorage\n")],
    ["BINBYTES", Buffer.from("B\x01\0\0\0x")],
    ["EMPTY_SET", Buffer.from([0x8f])],
    ["0xff", Buffer.from([0xff])],
  ])("refuses the opcode %s", async (name, body) => {
    await expectRefusal(holding(body), `data.pkl has the opcode ${name}`);
  });

  it.each([
    ["a call of what is no name", join2(dict(), tuple(), pickle.reduce), "calls a dict"],
    [
      "arguments that are no tuple",
      join2(global("collections", "OrderedDict"), list(), pickle.reduce),
      "OrderedDict with a list",
    ],
    [
      "a call of a type of storage",
      join2(global("torch", "HalfStorage"), tuple(), pickle.reduce),
      "calls torch",
    ],
    [
      "an OrderedDict made of something",
      join2(global("collections", "OrderedDict"), tuple(list()), pickle.reduce),
      "calls collections.OrderedDict with (a list)",
    ],
    [
      "a tensor of no storage",
      join2(global("torch._utils", "_rebuild_tensor_v2"), tuple(none, int(0)), pickle.reduce),
      "_rebuild_tensor_v2 with (null, 0)",
    ],
    [
      "a parameter of no tensor",
      join2(global("torch._utils", "_rebuild_parameter"), tuple(dict()), pickle.reduce),
      "_rebuild_parameter with (a dict)",
    ],
    ["attributes of a dict", join2(dict(), dict(), pickle.build), "sets attributes (a dict) of a dict"],
    ["attributes that are none", join2(orderedDict(), none, pickle.build), "sets attributes (null)"],
    ["a key that is a tuple", dict(tuple(), none), "has a tuple as a key"],
    ["a key twice", dict(text("a"), none, text("a"), none), 'has the key "a" twice'],
    ["a key without a value", dict(text("a")), "expected pairs"],
    ["items of a list", join2(list(), Buffer.from("("), text("a"), none, Buffer.from("u")), "of a list"],
    ["items appended to a tuple", join2(tuple(), none, Buffer.from("a")), "appends to a tuple"],
    ["a memo entry that is not there", get(9), "memo entry 9"],
    ["a string that is not UTF-8", Buffer.from("X\x01\0\0\0\xff", "latin1"), "not UTF-8"],
    [
      "an integer beyond 2^53",
      Buffer.from([0x8a, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f]),
      "expected less than 2^53",
    ],
    ["another protocol", Buffer.from([0x80, 5]), "protocol 5"],
    ["a mark too many closed", Buffer.from("tttttt"), "never opened"],
    ["values from below an open mark", Buffer.from("(\x85", "latin1"), "takes 1 values"],
    ["persistent ids of something else", join2(text("x"), pickle.persistentId), '"x" as a persistent id'],
  ])("refuses %s", async (_, body, message) => {
    await expectRefusal(holding(body), "data.pkl", message);
  });

  it("refuses what is no dict of tensors", async () => {
    await expectRefusal(torchBytes(pickle.file(list())), "holds a list, expected a dict of tensors");
    await expectRefusal(holding(int(3)), 'has 3 under "w"');
    await expectRefusal(holding(dict(text("v"), none)), 'has a dict under "w"');
    await expectRefusal(
      torchBytes(pickle.file(dict(int(1), none))),
      "under 1, expected a dict of tensors by name",
    );
  });

  it("refuses pickles without an end, a beginning, or with something behind", async () => {
    const whole = pickle.file(dict());
    await expectRefusal(torchBytes(whole.subarray(0, -1)), "data.pkl is truncated");
    await expectRefusal(torchBytes(whole.subarray(2)), "does not begin with its protocol");
    await expectRefusal(torchBytes(join2(whole, Buffer.from("x"))), "1 bytes follow");
    await expectRefusal(torchBytes(pickle.file(dict(), dict())), "ends with 2 values");
    await expectRefusal(torchBytes(pickle.file(dict(), Buffer.from("("))), "1 open marks");
    await expectRefusal(torchBytes(Buffer.from("\x80\x02cos", "latin1")), "ends inside a name");
  });
});

describe("tensors that are not where they claim to be", () => {
  it.each<[string, Buffer, string]>([
    ["strides of a transposed matrix", view({ shape: [2, 4], strides: [1, 2] }), "tensor w has shape [2, 4]"],
    ["strides with gaps", view({ shape: [2, 2], strides: [4, 1] }), "expected contiguous rows"],
    ["strides of zero (expanded)", view({ shape: [8], strides: [0] }), "expected contiguous rows"],
    ["more elements than the storage has", view({ shape: [9] }), "more than its storage of 16 bytes"],
    ["an offset beyond the end", view({ offset: 1, shape: [8] }), "tensor w has shape [8]"],
    ["a huge offset", view({ offset: 2 ** 53 - 1, shape: [1] }), "from element 9007199254740991"],
    [
      "dimensions that overflow",
      view({ shape: [2 ** 50, 2 ** 3], strides: [8, 1] }),
      "more than its storage",
    ],
    ["a negative offset", view({ offset: -1 }), "describes no tensor"],
    ["a negative dimension", view({ shape: [-8], strides: [1] }), "describes no tensor"],
    ["fewer strides than dimensions", view({ shape: [2, 4], strides: [1] }), "describes no tensor"],
    ["too many dimensions", view({ shape: Array(9).fill(1) }), "describes no tensor"],
    ["a storage that is not there", view({ key: "7" }), 'storage "7"'],
    ["a path as a storage", view({ key: "../../etc/passwd" }), 'storage "../../etc/passwd"'],
    ["a storage of another size", view({ count: 9 }), "claims 9 elements of F16 (18 bytes)"],
    [
      "a storage of no type",
      holding(storageId(global("collections", "OrderedDict"), "0", 8)),
      "storage of type collections.OrderedDict",
    ],
  ])("%s", async (_, bytes, message) => {
    await expectRefusal(bytes, message);
  });
});

describe("bounds", () => {
  const repeated = (body: Buffer, count: number) => holding(Buffer.alloc(body.length * count, body));
  it.each<[string, () => Buffer, string]>([
    [
      "opcodes",
      () => repeated(Buffer.from([0x71, 0]), maxPickleOpcodes),
      `more than ${maxPickleOpcodes} opcodes`,
    ],
    ["values on the stack", () => repeated(none, maxStackDepth + 1), `more than ${maxStackDepth} values`],
    ["open marks", () => repeated(Buffer.from("("), maxOpenMarks + 1), `more than ${maxOpenMarks} marks`],
    ["memo entries", () => holding(none, Buffer.from([0x72, 0, 0, 0, 0xff])), `fewer than ${maxMemoEntries}`],
    ["string bytes", () => holding(Buffer.from("X\xff\xff\xff\xff", "latin1")), `at most ${maxStringBytes}`],
    ["string bytes of a name", () => holding(Buffer.from(`c${"x".repeat(maxStringBytes + 1)}\n`)), "at most"],
    ["bytes of a pickle", () => torchBytes(Buffer.alloc(maxPickleBytes + 1)), `at most ${maxPickleBytes}`],
  ])("too many %s", async (_, bytes, message) => {
    await expectRefusal(bytes(), message);
  });

  it("too many tensors: one, under ever new names", async () => {
    const value = pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [8] });
    const batch = (begin: number) => [
      Buffer.from("("),
      ...Array.from({ length: 1000 }, (_, i) => join2(text(`${begin + i}`), get(1))),
      Buffer.from("u"),
    ];
    const batches = Array.from({ length: maxTensors / 1000 }, (_, i) => batch(1000 * i)).flat();
    const data = pickle.file(dict(text("w"), value, put(1)), ...batches);
    await expectRefusal(torchBytes(data, { 0: sixteen }), `at most ${maxTensors}`);
  });
});
