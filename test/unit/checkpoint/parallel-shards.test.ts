/** Tensor-parallel shards: put together without a copy, and refused where they do not fit. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { maxRanks, mergeShards, readParallelShards } from "../../../checkpoint/parallel-shards.js";
import { elementBytes } from "../../../checkpoint/safetensors.js";
import type { TensorData } from "../../../checkpoint/safetensors-writer.js";
import type { MergedTensor } from "../../../checkpoint/tensors.js";
import { readTorchFile } from "../../../checkpoint/torch-file.js";
import { RelayError } from "../../../common/errors.js";
import { temporaryDirectory, tensor } from "./model-fixture.js";
import { rankName, shardOf, wholeModel, writeShards } from "./shards-fixture.js";
import { pickle, pickledTensor, torchBytes, trainingBytes, writeTorchFile } from "./torch-fixture.js";

const { dict, global, int, list, none, orderedDict, text, tuple } = pickle;

async function merge(directory: string) {
  const shards = await readParallelShards(directory);
  expect(shards).not.toBeNull();
  return { ...(await mergeShards(shards!)), layout: shards!.layout };
}

async function refusal(directory: string): Promise<string> {
  const error = await merge(directory).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  expect((error as RelayError).code).toBe("invalid_model");
  return (error as RelayError).message;
}

/** The bytes of the whole tensor, read part by part as an engine would. */
function bytesOf({ axis, parts, shape, dtype }: MergedTensor): Buffer {
  const read = parts.map(({ file, byteOffset, byteLength }) =>
    readFileSync(file).subarray(byteOffset, byteOffset + byteLength),
  );
  if (axis === 0) return Buffer.concat(read);
  const rows = Array.from({ length: shape[0]! }, (_, row) =>
    parts.map((part, i) => {
      const rowBytes = part.shape[1]! * elementBytes.get(dtype)!;
      return read[i]!.subarray(row * rowBytes, (row + 1) * rowBytes);
    }),
  );
  return Buffer.concat(rows.flat());
}

describe.each(["glm-130b", "glm-10b"] as const)("%s", (family) => {
  it.each([1, 2, 4])("is the same whole from %i ranks", async (ranks) => {
    const { layout, merged, files, unknown } = await merge(writeShards(family, ranks));
    expect(layout.modelType).toBe(family);
    expect(files).toHaveLength(ranks);
    expect(unknown).toEqual([]);
    const expected = wholeModel(family).filter(({ name }) => !name.endsWith("inv_freq"));
    expect([...merged.keys()].sort()).toEqual(expected.map(({ name }) => name).sort());
    for (const { name, shape, dtype, data } of expected) {
      const whole = merged.get(name)!;
      expect(whole).toMatchObject({ name, shape, dtype });
      expect(Buffer.compare(bytesOf(whole), data), name).toBe(0);
      const along = whole.parts.reduce((sum, part) => sum + part.shape[whole.axis]!, 0);
      expect(along).toBe(shape[whole.axis]);
    }
  });

  it("is found through `latest` too", async () => {
    const { merged } = await merge(writeShards(family, 2, { latest: "49300" }));
    expect(merged.size).toBeGreaterThan(20);
    const older = writeShards(family, 2, { latest: "49300" });
    renameSync(join(older, "latest"), join(older, "latest_checkpointed_iteration.txt"));
    expect((await merge(older)).merged.size).toBe(merged.size);
  });

  it("has the pieces of each rank where the layout says", async () => {
    const { merged, tensors } = await merge(writeShards(family, 2));
    const parts = (name: string) => merged.get(`transformer.layers.1.${name}`)!.parts.length;
    const large = family === "glm-130b";
    expect(parts("attention.query_key_value.weight")).toBe(large ? 2 : 6);
    expect(parts("mlp.dense_h_to_4h.bias")).toBe(large ? 4 : 2);
    expect(parts("mlp.dense_4h_to_h.weight")).toBe(2);
    expect(parts("mlp.dense_4h_to_h.bias")).toBe(1);
    expect(tensors.has("transformer.layers.1.mlp.dense_4h_to_h.bias")).toBe(true);
    expect(tensors.has("transformer.layers.1.mlp.dense_4h_to_h.weight")).toBe(false);
  });
});

