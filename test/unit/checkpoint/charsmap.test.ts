/** A normaliser's character map: what is in it, and every kind of damage. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type CharacterMap, parseCharsmap } from "../../../checkpoint/charsmap.js";
import { readFields } from "../../../checkpoint/protobuf.js";
import { parseSentencePiece } from "../../../checkpoint/sentencepiece.js";
import { RelayError } from "../../../common/errors.js";
import { Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { plainCard } from "../prompt/prefix-cards.js";
import { field, sentencePieceBytes, smallPieces } from "../prompt/sentencepiece-fixture.js";

/** SentencePiece's own, of the rules in test/unit/prompt/golden/make_golden.py. */
const [trained] = JSON.parse(
  readFileSync(new URL("../prompt/golden/trained.json", import.meta.url), "utf8"),
) as { model: string }[];
const charsmap = charsmapOf(Buffer.from(trained!.model, "base64"));

function charsmapOf(model: Uint8Array): Buffer {
  const normalizer = [...readFields(model, "model")].find(({ field: id }) => id === 3)!.bytes!;
  return Buffer.from([...readFields(normalizer, "spec")].find(({ field: id }) => id === 2)!.bytes!);
}

function found(map: CharacterMap, text: string, index = 0): [number, string] | null {
  return map.match(text, index) ? [map.length, map.replacement] : null;
}

