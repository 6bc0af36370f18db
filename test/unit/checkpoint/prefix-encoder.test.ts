/** P-Tuning v2's prefix encoder: in the checkpoint or beside it, and refused where it does not fit. */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { maxPrefixLength } from "../../../checkpoint/prefix-encoder.js";
import { type TensorData, writeSafetensors } from "../../../checkpoint/safetensors-writer.js";
import { RelayError } from "../../../common/errors.js";
import { temporaryDirectory, tensor, tinyTensors, writeTinyModel } from "./model-fixture.js";
import { writeTorchFile } from "./torch-fixture.js";

const own = "transformer.prefix_encoder.";
/** 3 layers, one key/value head of 8. */
const width = 2 * 3 * 8;
const plain = (length = 5, columns = width) => [tensor(`${own}embedding.weight`, [length, columns], "F32")];
const projected = (embeddingWidth = 16) => [
  ...plain(5, embeddingWidth),
  tensor(`${own}trans.0.weight`, [16, embeddingWidth]),
  tensor(`${own}trans.0.bias`, [16]),
  tensor(`${own}trans.2.weight`, [width, 16]),
  tensor(`${own}trans.2.bias`, [width]),
];

type Config = Record<string, unknown>;

const withEncoder = (config: Config, tensors: TensorData[]) =>
  writeTinyModel({ config, tensors: [...tinyTensors(), ...tensors] });

async function encoderDirectory(config: Config | null, tensors: TensorData[], torch = true): Promise<string> {
  const directory = temporaryDirectory();
  if (config !== null) writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  if (torch) writeTorchFile(join(directory, "pytorch_model.bin"), tensors);
  else await writeSafetensors(join(directory, "model.safetensors"), tensors);
  return directory;
}

async function refusal(directory: string, prefixEncoder: string | null = null): Promise<string> {
  const error = await openModel(directory, { prefixEncoder }).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  expect((error as RelayError).code).toBe("invalid_model");
  return (error as RelayError).message;
}

describe("in the checkpoint", () => {
  it("is found by its tensors and by config.json", async () => {
    for (const config of [{}, { pre_seq_len: null }, { pre_seq_len: 5, prefix_projection: false }]) {
      const { prefixEncoder } = await openModel(await withEncoder(config, plain()));
      expect(prefixEncoder).toMatchObject({ length: 5, projection: null });
      const { file, byteOffset, byteLength, dtype, shape } = prefixEncoder!.embedding;
      expect([dtype, shape]).toEqual(["float32", [5, width]]);
      const stored = readFileSync(file).subarray(byteOffset, byteOffset + byteLength);
      expect(Buffer.compare(stored, plain()[0]!.data)).toBe(0);
    }
  });

  it.each([16, width])("has a projection from a width of %i", async (embeddingWidth) => {
    const directory = await withEncoder(
      { pre_seq_len: 5, prefix_projection: true },
      projected(embeddingWidth),
    );
    const { prefixEncoder } = await openModel(directory);
    const { hidden, out } = prefixEncoder!.projection!;
    expect(hidden.weight.shape).toEqual([16, embeddingWidth]);
    expect(hidden.bias.shape).toEqual([16]);
    expect(out.weight.shape).toEqual([width, 16]);
    expect(out.bias.shape).toEqual([width]);
  });

  it("is none without its tensors, or when config.json or --set says 0", async () => {
    expect((await openModel(await writeTinyModel())).prefixEncoder).toBeNull();
    expect((await openModel(await withEncoder({ pre_seq_len: 0 }, plain()))).prefixEncoder).toBeNull();
    const directory = await withEncoder({ pre_seq_len: 5 }, plain());
    const without = await openModel(directory, { overrides: { pre_seq_len: 0 } });
    expect(without.prefixEncoder).toBeNull();
    expect(without.fingerprint).not.toBe((await openModel(directory)).fingerprint);
  });

  it.each<[string, Config, TensorData[], string]>([
    ["its tensors are missing", { pre_seq_len: 5 }, [], `has no tensor ${own}embedding.weight`],
    [
      "another length",
      { pre_seq_len: 6 },
      plain(),
      `shape [5, ${width}], expected [6, ${width}] for this model`,
    ],
    ["another model's", { pre_seq_len: 5 }, plain(5, 96), `shape [5, 96], expected [5, ${width}]`],
    ["no number", { pre_seq_len: "5" }, plain(), '"pre_seq_len" is "5", expected a whole number from 0'],
    ["no whole number", { pre_seq_len: 5.5 }, plain(), '"pre_seq_len" is 5.5'],
    ["too long", { pre_seq_len: maxPrefixLength + 1 }, plain(), `"pre_seq_len" is ${maxPrefixLength + 1}`],
    ["too long by its tensor", {}, plain(maxPrefixLength + 1), `a prefix of ${maxPrefixLength + 1}`],
    ["empty", {}, plain(0), "a prefix of 0"],
    ["no matrix", {}, [tensor(`${own}embedding.weight`, [240])], `shape [240], expected [length, ${width}]`],
    ["another type", {}, [tensor(`${own}embedding.weight`, [5, width], "I16")], "has dtype I16"],
    ["no projection after all", { prefix_projection: true }, plain(5, 16), `no tensor ${own}trans.0.weight`],
    [
      "a projection after all",
      { prefix_projection: false },
      projected(),
      '"prefix_projection" is false, but',
    ],
    [
      "no truth value",
      { prefix_projection: 1 },
      projected(),
      '"prefix_projection" is 1, expected true or false',
    ],
    ["a part of the projection", {}, projected().slice(0, 4), `no tensor ${own}trans.2.bias`],
    ["a projection of another width", {}, projected(24), `shape [5, 24], expected [length, 16 or ${width}]`],
  ])("refused: %s", async (_, config, tensors, message) => {
    expect(await refusal(await withEncoder(config, tensors))).toContain(message);
  });
});

