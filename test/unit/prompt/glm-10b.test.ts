/** GLM-10B: GPT-2's tokenizer against tiktoken, the command tokens of both languages, and blanks. */
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Tiktoken } from "tiktoken";
import { afterAll, describe, expect, it } from "vitest";
import { parseGpt2Files } from "../../../checkpoint/gpt2-files.js";
import { parseSentencePiece } from "../../../checkpoint/sentencepiece.js";
import { fillIdsOf } from "../../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../../common/errors.js";
import { openTokenizer, Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { glm10bEnglishTokenizer } from "../../../models/glm-10b-tokenizer.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";
import { glm10bChineseCard, glm10bChineseFixedCard, glm10bEnglishCard } from "./prefix-cards.js";
import { controlPieces, sentencePieceBytes, variedTexts } from "./sentencepiece-fixture.js";

const plain = { addSpecialTokens: false };
const whole = { addSpecialTokens: true };
const all = { skipSpecialTokens: false };

/** GPT-2's own file of tokens, as npm's tiktoken carries it. */
const { bpe_ranks: packed } = JSON.parse(
  readFileSync(createRequire(import.meta.url).resolve("tiktoken/encoders/gpt2.json"), "utf8"),
) as { bpe_ranks: string };

function gpt2Tokens(): Buffer[] {
  return packed
    .split("\n")
    .flatMap((line) => line.split(" ").slice(2))
    .map((text) => Buffer.from(text, "base64"));
}

/** Byte-level BPE's way to write bytes. */
function visible(bytes: Uint8Array): string {
  const shown = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  const hidden = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !shown(byte));
  return Array.from(bytes, (byte) =>
    String.fromCharCode(shown(byte) ? byte : 0x100 + hidden.indexOf(byte)),
  ).join("");
}

/** vocab.json and merges.txt of tokens in the order of their ranks, the first 256 being single bytes. */
function gpt2Files(tokens: Buffer[], added: string[] = ["<|endoftext|>"]): { vocab: string; merges: string } {
  const names = [...tokens.map(visible), ...added];
  const vocab = JSON.stringify(Object.fromEntries(names.map((name, id) => [name, id])));
  const ranks = new Map(tokens.map((token, rank) => [token.toString("latin1"), rank]));
  const merges = tokens.slice(256).map((token, index) => {
    // What is left before the last merge: the parts by all ranks below this one.
    let parts = [...token.toString("latin1")];
    while (parts.length > 2) {
      const joint = parts.slice(1).map((part, at) => ranks.get(parts[at]! + part) ?? tokens.length);
      const best = joint.indexOf(Math.min(...joint.filter((rank) => rank < 256 + index)));
      parts = [...parts.slice(0, best), parts[best]! + parts[best + 1]!, ...parts.slice(best + 2)];
    }
    return parts.map((part) => visible(Buffer.from(part, "latin1"))).join(" ");
  });
  return { vocab, merges: `#version: 0.2\n${merges.join("\n")}\n` };
}

function directoryOf({ vocab, merges }: { vocab: string; merges: string }): string {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "vocab.json"), vocab);
  writeFileSync(join(directory, "merges.txt"), merges);
  return directory;
}