function refusal(bytes: Uint8Array): string {
  try {
    parseCharsmap(bytes, "tokenizer.model");
  } catch (error) {
    expect(error).toBeInstanceOf(RelayError);
    expect((error as RelayError).code).toBe("invalid_model");
    expect((error as RelayError).message).toMatch(/^tokenizer\.model: the normalizer's character map /);
    return (error as RelayError).message;
  }
  throw new Error("the map was accepted");
}

it("replaces the longest text that fits", () => {
  const map = parseCharsmap(charsmap, "tokenizer.model");
  expect(found(map, "e\u0301\u0302x")).toEqual([3, "ế"]);
  expect(found(map, "e\u0301e\u0302")).toEqual([2, "é"]);
  expect(found(map, "e\u0302")).toBeNull();
  expect(found(map, "xabcde", 1)).toEqual([4, "d"]);
  expect(found(map, "xabce", 1)).toEqual([3, "cba"]);
  expect(found(map, "𝒳𝒳", 2)).toEqual([2, "X"]);
  expect(found(map, "\u200b")).toEqual([1, ""]);
  expect(found(map, "x y")).toEqual([3, " z  w "]);
  for (const text of ["", "\0", "你", "ab", "Ａ".slice(1), "\u{10ffff}"]) expect(found(map, text)).toBeNull();
  expect(map.begins("Ａ".codePointAt(0)!)).toBe(true);
  expect(map.begins("B".codePointAt(0)!)).toBe(false);
});

describe("damage", () => {
  /** A map whose unit at `index` is `unit`. */
  const withUnits = (units: [index: number, unit: number][], size = 512, texts = "a\0") => {
    const bytes = Buffer.alloc(4 + size * 4);
    bytes.writeUInt32LE(size * 4);
    for (const [index, unit] of units) bytes.writeUInt32LE(unit, 4 + index * 4);
    return Buffer.concat([bytes, Buffer.from(texts)]);
  };
  const leaf = (value: number) => 2 ** 31 + value;
  const node = (byte: number, offset: number, hasLeaf = false) =>
    byte | (offset << 10) | (hasLeaf ? 0x100 : 0);

  it("of nothing is needed for a map to be read", () => {
    // Root at 0, its children from 256 on; "a" at 256 ^ 0x61, its value at 0x80 ^ that.
    const a = 256 ^ 0x61;
    const map = withUnits([
      [0, node(0, 256)],
      [a, node(0x61, 0x80, true)],
      [a ^ 0x80, leaf(0)],
    ]);
    expect(found(parseCharsmap(map, "tokenizer.model"), "ab")).toEqual([1, "a"]);
  });

  it.each<[string, Uint8Array, string]>([
    ["nothing", Buffer.alloc(0), "has 0 bytes"],
    ["a size alone", Buffer.alloc(4), "trie has 0 bytes"],
    [
      "a trie of half a unit",
      Buffer.concat([Buffer.from([6, 0, 0, 0]), Buffer.alloc(20)]),
      "trie has 6 bytes",
    ],
    [
      "a trie larger than all",
      Buffer.concat([Buffer.from([255, 255, 255, 252]), Buffer.alloc(20)]),
      "multiple of 4",
    ],
    ["a trie without replacements", withUnits([], 4, ""), "trie has 16 bytes"],
    ["an open replacement", withUnits([], 4, "a\0b"), "expected a NUL"],
    ["a replacement that is no text", Buffer.concat([withUnits([], 4), Buffer.from([0xff, 0])]), "not UTF-8"],
    [
      "a value outside",
      withUnits([
        [0, node(0, 256)],
        [353, node(0x61, 0x80, true)],
        [481, leaf(2)],
      ]),
      "at byte 2 of 2",
    ],
    [
      "no value",
      withUnits([
        [0, node(0, 256)],
        [353, node(0x61, 0x80, true)],
      ]),
      "leads to no value",
    ],
    [
      "a value beyond the trie",
      withUnits([
        [0, node(0, 256)],
        [353, node(0x61, 0x10000, true)],
      ]),
      "leads to no value",
    ],
    [
      "a value for nothing",
      withUnits([
        [0, node(0, 256, true)],
        [256, leaf(0)],
      ]),
      "a part of a character",
    ],
    [
      "a value within a character",
      withUnits([
        [0, node(0, 256)],
        [256 ^ 0xc3, node(0xc3, 0x80, true)],
        [256 ^ 0x43, leaf(0)],
      ]),
      "a part of a character",
    ],
    [
      "a stray byte",
      withUnits([
        [0, node(0, 256)],
        [256 ^ 0x80, node(0x80, 0)],
      ]),
      "the byte 0x80",
    ],
    [
      "a lone first byte",
      withUnits([
        [0, node(0, 256)],
        [256 ^ 0xc3, node(0xc3, 0)],
        [256 ^ 0xc3 ^ 0x61, node(0x61, 0)],
      ]),
      "the byte 0x61",
    ],
    [
      "a circle",
      withUnits([
        [0, node(0, 256)],
        [353, node(0x61, 0x61)],
      ]),
      "in a circle",
    ],
  ])("%s", (_, bytes, message) => {
    expect(refusal(bytes)).toContain(message);
  });

  it("a replacement that begins within a character", () => {
    const map = withUnits(
      [
        [0, node(0, 256)],
        [353, node(0x61, 0x80, true)],
        [481, leaf(1)],
      ],
      512,
      "你\0",
    );
    expect(refusal(map)).toContain("at byte 1 of 4");
  });

  it("a text without end, however it is shared", () => {
    // Each of 70 levels leads to the next one by two bytes: 2 ** 70 ways, all too long.
    const units: [number, number][] = [[0, node(0, 256)]];
    for (let level = 1; level <= 70; level++) {
      for (const byte of [0x61, 0x62]) {
        const at = (256 * level) ^ byte;
        units.push([at, node(byte, at ^ (256 * (level + 1)))]);
      }
    }
    expect(refusal(withUnits(units, 256 * 73))).toContain("more than 64 bytes");
  });

  it("at random ends in a refusal or a map that can be used, never in a crash", () => {
    const trieBytes = charsmap.readUInt32LE();
    // Most of a trie is empty: half of the edits go where something is.
    const used = Array.from({ length: trieBytes }, (_, index) => 4 + index).filter(
      (at) => charsmap[at] !== 0,
    );
    const place = fc.oneof(
      fc.nat(charsmap.length - 1),
      fc.nat(used.length - 1).map((index) => used[index]!),
    );
    const edit = fc.tuple(place, fc.integer({ min: 0, max: 255 }));
    let refused = 0;
    fc.assert(
      fc.property(
        fc.array(edit, { minLength: 1, maxLength: 8 }),
        fc.string({ unit: "binary" }),
        (edits, text) => {
          const damaged = Buffer.from(charsmap);
          for (const [position, byte] of edits) damaged[position] = byte;
          const bytes = sentencePieceBytes(smallPieces, { normalizer: "x", charsmap: damaged });
          try {
            const file = parseSentencePiece(bytes, "tokenizer.model");
            const ids = new Tokenizer(file, plainCard).encodeText(`${text} abcd Ａ e\u0301`, {
              addSpecialTokens: false,
            });
            expect(ids.every((id) => id >= 0 && id < file.pieces.length)).toBe(true);
          } catch (error) {
            expect(error).toBeInstanceOf(RelayError);
            refused++;
          }
        },
      ),
      { numRuns: 1000, seed: 3 },
    );
    expect(refused).toBeGreaterThan(300);
  });
});

const folder = process.env.GLM_RELAY_TOKENIZERS;
if (!folder)
  console.log("skipped: nmt_nfkc's map, because GLM_RELAY_TOKENIZERS names no folder with real tokenizers");

describe.skipIf(!folder)("the map nmt_nfkc", () => {
  it("is read, and its damage ends in a refusal or a map", () => {
    const path = join(folder!, "glm-10b-chinese", "cog-pretrain.model");
    const real = charsmapOf(readFileSync(path));
    const map = parseCharsmap(real, path);
    expect(found(map, "，")).toEqual([1, ","]);
    expect(found(map, "ﷺ")![1]).toHaveLength(18);
    expect(found(map, "\u1100\u1161\u11a8")).toEqual([3, "각"]);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(real.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (edits) => {
          const damaged = Buffer.from(real);
          for (const [position, byte] of edits) damaged[position] = byte;
          try {
            parseCharsmap(damaged, path).match("ﷺ", 0);
          } catch (error) {
            expect(error).toBeInstanceOf(RelayError);
          }
        },
      ),
      { numRuns: 40, seed: 4 },
    );
  });
});

it("an empty map is none", () => {
  const spec = field(3, Buffer.concat([field(1, Buffer.from("identity")), field(2, Buffer.alloc(0))]));
  const bytes = Buffer.concat([sentencePieceBytes(smallPieces), spec]);
  expect(parseSentencePiece(bytes, "tokenizer.model").characterMap).toBeNull();
});
