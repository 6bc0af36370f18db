/** SentencePiece files that are damaged, or that ask for what would be encoded differently. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseSentencePiece } from "../../../checkpoint/sentencepiece.js";
import { RelayError } from "../../../common/errors.js";
import {
  bytePieces,
  controlPieces,
  type FixtureOptions,
  type FixturePiece,
  field,
  number,
  sentencePieceBytes,
  smallPieces,
} from "../prompt/sentencepiece-fixture.js";

function refusal(bytes: Uint8Array): string {
  try {
    parseSentencePiece(bytes, "tokenizer.model");
  } catch (error) {
    expect(error).toBeInstanceOf(RelayError);
    expect((error as RelayError).code).toBe("invalid_model");
    expect((error as RelayError).message).toContain("tokenizer.model");
    return (error as RelayError).message;
  }
  throw new Error("the file was accepted");
}

it("reads pieces, scores, types and flags", () => {
  const file = parseSentencePiece(sentencePieceBytes(smallPieces), "tokenizer.model");
  expect(file.pieces).toHaveLength(smallPieces.length);
  expect(file.pieces[0]).toEqual({ text: "<unk>", score: 0, type: "unknown" });
  expect(file.pieces[3]).toEqual({ text: "<0x00>", score: 0, type: "byte" });
  expect(file.pieces[260]).toEqual({ text: "h", score: -1, type: "normal" });
  expect(file).toMatchObject({ unknownId: 0, byteFallback: true, addDummyPrefix: true, modelType: "bpe" });
  const unigram = parseSentencePiece(
    sentencePieceBytes(smallPieces, { modelType: 1, removeExtraWhitespaces: true }),
    "tokenizer.model",
  );
  expect(unigram).toMatchObject({ modelType: "unigram", removeExtraWhitespaces: true, characterMap: null });
});

describe("refused features", () => {
  it.each<[string, FixtureOptions, string]>([
    ["a model of words", { modelType: 3 }, "model type is WORD, expected UNIGRAM or BPE"],
    ["an unknown model type", { modelType: 9 }, "model type is 9"],
    [
      "a normalizer without its map",
      { normalizer: "nmt_nfkc" },
      'normalizer is "nmt_nfkc" without a character map',
    ],
    ["bytes without byte fallback", { byteFallback: false }, "byte_fallback is false"],
  ])("%s", (_, options, message) => {
    expect(refusal(sentencePieceBytes(smallPieces, options))).toContain(message);
  });

  it.each<[string, number, Buffer, string]>([
    ["a denormalizer", 5, field(2, Buffer.from("x")), "denormalizer"],
    ["whitespace as suffix", 2, number(24, 1), "treat_whitespace_as_suffix is true"],
    ["unescaped whitespace", 3, number(5, 0), "escape_whitespaces is false"],
  ])("%s", (_, id, message, expected) => {
    const bytes = Buffer.concat([sentencePieceBytes(smallPieces), field(id, message)]);
    expect(refusal(bytes)).toContain(expected);
  });
});

describe("refused pieces", () => {
  it.each<[string, FixturePiece[], string]>([
    ["none", [], "no pieces"],
    ["a piece twice", [...smallPieces, { text: "he" }], 'are both "he"'],
    ["no unknown token", smallPieces.slice(1), "no piece is of type UNKNOWN"],
    ["two unknown tokens", [...smallPieces, { text: "<x>", type: "unknown" }], "both of type UNKNOWN"],
    ["a missing byte", [...controlPieces, ...bytePieces.slice(1)], "only 255 of 256"],
    ["a byte of another form", [...smallPieces, { text: "<0xG0>", type: "byte" }], 'is "<0xG0>"'],
    ["an empty piece", [...smallPieces, { text: "" }], 'is ""'],
    ["a score that is no number", [...smallPieces, { text: "x", score: Number.NaN }], "score NaN"],
    ["an endless piece", [...smallPieces, { text: "x".repeat(2000) }], "has 2000 bytes"],
  ])("%s", (_, pieces, message) => {
    expect(refusal(sentencePieceBytes(pieces))).toContain(message);
  });

  it("a type that does not exist, and text that is no UTF-8", () => {
    const bytes = sentencePieceBytes(smallPieces);
    const odd = field(1, Buffer.concat([field(1, Buffer.from("x")), number(3, 7)]));
    expect(refusal(Buffer.concat([bytes, odd]))).toContain("of type 7");
    const broken = field(1, field(1, Buffer.from([0xe4, 0xbd])));
    expect(refusal(Buffer.concat([bytes, broken]))).toContain("is not UTF-8");
  });
});

describe("damage", () => {
  it("of a cut file is found, wherever it is cut", () => {
    const bytes = sentencePieceBytes(smallPieces);
    for (let length = 0; length < bytes.length; length += 29) {
      // The flags come last, so every cut loses at least them.
      expect(refusal(bytes.subarray(0, length))).toMatch(/damaged|no pieces|the file may be cut/);
    }
  });

  it("of another format is found", () => {
    expect(refusal(Buffer.from("IQ== 0\nIg== 1\n"))).toContain("no pieces");
    expect(refusal(Buffer.from('{"model": {}}'))).toContain("damaged");
    expect(refusal(Buffer.alloc(1000, 0xff))).toContain("longer than 10 bytes");
    expect(refusal(Buffer.alloc(1000))).toContain("field number 0");
  });

  it("at random ends in a RelayError or a model, never in a crash", () => {
    const bytes = sentencePieceBytes(smallPieces);
    const edit = fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }));
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 6 }), (edits) => {
        const damaged = Buffer.from(bytes);
        for (const [position, byte] of edits) damaged[position] = byte;
        try {
          expect(parseSentencePiece(damaged, "tokenizer.model").pieces.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(RelayError);
        }
      }),
      { numRuns: 300, seed: 1 },
    );
  });
});