describe("GLM-10B English", async () => {
  const { tokenizer: facts } = glm10bEnglishCard;
  const oracle = new Tiktoken(packed, {}, "pattern" in facts ? facts.pattern : "");
  afterAll(() => oracle.free());
  const tokenizer = (await openTokenizer(directoryOf(gpt2Files(gpt2Tokens())), glm10bEnglishCard))!;
  /** Unicode grows: what one library knows as a letter may be nothing to the other. */
  const lateScripts = /[\u{10d00}-\u{1cfff}\u{1e000}-\u{1efff}\u{2ebf0}-\u{3ffff}]/u;

  it("encodes thousands of strings as tiktoken does with GPT-2's ranks", () => {
    tokenizer.selfCheck();
    const texts = variedTexts(21, 5000).filter((text) => !lateScripts.test(text));
    texts.push("it's I'LL don't 'S", "  a   b\n\n c\t\td ", "123 456,789 ²³", "\u0085\u00a0x\ufeff");
    const ours = texts.map((text) => ({ text, ids: tokenizer.encodeText(text, plain) }));
    expect(ours).toEqual(texts.map((text) => ({ text, ids: [...oracle.encode(text, [], [])] })));
    expect(ours.map(({ ids }) => tokenizer.decode(ids, all))).toEqual(texts);
    expect(texts.length).toBeGreaterThan(3000);
  });

  it("has the ids of the reference", () => {
    expect(tokenizer.encodeText("Hello world", plain)).toEqual([15_496, 995]);
    expect(tokenizer.tokenCount).toBe(50_265);
    expect(tokenizer.stopTokens).toEqual([50_258, 50_256]);
    const ids = [50_256, 50_257, 50_258, 50_259, 50_260, 50_261, 50_262, 50_263, 50_264];
    expect(tokenizer.decode(ids, all)).toBe(
      "<|endoftext|><|startofpiece|><|endofpiece|>[CLS][MASK][SEP][UNK][gMASK][sMASK]",
    );
  });

  it.each([
    ["Hello world", "[CLS]Hello world[gMASK]<|startofpiece|>"],
    ["", "[CLS][gMASK]<|startofpiece|>"],
    ["Hello [MASK] world", "[CLS]Hello[MASK] world<|endoftext|><|startofpiece|>"],
    ["Hello \n[sMASK]", "[CLS]Hello[sMASK]<|startofpiece|>"],
    ["a [gMASK] [MASK] b ", "[CLS]a[gMASK][MASK] b <|endoftext|><|startofpiece|>"],
  ])("makes of %j %s", (text, expected) => {
    const ids = tokenizer.encodeText(text, whole);
    expect(tokenizer.decode(ids, all)).toBe(expected);
    expect(ids[0]).toBe(50_259);
    expect(ids.at(-1)).toBe(50_257);
  });

  it("answers a chat as the text of its rounds", () => {
    const ids = tokenizer.encodeChat([
      { role: "user", content: "Who?" },
      { role: "assistant", content: " Me." },
      { role: "user", content: "[MASK]?" },
    ]);
    expect(tokenizer.decode(ids, all)).toBe(
      "[CLS]Question: Who?\nAnswer: Me.\nQuestion: [MASK]?\nAnswer:[gMASK]<|startofpiece|>",
    );
    expect(ids.filter((id) => tokenizer.isSpecial(id))).toEqual([50_259, 50_263, 50_257]);
  });
});

describe("GLM-10B-Chinese", () => {
  const pieces = [...controlPieces, { text: "<n>", type: "userDefined" as const }];
  while (pieces.length < 50_000) pieces.push({ text: `▁${pieces.length}` } as (typeof pieces)[number]);
  const bytes = sentencePieceBytes(pieces, { byteFallback: false, removeExtraWhitespaces: true });
  const file = parseSentencePiece(bytes, "cog-pretrain.model");
  const [usual, fixed] = [
    new Tokenizer(file, glm10bChineseCard),
    new Tokenizer(file, glm10bChineseFixedCard),
  ];

  it("by default gives [gMASK] the id of the end of a piece, as the authors' configuration does", () => {
    expect(usual.tokenCount).toBe(50_009);
    expect(usual.stopTokens).toEqual([50_007, 50_000]);
    expect(fillIdsOf(file, glm10bChineseCard)).toEqual({
      masks: [50_003, 50_008, 50_007],
      order: "place",
      start: 50_006,
    });
    expect(usual.encodeText("7[sMASK]", whole)).toEqual([50_002, 7, 50_008, 50_006]);
    expect(usual.encodeText("7", whole)).toEqual([50_002, 7, 50_007, 50_006]);
    expect(usual.encodeText("[gMASK]7", whole)).toEqual([50_002, 50_007, 7, 50_000, 50_006]);
  });

  it("with fix_command_token gives it its own", () => {
    expect(fixed.tokenCount).toBe(50_010);
    expect(fixed.stopTokens).toEqual([50_007, 50_000]);
    expect(fixed.encodeText("7", whole)).toEqual([50_002, 7, 50_009, 50_006]);
    expect(fixed.encodeText("[sMASK]", whole)).toEqual([50_002, 50_008, 50_006]);
  });

  it.each([glm10bChineseCard, glm10bChineseFixedCard, glm10bEnglishCard])(
    "has published ids, which hold without a file",
    (card) => {
      const { publishedIds } = card.tokenizer.fill!;
      expect(fillIdsOf(null, card)).toEqual({ order: "place", ...publishedIds });
      if (card !== glm10bEnglishCard) expect(fillIdsOf(file, card)).toEqual(fillIdsOf(null, card));
    },
  );

  it("writes a newline as its piece", () => {
    expect(usual.encodeText("7\n8", plain).slice(0, 2)).toEqual([7, 3]);
    expect(usual.decode([7, 3, 8], all)).toBe("7\n 8");
  });
});

