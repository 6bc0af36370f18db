/** The reader of safetensors believes nothing: each lie of a header is refused by name. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readSafetensors } from "../../../checkpoint/safetensors.js";
import { writeSafetensors } from "../../../checkpoint/safetensors-writer.js";
import { RelayError } from "../../../common/errors.js";
import { temporaryDirectory, tensor } from "./model-fixture.js";

const directory = temporaryDirectory();
const file = join(directory, "model.safetensors");

/** Writes a file of this header and this many bytes of data. */
function write(header: unknown, dataBytes: number): void {
  const json = Buffer.isBuffer(header)
    ? header
    : Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(file, Buffer.concat([length, json, Buffer.alloc(dataBytes)]));
}

async function expectRefusal(...parts: string[]): Promise<void> {
  const error = await readSafetensors(file).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  expect((error as RelayError).code).toBe("invalid_model");
  for (const part of [file, ...parts]) expect((error as RelayError).message).toContain(part);
}

const entry = (begin: number, end: number, shape = [(end - begin) / 2], dtype = "F16") => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

describe("reading", () => {
  it("gives back what was written, with offsets into the file", async () => {
    const written = [tensor("a", [2, 3]), tensor("empty", [0, 4]), tensor("scalar", [], "F32")];
    await writeSafetensors(file, written, { format: "pt" });
    const read = await readSafetensors(file);
    const bytes = readFileSync(file);
    expect(read.metadata).toEqual({ format: "pt" });
    expect(read.tensors.map(({ name }) => name).sort()).toEqual(["a", "empty", "scalar"]);
    for (const { name, shape, dtype, data } of written) {
      const found = read.tensors.find((candidate) => candidate.name === name)!;
      expect(found).toMatchObject({ shape, dtype, file, byteLength: data.length });
      const stored = bytes.subarray(found.byteOffset, found.byteOffset + found.byteLength);
      expect(Buffer.compare(stored, data)).toBe(0);
    }
    expect(read.tensors[0]!.byteOffset % 8).toBe(0);
  });
});

describe("writing", () => {
  it("takes a tensor piece by piece", async () => {
    const { data, ...whole } = tensor("a", [4, 4]);
    await writeSafetensors(file, [{ ...whole, data: [data.subarray(0, 5), data.subarray(5)] }]);
    const { byteOffset } = (await readSafetensors(file)).tensors[0]!;
    expect(Buffer.compare(readFileSync(file).subarray(byteOffset), data)).toBe(0);
  });

  it("fails when the pieces are not as long as the shape says", async () => {
    const short = { ...tensor("a", [4, 4]), data: [new Uint8Array(31)] };
    await expect(writeSafetensors(file, [short])).rejects.toThrow("tensor a has 31 bytes, expected 32");
  });
});

describe("refusals", () => {
  it("a missing file", async () => {
    await expect(readSafetensors(join(directory, "none"))).rejects.toThrow(/cannot open .*none/);
  });

  it("a file shorter than its length field", async () => {
    writeFileSync(file, Buffer.alloc(5));
    await expectRefusal("truncated", "5 bytes");
  });

  it("a header that ends after the file", async () => {
    writeFileSync(file, Buffer.from([100, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0x7d]));
    await expectRefusal("truncated", "100 bytes");
  });

  it("a huge header length, without allocating it", async () => {
    writeFileSync(file, Buffer.alloc(64, 0xff));
    await expectRefusal("header length is 18446744073709551615", "100000000");
  });

  it.each([
    ["text that is no JSON", "hello", "not JSON"],
    ["an array", "[]", "expected {...}"],
    ["bytes that are no UTF-8", Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), "not JSON"],
    ["nesting without end", "[".repeat(50_000), "not JSON"],
    ["a key twice", '{"a":{"dtype":"F16","dtype":"F32"}}', '"dtype" twice'],
    ["a tensor twice", '{"a":{},"\\u0061":{}}', '"a" twice'],
  ])("a header of %s", async (_, header, message) => {
    write(header, 0);
    await expectRefusal(message);
  });

  it.each([
    ["that is no object", 7, 2, "tensor w is not an object"],
    ["of unknown dtype", entry(0, 2, [1], "F13"), 2, '"F13"'],
    ["of a negative dimension", entry(0, 2, [-1]), 2, "shape is [-1]"],
    ["of a fractional dimension", entry(0, 2, [0.5]), 2, "shape is [0.5]"],
    ["without offsets", { dtype: "F16", shape: [1] }, 2, "data_offsets is absent"],
    ["with offsets backwards", entry(2, 0, [1]), 2, "data_offsets are [2, 0]"],
    ["beyond the end of the file", entry(0, 4), 2, "within [0, 2]"],
    ["of the wrong size for its shape", entry(0, 4, [3]), 4, "has 4 bytes, expected 6"],
    ["whose size overflows", entry(0, 4, [2 ** 52, 2 ** 52]), 4, "has 4 bytes"],
  ])("a tensor %s", async (_, value, dataBytes, message) => {
    write({ w: value }, dataBytes);
    await expectRefusal("tensor w", message);
  });

  it("overlapping tensors", async () => {
    write({ a: entry(0, 8), b: entry(6, 10) }, 10);
    await expectRefusal("tensor b", "overlaps tensor a");
  });

  it("bytes that belong to no tensor, between and behind", async () => {
    write({ a: entry(0, 4), b: entry(6, 8) }, 8);
    await expectRefusal("tensor b", "belong to no tensor");
    write({ a: entry(0, 4) }, 8);
    await expectRefusal("its tensors end");
  });

  it("a truncated copy, wherever it is cut", async () => {
    await writeSafetensors(file, [tensor("a", [4, 4]), tensor("b", [8])]);
    const whole = readFileSync(file);
    for (let length = 0; length < whole.length; length++) {
      writeFileSync(file, whole.subarray(0, length));
      await expect(readSafetensors(file), `${length} bytes`).rejects.toBeInstanceOf(RelayError);
    }
  });
});

describe("damage at random", () => {
  it("ends in a RelayError or a file that still adds up, never in a crash", async () => {
    await writeSafetensors(file, [tensor("a", [4, 4]), tensor("b", [8]), tensor("c", [2, 2], "F32")]);
    const whole = readFileSync(file);
    const headerEnd = 8 + Number(whole.readBigUInt64LE());
    const edit = fc.tuple(fc.nat(headerEnd - 1), fc.integer({ min: 0, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 6 }), async (edits) => {
        const damaged = Buffer.from(whole);
        for (const [position, byte] of edits) damaged[position] = byte;
        writeFileSync(file, damaged);
        try {
          const { tensors, byteLength } = await readSafetensors(file);
          for (const { byteOffset, byteLength: size } of tensors) {
            expect(byteOffset + size).toBeLessThanOrEqual(byteLength);
          }
        } catch (error) {
          expect(error).toBeInstanceOf(RelayError);
        }
      }),
      { numRuns: 400, seed: 1 },
    );
  });
});
