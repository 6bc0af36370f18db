/** Encoding and decoding against SentencePiece itself, on models made here and on real ones. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../../common/package.js";
import { openTokenizer, type Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import {
  bytePieces,
  controlPieces,
  type FixturePiece,
  openOracle,
  seededRandom,
  sentencePieceBytes,
  smallPieces,
  tokenizerDirectory,
  variedTexts,
} from "./sentencepiece-fixture.js";

async function tokenizerOf(directory: string): Promise<Tokenizer> {
  const tokenizer = await openTokenizer(directory, chatglm3);
  if (!tokenizer) throw new Error(`no tokenizer in ${directory}`);
  return tokenizer;
}

const encode = (tokenizer: Tokenizer, text: string) =>
  tokenizer.encodeText(text, { addSpecialTokens: false });
const decode = (tokenizer: Tokenizer, ids: number[]) => tokenizer.decode(ids, { skipSpecialTokens: true });

/** The oracle's way from C++ to JavaScript loses a U+FEFF at the beginning and after a NUL. */
const comparable = (text: string) => text.replaceAll("\ufeff", "");

/** Both directions for every text, and decoding of ids drawn at random. */
async function compareWithOracle(directory: string, texts: string[], seed: number): Promise<void> {
  const tokenizer = await tokenizerOf(directory);
  const oracle = await openOracle(join(directory, "tokenizer.model"));
  tokenizer.selfCheck();
  const pieceCount = tokenizer.tokenCount - chatglm3.tokenizer.specialTokens.length;
  const random = seededRandom(seed);
  const ours: unknown[] = [];
  const theirs: unknown[] = [];
  for (const text of texts) {
    const ids = encode(tokenizer, text);
    ours.push({ text, ids, decoded: comparable(decode(tokenizer, ids)) });
    theirs.push({ text, ids: oracle.encodeIds(text), decoded: comparable(oracle.decodeIds(ids)) });
    const lowIds = Math.min(pieceCount, 270);
    const drawn = Array.from({ length: random(12) }, () => random(random(2) ? pieceCount : lowIds));
    ours.push({ drawn, decoded: comparable(decode(tokenizer, drawn)) });
    theirs.push({ drawn, decoded: comparable(oracle.decodeIds(drawn)) });
  }
  expect(ours).toEqual(theirs);
}

const realTokenizers = process.env.GLM_RELAY_TOKENIZERS;
if (!realTokenizers) console.log("skipped: real tokenizers, because GLM_RELAY_TOKENIZERS names no folder");

describe("BPE encoding equals SentencePiece", () => {
  it("on a small model of the ChatGLM3 kind", async () => {
    const directory = tokenizerDirectory(sentencePieceBytes(smallPieces));
    await compareWithOracle(directory, [...variedTexts(1, 400), "hello world", "hellohello  abcab"], 1);
  });

  it("without a dummy prefix", async () => {
    const directory = tokenizerDirectory(sentencePieceBytes(smallPieces, { addDummyPrefix: false }));
    await compareWithOracle(directory, variedTexts(2, 200), 2);
  });

  it("without byte fallback, where a run of unknown characters is one unknown token", async () => {
    const pieces = smallPieces.filter(({ type }) => type !== "byte");
    const directory = tokenizerDirectory(sentencePieceBytes(pieces, { byteFallback: false }));
    await compareWithOracle(directory, [...variedTexts(3, 200), "hello 火火 world"], 3);
  });

  it("with user-defined pieces, which are matched first, longest first, and never split", async () => {
    const userDefined: FixturePiece[] = ["<n>", "hel", "ab", "abc", "▁▁▁", "你"].map((text) => ({
      text,
      type: "userDefined",
    }));
    const others = smallPieces.filter(({ text }) => !userDefined.some((piece) => piece.text === text));
    const directory = tokenizerDirectory(sentencePieceBytes([...others, ...userDefined]));
    await compareWithOracle(directory, ["hello abcab 你好", "a<n>b   c", ...variedTexts(4, 200)], 4);
  });

  it("on random models with unused pieces, missing halves and equal scores", async () => {
    for (let seed = 1; seed <= 8; seed++) {
      const random = seededRandom(seed);
      const letters = [..."▁abcd火"];
      const texts = new Set<string>(letters.slice(0, 4));
      while (texts.size < 60) {
        const parts = [...texts, ...letters];
        texts.add(parts[random(parts.length)]! + parts[random(parts.length)]!);
      }
      // Equal scores on different pieces may only differ in what SentencePiece leaves open when both
      // begin at the same symbol, so a score is shared by pieces of one length.
      const pieces = [...texts].map((text, index) => ({
        text,
        score: seed % 2 === 0 ? -index : -text.length,
        type: seed > 4 && random(4) === 0 && text.length > 1 ? ("unused" as const) : ("normal" as const),
      }));
      const directory = tokenizerDirectory(sentencePieceBytes([...controlPieces, ...bytePieces, ...pieces]));
      const sentences = Array.from({ length: 150 }, () =>
        Array.from({ length: random(40) }, () => "  abcd火z"[random(8)]).join(""),
      );
      await compareWithOracle(directory, sentences, seed);
    }
  });

  it.skipIf(!realTokenizers)("on ChatGLM3's own tokenizer", async () => {
    await compareWithOracle(join(realTokenizers!, "chatglm3-6b"), variedTexts(5, 2500), 5);
  });

  it("on the demo model's tokenizer", async () => {
    await compareWithOracle(join(packageRoot, "models", "demo"), variedTexts(6, 1000), 6);
  });
});

describe("encoding", () => {
  const directory = tokenizerDirectory(sentencePieceBytes(smallPieces));

  it("treats a lone surrogate as U+FFFD", async () => {
    const tokenizer = await tokenizerOf(directory);
    expect(encode(tokenizer, "a\ud800b\udc00")).toEqual(encode(tokenizer, "a\ufffdb\ufffd"));
  });

  it("round-trips every text that has no U+2581, the sign for a space", async () => {
    const tokenizer = await tokenizerOf(directory);
    for (const text of variedTexts(7, 500)) {
      if (!text.includes("\u2581")) expect(decode(tokenizer, encode(tokenizer, text))).toBe(text);
    }
  });

  it("stays near-linear on the worst texts: one run of equal characters", async () => {
    const tokenizer = await tokenizerOf(directory);
    for (const text of [" ".repeat(200_000), "hello".repeat(40_000), "你好".repeat(100_000)]) {
      expect(decode(tokenizer, encode(tokenizer, text))).toBe(text);
    }
  });
});
