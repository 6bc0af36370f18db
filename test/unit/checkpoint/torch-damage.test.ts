/** Damage to torch.save's files is never more than a refusal. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { elementBytes } from "../../../checkpoint/safetensors.js";
import { RelayError } from "../../../common/errors.js";
import { tensor } from "./model-fixture.js";
import { pickle, pickledTensor, stateDictBytes, torchBytes } from "./torch-fixture.js";
import { expectRefusal, file, read, sixteen } from "./torch-reading.js";

const { get, global, int, orderedDict, put, text } = pickle;

describe("damage at random", () => {
  const whole = stateDictBytes([tensor("a", [4, 4]), tensor("b", [8]), tensor("c", [2, 2], "F32")]);
  const small = stateDictBytes([tensor("a", [3])], { zip64: false });

  /** A refusal that names the file, or tensors that lie within it. */
  async function expectSound(bytes: Uint8Array): Promise<void> {
    try {
      const { tensors, byteLength } = await read(bytes);
      for (const { byteOffset, byteLength: size, shape, dtype } of tensors) {
        expect(size).toBe(
          shape.reduce((product, dimension) => product * dimension, elementBytes.get(dtype)!),
        );
        expect(byteOffset).toBeGreaterThan(0);
        expect(byteOffset + size).toBeLessThanOrEqual(byteLength);
      }
    } catch (error) {
      expect(error).toBeInstanceOf(RelayError);
      expect((error as RelayError).code).toBe("invalid_model");
      expect((error as RelayError).message).toContain(file);
    }
  }

  it("a truncated copy is refused, wherever it is cut", async () => {
    for (let length = 0; length < small.length; length++) {
      await expectRefusal(small.subarray(0, length));
    }
  });

  it("other bytes here and there", async () => {
    const edit = fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 0, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 6 }), async (edits) => {
        const damaged = Buffer.from(whole);
        for (const [position, byte] of edits) damaged[position] = byte;
        await expectSound(damaged);
      }),
      { numRuns: 600, seed: 1 },
    );
  });

  it("numbers of any size in the directory", async () => {
    const end = whole.length - 98;
    const directoryBegin = Number(whole.readBigUInt64LE(end + 48));
    const width = fc.constantFrom(2, 4, 8);
    const value = fc.oneof(fc.bigInt(0n, 2n ** 64n - 1n), fc.bigInt(0n, BigInt(whole.length + 8)));
    const place = fc.integer({ min: directoryBegin, max: whole.length - 8 });
    await fc.assert(
      fc.asyncProperty(place, width, value, async (position, bytes, number) => {
        const damaged = Buffer.from(whole);
        damaged.writeBigUInt64LE(number, position);
        whole.copy(damaged, position + bytes, position + bytes, position + 8);
        await expectSound(damaged);
      }),
      { numRuns: 600, seed: 2 },
    );
  });

  it("pickles of random opcodes, and random bytes", async () => {
    const opcodes = [
      ...Buffer.from("(NJKMGX)t]ae}suqrhjcRbQ."),
      0x80,
      0x85,
      0x86,
      0x87,
      0x88,
      0x8a,
      0x8c,
      0x93,
      0x94,
      0x95,
    ];
    const piece = fc.oneof(
      { weight: 6, arbitrary: fc.constantFrom(...opcodes).map((opcode) => Buffer.from([opcode])) },
      fc.constantFrom(text("storage"), global("torch", "HalfStorage"), int(8), get(0), put(0), orderedDict()),
      fc.constant(pickledTensor({ dtype: "F16", key: "0", count: 8, shape: [8] })),
      fc.uint8Array({ maxLength: 9 }).map((bytes) => Buffer.from(bytes)),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 40 }), async (pieces) => {
        await expectSound(torchBytes(pickle.file(...pieces), { 0: sixteen }));
      }),
      { numRuns: 800, seed: 3 },
    );
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), fc.boolean(), async (bytes, zip) => {
        await expectSound(zip ? Buffer.concat([Buffer.from("PK\x03\x04", "latin1"), bytes]) : bytes);
      }),
      { numRuns: 300, seed: 4 },
    );
  });
});