describe("in a directory of its own", () => {
  it.each([
    ["as P-Tuning saves it", own, true],
    ["under short names", "prefix_encoder.", true],
    ["as safetensors", own, false],
  ])("%s", async (_, prefix, torch) => {
    const tensors = projected().map((one) => ({ ...one, name: one.name.replace(own, prefix) }));
    const prefixEncoder = await encoderDirectory({ pre_seq_len: 5, prefix_projection: true }, tensors, torch);
    const directory = await writeTinyModel();
    const model = await openModel(directory, { prefixEncoder });
    expect(model.prefixEncoder).toMatchObject({ length: 5 });
    expect(model.prefixEncoder!.embedding.file).toContain(prefixEncoder);
    expect(model.fingerprint).not.toBe((await openModel(directory)).fingerprint);
  });

  it("needs no config.json, and wins over one in the checkpoint", async () => {
    const prefixEncoder = await encoderDirectory(null, plain(7));
    const model = await openModel(await withEncoder({ pre_seq_len: 5 }, plain()), { prefixEncoder });
    expect(model.prefixEncoder!.length).toBe(7);
    const tuned = await writeTinyModel({ config: { pre_seq_len: 128 } });
    expect((await openModel(tuned, { prefixEncoder })).prefixEncoder!.length).toBe(7);
  });

  it("another encoder is another fingerprint", async () => {
    const directory = await writeTinyModel();
    const of = async (salt: number) => {
      const embedding = tensor(`${own}embedding.weight`, [5, width], "F16", salt);
      return (await openModel(directory, { prefixEncoder: await encoderDirectory(null, [embedding]) }))
        .fingerprint;
    };
    expect(await of(1)).toBe(await of(1));
    expect(await of(1)).not.toBe(await of(2));
  });

  it("refused: what is none", async () => {
    const model = await writeTinyModel();
    expect(await refusal(model, "/nowhere")).toBe(
      "/nowhere is not a directory, expected one with a prefix encoder",
    );
    expect(await refusal(model, temporaryDirectory())).toContain("no weights in");
    expect(await refusal(model, await encoderDirectory({}, [tensor("a", [1])]))).toContain(
      `holds no tensor ${own}embedding.weight`,
    );
    const zero = await encoderDirectory({ pre_seq_len: 0 }, plain());
    expect(await refusal(model, zero)).toContain('config.json: "pre_seq_len" is 0, expected at least 1');
    const broken = await encoderDirectory({ pre_seq_len: 5 }, plain());
    rmSync(join(broken, "config.json"));
    writeFileSync(join(broken, "config.json"), "{");
    expect(await refusal(model, broken)).toContain("config.json is not JSON");
  });

  it("damaged: a refusal, or an encoder within its file", async () => {
    const model = await writeTinyModel();
    const prefixEncoder = await encoderDirectory({ pre_seq_len: 5 }, projected());
    const file = join(prefixEncoder, "pytorch_model.bin");
    const bytes = readFileSync(file);
    const edit = fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), async (edits) => {
        const damaged = Buffer.from(bytes);
        for (const [position, byte] of edits) damaged[position] = byte;
        writeFileSync(file, damaged);
        try {
          const { embedding } = (await openModel(model, { prefixEncoder })).prefixEncoder!;
          expect(embedding.byteOffset + embedding.byteLength).toBeLessThanOrEqual(bytes.length);
        } catch (error) {
          expect(error).toBeInstanceOf(RelayError);
          expect((error as RelayError).code).toBe("invalid_model");
        }
      }),
      { numRuns: 200, seed: 6 },
    );
  });
});