describe("GPT-2's files", () => {
  const bytes = Array.from({ length: 256 }, (_, byte) => Buffer.of(byte));
  const good = gpt2Files([...bytes, Buffer.from("ab"), Buffer.from("abc")]);
  const parse = ({ vocab, merges }: typeof good) =>
    parseGpt2Files(
      { bytes: Buffer.from(vocab), path: "vocab.json" },
      { bytes: Buffer.from(merges), path: "merges.txt" },
      glm10bEnglishTokenizer.specialTokens,
    );

  it("are read, with or without the version's line and the end of text", () => {
    expect(parse(good).tokens).toHaveLength(258);
    expect(parse({ ...good, merges: good.merges.replace(/^#.*\n/, "") }).tokens[257]).toBe("abc");
    expect(parse({ ...good, vocab: good.vocab.replace(',"<|endoftext|>":258', "") }).tokens).toHaveLength(
      258,
    );
  });

  it.each<[string, (files: typeof good) => typeof good, RegExp]>([
    ["no JSON", (files) => ({ ...files, vocab: "{" }), /vocab\.json/],
    ["no vocabulary", (files) => ({ ...files, vocab: "[]" }), /vocab\.json/],
    ["a gap", (files) => ({ ...files, vocab: files.vocab.replace('"ab":256', '"ab":999') }), /the id 999/],
    [
      "an id twice",
      (files) => ({ ...files, vocab: files.vocab.replace('"ab":256', '"ab":257') }),
      /257 twice/,
    ],
    ["a token too few", (files) => ({ ...files, merges: `${files.merges}a b\nb c\n` }), /it has 259 tokens/],
    [
      "a merge too few",
      (files) => ({ ...files, merges: files.merges.replace("ab c\n", "") }),
      /the id 257 is "abc"/,
    ],
    [
      "a merge of three",
      (files) => ({ ...files, merges: files.merges.replace("a b", "a b c") }),
      /merge 0 is "a b c"/,
    ],
    ["another order", (files) => ({ ...files, merges: "ab c\na b\n" }), /merges\.txt: merge 0 is "ab c"/],
    ["no merges", (files) => ({ ...files, merges: "" }), /the id 256 is "ab", behind the merges/],
    [
      "a foreign special token",
      (files) => ({ ...files, vocab: files.vocab.replace("<|endoftext|>", "<x>") }),
      /"<x>"/,
    ],
    [
      "a token of no bytes",
      (files) => ({ ...files, vocab: files.vocab.replace('"!"', '"你"') }),
      /bytes as characters/,
    ],
  ])("with %s are refused", (_, damage, message) => {
    const parsing = () => parse(damage(good));
    expect(parsing).toThrow(RelayError);
    expect(parsing).toThrow(message);
  });

  it("are both needed", async () => {
    const directory = temporaryDirectory();
    expect(await openTokenizer(directory, glm10bEnglishCard)).toBeNull();
    writeFileSync(join(directory, "vocab.json"), good.vocab);
    await expect(openTokenizer(directory, glm10bEnglishCard)).rejects.toThrow(/merges\.txt: not found/);
  });
});
