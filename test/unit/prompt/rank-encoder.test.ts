/** GLM-4's tokenizer against tiktoken itself: GLM-4's pattern over the ranks of cl100k_base. */
import { Tiktoken } from "tiktoken";
import { afterAll, describe, expect, it } from "vitest";
import { StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { RankEncoder } from "../../../coordinator/prompt/rank-encoder.js";
import { openTokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { cl100kPacked, cl100kTokens, rankLines, smallTokens } from "./ranks-fixture.js";
import { seededRandom, tokenizerDirectory, variedTexts } from "./sentencepiece-fixture.js";

const { tokenizer: facts } = glm4_9b;
const pattern = facts.kind === "tiktoken" ? facts.pattern : "";
const oracle = new Tiktoken(cl100kPacked, {}, pattern);
afterAll(() => oracle.free());
const ranks = cl100kTokens();
const directory = tokenizerDirectory(Buffer.from(rankLines(ranks)));
const tokenizer = (await openTokenizer(directory, glm4_9b))!;
const plain = { addSpecialTokens: false };
const special = (name: string) => ranks.length + facts.specialTokens.indexOf(name);
/** Here Unicode still grows: what one of the two libraries knows as a letter may be nothing to the other. */
const lateScripts = /[\u{10d00}-\u{1cfff}\u{1e000}-\u{1efff}\u{2ebf0}-\u{3ffff}]/u;
const oracleIds = (text: string) => [...oracle.encode(text, [], [])];

describe("encoding equals tiktoken", () => {
  it("on thousands of varied strings, which decode to themselves", () => {
    const texts = variedTexts(11, 6000).filter((text) => !lateScripts.test(text));
    expect(texts.length).toBeGreaterThan(4000);
    const ours = texts.map((text) => ({ text, ids: tokenizer.encodeText(text, plain) }));
    expect(ours).toEqual(texts.map((text) => ({ text, ids: oracleIds(text) })));
    const decoded = ours.map(({ ids }) => tokenizer.decode(ids, { skipSpecialTokens: false }));
    expect(decoded).toEqual(texts);
  });

  it("on whitespace of every kind and length, where the pattern looks ahead", () => {
    const random = seededRandom(12);
    const parts = [
      " ",
      " ",
      " ",
      "\t",
      "\n",
      "\r\n",
      "\u0085",
      "\u00a0",
      "\u3000",
      "\ufeff",
      "a",
      "1",
      ".",
      "你",
    ];
    const texts = Array.from({ length: 2000 }, () =>
      Array.from({ length: random(40) }, () => parts[random(parts.length)]).join(""),
    );
    for (let count = 0; count < 200; count++) texts.push(`${" ".repeat(count)}x`, `\n${" ".repeat(count)}\n`);
    expect(texts.map((text) => tokenizer.encodeText(text, plain))).toEqual(texts.map(oracleIds));
  });

  it("on contractions in both cases, the long s with them", () => {
    const texts = ["'s", "'S", "'\u017f", "'t", "'RE", "'vE", "'m", "'Ll", "'D", "'x"].map(
      (end) => `it${end}a don${end}`,
    );
    expect(texts.map((text) => tokenizer.encodeText(text, plain))).toEqual(texts.map(oracleIds));
  });

  it("on characters of every script", () => {
    const differing: string[] = [];
    for (let code = 0; code < 0x110000; code += 61) {
      if (code >= 0xd800 && code < 0xe000) continue;
      const text = `a${String.fromCodePoint(code).repeat(2)} ${String.fromCodePoint(code)}b1`;
      if (tokenizer.encodeText(text, plain).join() !== oracleIds(text).join()) differing.push(text);
    }
    expect(differing).toEqual([]);
  });

  it("on random ranks, with equal parts in every order", () => {
    for (let seed = 1; seed <= 6; seed++) {
      const random = seededRandom(seed);
      const texts = new Set([..."abcd"]);
      while (texts.size < 60) {
        const known = [...texts];
        texts.add(known[random(known.length)]! + known[random(known.length)]!);
      }
      const bytes = Array.from({ length: 256 }, (_, byte) => Buffer.of(byte));
      const tokens = [...bytes, ...[...texts].slice(4).map((text) => Buffer.from(text))];
      const packed = `! 0 ${tokens.map((token) => token.toString("base64")).join(" ")}`;
      const theirs = new Tiktoken(packed, {}, pattern);
      const ours = new RankEncoder(
        tokens.map((token) => token.toString("latin1")),
        pattern,
      );
      for (let round = 0; round < 300; round++) {
        const text = Array.from({ length: random(40) }, () => "abcd"[random(4)]).join("");
        expect(ours.encode(text)).toEqual([...theirs.encode(text, [], [])]);
      }
      theirs.free();
    }
  });
});

describe("encoding", () => {
  it("keeps the names of special tokens in a text as text", () => {
    const text = "<|user|>[gMASK]<sop><|endoftext|><|observation|>";
    const ids = tokenizer.encodeText(text, plain);
    expect(Math.max(...ids)).toBeLessThan(ranks.length);
    expect(tokenizer.decode(ids, { skipSpecialTokens: true })).toBe(text);
    const prefixed = tokenizer.encodeText(text, { addSpecialTokens: true });
    expect(prefixed).toEqual([special("[gMASK]"), special("<sop>"), ...ids]);
  });

  it("treats a lone surrogate as U+FFFD", () => {
    expect(tokenizer.encodeText("a\ud800b \udc00", plain)).toEqual(
      tokenizer.encodeText("a\ufffdb \ufffd", plain),
    );
  });

  // A quadratic encoder would need minutes for each.
  it.each([
    ["one letter", "a", 1_000_000],
    ["spaces", " ", 1_000_000],
    ["one character of three bytes", "火", 350_000],
    ["emoji", "🔥", 250_000],
    ["spaces and newlines", "  \n", 350_000],
  ])("a megabyte of %s stays near-linear", (_, text, count) => {
    const long = text.repeat(count);
    expect(tokenizer.decode(tokenizer.encodeText(long, plain), { skipSpecialTokens: true })).toBe(long);
  });

  it("refuses a word too long for the regex with a clear error", () => {
    expect(() => tokenizer.encodeText("火".repeat(12_000_000), plain)).toThrow(/too long to encode/);
    expect(tokenizer.encodeText("a", plain)).toEqual(oracleIds("a"));
  });
});

describe("GLM-4's chat format", () => {
  it("is the worked example, with this tokenizer's ids", () => {
    const ids = tokenizer.encodeChat([{ role: "user", content: "你好" }]);
    const names = [special("[gMASK]"), special("<sop>"), special("<|user|>")];
    expect(ids).toEqual([...names, 198, ...oracleIds("你好"), special("<|assistant|>")]);
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(
      "[gMASK]<sop><|user|>\n你好<|assistant|>",
    );
    // GLM-4's own file has 151,329 tokens: 151331 151333 151336 198 ... 151337.
    const shift = 151_329 - ranks.length;
    expect([...names, ids.at(-1)!].map((id) => id + shift)).toEqual([151_331, 151_333, 151_336, 151_337]);
    expect(tokenizer.stopTokens.map((id) => id + shift)).toEqual([151_329, 151_336, 151_338]);
    expect(tokenizer.tokenCount + shift).toBe(151_343);
  });

  it("encodes metadata line and content apart, for every role", () => {
    const ids = tokenizer.encodeChat([
      { role: "system", content: "s" },
      { role: "user", content: "\n\nu" },
      { role: "assistant", content: '{"city": "x"}', metadata: "weather" },
      { role: "tool", content: "sun" },
    ]);
    const text =
      '[gMASK]<sop><|system|>\ns<|user|>\n\n\nu<|assistant|>weather\n{"city": "x"}<|observation|>\nsun<|assistant|>';
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(text);
    const at = ids.indexOf(special("<|user|>"));
    expect(ids.slice(at + 1, at + 4)).toEqual([198, ...oracleIds("\n\nu")]);
  });
});

describe("decoding token by token", () => {
  const pushed = (ids: number[]) => {
    const detokenizer = new StreamDetokenizer(tokenizer, { skipSpecialTokens: true });
    return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
  };

  it("gives what tiktoken's bytes are as UTF-8, and never half a character", () => {
    const random = seededRandom(13);
    const texts = ["🔥火👨‍👩‍👧‍👦", "𒀀𓀀", ...variedTexts(14, 300)];
    const sequences = texts.map((text) => tokenizer.encodeText(text, plain));
    // Ids drawn at random are rarely UTF-8; the low ones are mostly single bytes.
    for (let round = 0; round < 500; round++) {
      sequences.push(Array.from({ length: random(20) }, () => random(round % 2 ? 256 : ranks.length)));
    }
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    for (const ids of sequences) {
      const parts = pushed(ids);
      expect(parts.join("")).toBe(utf8.decode(oracle.decode(Uint32Array.from(ids))));
      expect(parts.every((part) => Buffer.from(part).toString() === part)).toBe(true);
    }
    for (const [index, text] of texts.entries()) expect(pushed(sequences[index]!).join("")).toBe(text);
  });

  it("gives a character with its last byte, and special tokens end one that was begun", () => {
    const [first, second, third] = Buffer.from("火");
    const byte = (value: number | undefined) =>
      ranks.findIndex((token) => token.length === 1 && token[0] === value);
    expect(pushed([first, second, third].map(byte))).toEqual(["", "", "火", ""]);
    expect(pushed([byte(first), special("<|user|>"), byte(65)])).toEqual(["", "\ufffd", "A", ""]);
  });

  it("names tokens for people, and gives their bytes", () => {
    const half = ranks.findIndex((token) => token.equals(Buffer.from([0xe4, 0xbd])));
    expect(tokenizer.tokenString(half)).toBe("<0xE4><0xBD>");
    expect([...tokenizer.pieceBytes(half)]).toEqual([0xe4, 0xbd]);
    expect(tokenizer.tokenString(oracleIds(" world")[0]!)).toBe(" world");
    expect(tokenizer.tokenString(special("<|user|>"))).toBe("<|user|>");
    expect(tokenizer.isSpecial(special("<|endoftext|>"))).toBe(true);
  });
});

it("a small file encodes and passes the self-check", async () => {
  const tokens = smallTokens();
  const small = (await openTokenizer(tokenizerDirectory(Buffer.from(rankLines(tokens))), glm4_9b))!;
  small.selfCheck();
  const rank = (text: string) => tokens.findIndex((token) => token.toString() === text);
  expect(small.encodeText("hello world你好", plain)).toEqual([rank("hello"), rank(" world"), rank("你好")]);
});