describe("beside the state dict", () => {
  it("plain values of a training are passed over", async () => {
    const size = Buffer.concat([global("torch", "Size"), tuple(tuple(int(4), int(4))), pickle.reduce]);
    const set = Buffer.concat([global("__builtin__", "set"), tuple(list(text("a"))), pickle.reduce]);
    const others = [
      ...[text("optimizer"), none, text("global_steps"), int(49_300)],
      ...[text("param_shapes"), dict(text("w"), size), text("names"), set],
    ];
    expect((await merge(writeShards("glm-130b", 2, { others }))).merged.size).toBe(27);
  });

  it("the state of NumPy's random numbers is dropped", async () => {
    const call = (module: string, name: string, ...args: Buffer[]) =>
      Buffer.concat([global(module, name), tuple(...args), pickle.reduce]);
    const bytes = (value: string) => call("_codecs", "encode", text(value), text("latin1"));
    const dtype = Buffer.concat([
      call("numpy", "dtype", text("u4"), pickle.false, pickle.true),
      ...[tuple(int(3), text("<"), none, none, none, int(-1), int(-1), int(0)), pickle.build],
    ]);
    const array = Buffer.concat([
      call("numpy.core.multiarray", "_reconstruct", global("numpy", "ndarray"), tuple(int(0)), bytes("b")),
      ...[tuple(int(1), tuple(int(2)), dtype, pickle.false, bytes("\u0001\u00ff")), pickle.build],
    ]);
    const others = [text("np_rng_state"), tuple(text("MT19937"), array, int(624), int(0))];
    expect((await merge(writeShards("glm-10b", 2, { others }))).unknown).toEqual([]);
    // Elsewhere the names stay unknown, and none of it can be a tensor.
    const file = join(temporaryDirectory(), "pytorch_model.bin");
    writeFileSync(file, torchBytes(pickle.file(dict(text("w"), array))));
    await expect(readTorchFile(file)).rejects.toThrow('names "numpy.core.multiarray._reconstruct"');
    writeFileSync(file, torchBytes(pickle.file(dict(text("module"), dict(text("w"), array)))));
    await expect(readTorchFile(file, "module")).rejects.toThrow('has a NumPy object under "w"');
  });

  it("objects of other classes are refused by name", async () => {
    const others = [text("args"), Buffer.concat([global("argparse", "Namespace"), tuple(), pickle.reduce])];
    const message = await refusal(writeShards("glm-130b", 2, { others }));
    expect(message).toContain('mp_rank_00_model_states.pt: data.pkl names "argparse.Namespace"');
  });

  it("a file without it is refused", async () => {
    const directory = temporaryDirectory();
    const file = join(directory, rankName(0));
    writeFileSync(file, trainingBytes(shardOf("glm-130b", 0, 1), [], "model"));
    expect(await refusal(directory)).toBe(`${file} has absent under "module", expected the state dict`);
    writeTorchFile(file, shardOf("glm-130b", 0, 1));
    expect(await refusal(directory)).toContain('under "module"');
  });
});

describe("refusals", () => {
  const inRank = (rank: number, name: string, by: (tensor: TensorData) => TensorData[]) => ({
    edit: (tensors: TensorData[], of: number) =>
      tensors.flatMap((one) => (of === rank && one.name === name ? by(one) : [one])),
  });
  const norm = "transformer.layers.1.input_layernorm.weight";

  it("a directory without shards is none", async () => {
    expect(await readParallelShards(temporaryDirectory())).toBeNull();
  });

  it("a rank that is missing", async () => {
    const directory = writeShards("glm-130b", 4);
    rmSync(join(directory, rankName(1)));
    expect(await refusal(directory)).toBe(
      `${directory} has no mp_rank_01_model_states.pt, expected one for every rank up to that of mp_rank_03_model_states.pt`,
    );
    renameSync(join(directory, rankName(3)), join(directory, `mp_rank_${maxRanks}_model_states.pt`));
    expect(await refusal(directory)).toContain(`rank ${maxRanks}, expected fewer than ${maxRanks}`);
  });

  it("`latest` that leads elsewhere, or nowhere", async () => {
    const directory = writeShards("glm-130b", 1, { latest: "49300" });
    mkdirSync(join(directory, "empty"));
    for (const name of ["../x", "..", "/etc", "", "a b", "missing", "empty"]) {
      writeFileSync(join(directory, "latest"), name);
      expect(await refusal(directory)).toContain(join(directory, "latest"));
    }
  });

  it("names, types and shapes that differ", async () => {
    const other = rankName(1);
    const without = writeShards(
      "glm-130b",
      2,
      inRank(1, norm, () => []),
    );
    expect(await refusal(without)).toContain(`${other} has no tensor ${norm}`);
    const more = writeShards(
      "glm-130b",
      2,
      inRank(1, norm, (one) => [one, tensor("more", [1])]),
    );
    expect(await refusal(more)).toContain(`${other} has tensor more, which`);
    const wide = writeShards(
      "glm-130b",
      2,
      inRank(1, norm, () => [tensor(norm, [16], "F32")]),
    );
    expect(await refusal(wide)).toContain(`has tensor ${norm} as F32 [16], expected F16 [16]`);
    const long = writeShards(
      "glm-130b",
      2,
      inRank(1, norm, () => [tensor(norm, [17])]),
    );
    expect(await refusal(long)).toContain(`has tensor ${norm} as F16 [17], expected F16 [16]`);
  });

  it("copies that differ: shards of two moments of a training", async () => {
    const change = inRank(1, norm, () => [tensor(norm, [16], "F16", 99)]);
    expect(await refusal(writeShards("glm-130b", 2, change))).toContain(
      `mp_rank_01_model_states.pt has another tensor ${norm} than`,
    );
  });

  it("rows that cannot be cut in halves, and a vector where columns are needed", async () => {
    const bias = "transformer.layers.0.mlp.dense_h_to_4h.bias";
    const odd = {
      edit: (tensors: TensorData[]) => tensors.map((one) => (one.name === bias ? tensor(bias, [7]) : one)),
    };
    expect(await refusal(writeShards("glm-130b", 2, odd))).toContain(
      `tensor ${bias} with shape [7], expected a multiple of 2 along dimension 0`,
    );
    const dense = "transformer.layers.0.attention.dense.weight";
    const flat = {
      edit: (tensors: TensorData[]) =>
        tensors.map((one) => (one.name === dense ? tensor(dense, [128]) : one)),
    };
    expect(await refusal(writeShards("glm-10b", 2, flat))).toContain("along dimension 1");
  });

  it("quantized shards", async () => {
    const name = "transformer.layers.0.attention.dense.weight";
    const scale = {
      edit: (tensors: TensorData[]) => [...tensors, tensor(`${name}_scale`, [16])],
    };
    expect(await refusal(writeShards("glm-130b", 2, scale))).toContain(
      `has tensor ${name}_scale: quantized shards are not read yet, expected the FP16 ones`,
    );
    const int8 = {
      edit: (tensors: TensorData[]) =>
        tensors.map((one) => (one.name === name ? { ...one, dtype: "I8", shape: [16, 16] } : one)),
    };
    expect(await refusal(writeShards("glm-130b", 2, int8))).toContain(`has tensor ${name}: quantized`);
  });

  it("another family", async () => {
    const directory = temporaryDirectory();
    writeFileSync(join(directory, rankName(0)), trainingBytes([tensor("wte.weight", [4, 4])]));
    expect(await refusal(directory)).toContain("1 tensors of no known family, expected those of GLM-10B");
  });

  it("one tensor under so many names that comparing its copies would take for ever", async () => {
    const big = pickledTensor({ dtype: "F16", key: "big", count: 4096, shape: [4096] });
    const again = Array.from({ length: 60 }, (_, i) => [
      text(`transformer.layers.${i + 1}.input_layernorm.weight`),
      i === 0 ? Buffer.concat([big, pickle.put(9)]) : pickle.get(9),
    ]).flat();
    const [up, down] = ["dense_h_to_4h", "dense_4h_to_h"].map((part) => [
      text(`transformer.layers.0.mlp.${part}.weight`),
      pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [4, 2] }),
    ]);
    const embedding = pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [4, 2] });
    const state = orderedDict(
      ...[text("transformer.word_embeddings.weight"), embedding, ...up!, ...down!, ...again],
    );
    const bytes = torchBytes(pickle.file(dict(text("module"), state)), {
      0: new Uint8Array(16),
      big: new Uint8Array(8192),
    });
    const directory = temporaryDirectory();
    for (const rank of [0, 1]) writeFileSync(join(directory, rankName(rank)), bytes);
    expect(await refusal(directory)).toContain("but tensors of 491520 that all ranks hold");
  });
});

describe("damage at random", () => {
  it("is a refusal, or tensors that lie within their files", async () => {
    const directory = writeShards("glm-130b", 2, { sizes: { hidden: 4, inner: 2, vocab: 4, layers: 1 } });
    const file = join(directory, rankName(1));
    const bytes = readFileSync(file);
    const edit = fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), async (edits) => {
        const damaged = Buffer.from(bytes);
        for (const [position, byte] of edits) damaged[position] = byte;
        writeFileSync(file, damaged);
        try {
          const { merged } = await merge(directory);
          for (const { parts } of merged.values()) {
            for (const part of parts) expect(part.byteOffset + part.byteLength).toBeLessThan(bytes.length);
          }
        } catch (error) {
          expect(error).toBeInstanceOf(RelayError);
          expect((error as RelayError).code).toBe("invalid_model");
        }
      }),
      { numRuns: 300, seed: 5 },
    );
  });
});
