/** ChatGLM-6B and GLM-130B: ids, whitespace, prompts, blanks and what is done to a reply. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readFields } from "../../../checkpoint/protobuf.js";
import { parseSentencePiece } from "../../../checkpoint/sentencepiece.js";
import { fillIdsOf, stopTokenIds, tokenCountOf } from "../../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../../common/errors.js";
import { StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { PieceEncoder } from "../../../coordinator/prompt/piece-encoder.js";
import { openTokenizer, Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import type { SentencePieceFacts } from "../../../models/card.js";
import { glm130bTokenizer } from "../../../models/ice-text.js";
import { chatglm6bCard, glm130bCard } from "./prefix-cards.js";
import {
  bytePieces,
  controlPieces,
  type FixturePiece,
  field,
  number,
  sentencePieceBytes,
} from "./sentencepiece-fixture.js";

const plain = { addSpecialTokens: false };
const whole = { addSpecialTokens: true };
const skip = { skipSpecialTokens: true };
const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });

const base: FixturePiece[] = [
  ...controlPieces,
  { text: "<pad>", type: "control" },
  { text: "<n>", type: "userDefined" },
  ..."▁ a b c ab ▁a 你 好 你好 问 答 ： R o u n d [ ] 0 1 , ."
    .split(" ")
    .map((text) => ({ text, score: -text.length })),
];
const unigram = { modelType: 1, byteFallback: false, removeExtraWhitespaces: true };
const baseFile = sentencePieceBytes(base, unigram);
const added = glm130bTokenizer.kind === "sentencepiece" ? glm130bTokenizer.addedPieces! : [];
/** ChatGLM-6B's file holds what GLM-130B's code adds. */
const wholeFile = sentencePieceBytes(
  [...base, ...added.map(({ text, type }) => ({ text: text === "<eod>" ? "<unused_0>" : text, type }))],
  { ...unigram, byteFallback: true },
);
const small6b = new Tokenizer(parseSentencePiece(wholeFile, "ice_text.model"), chatglm6bCard);
const small130b = new Tokenizer(parseSentencePiece(baseFile, "ice_text.model", added), glm130bCard);
const names = (tokenizer: Tokenizer, ids: number[]) => ids.map((id) => tokenizer.tokenString(id)).join("|");

const folder = process.env.GLM_RELAY_TOKENIZERS;
if (!folder) console.log("skipped: icetk's published file, because GLM_RELAY_TOKENIZERS names no folder");

interface Extended {
  model: string;
  texts: [text: string, ids: number[], decoded?: string][];
  continued: [text: string, ids: number[]][];
}

describe("GLM-130B's file, extended in memory", () => {
  const golden = JSON.parse(
    readFileSync(new URL("golden/glm-130b.json", import.meta.url), "utf8"),
  ) as Extended;
  const file = parseSentencePiece(Buffer.from(golden.model, "base64"), "ice_text.model", added);

  it("encodes and decodes as SentencePiece does with the authors' extension", () => {
    const tokenizer = new Tokenizer(file, glm130bCard);
    const expected = golden.texts.map(([text, ids, decoded = text]) => ({ text, ids, decoded }));
    const ours = golden.texts.map(([text, ids]) => ({
      text,
      ids: tokenizer.encodeText(text, plain),
      decoded: tokenizer.decode(ids, skip),
    }));
    expect(ours).toEqual(expected);
  });

  it("encodes a text that goes on from another one without the space in front", () => {
    const encoder = new PieceEncoder(file, glm130bTokenizer as SentencePieceFacts);
    const ours = golden.continued.map(([text]) => [text, encoder.encodeContinued(text)]);
    expect(ours).toEqual(golden.continued);
  });

  it("numbers 20,000 images, its pieces, then what is added", () => {
    const first = 20_000 + base.length;
    const wholeIds = small130b.encodeText("a\tb", whole);
    expect(names(small130b, wholeIds)).toBe(" a|\t|b|[gMASK]|<sop>");
    expect(wholeIds.slice(1)).toEqual([first + 8, 20_000 + 7, first + 1, first + 4]);
    expect(small130b.stopTokens).toEqual([first + 5, 20_002]);
    expect(small130b.tokenCount).toBe(first + 8 + 80 + 256);
    expect(small130b.tokenString(17)).toBe("<17>");
    expect(small130b.decode([17, 20_000 + 7], skip)).toBe("b");
  });

  it("refuses a file that holds the additions already", () => {
    const parse = () => parseSentencePiece(wholeFile, "ice_text.model", added);
    expect(parse).toThrow(RelayError);
    expect(parse).toThrow(/ice_text\.model: pieces \d+ and \d+ are both "\[MASK\]"/);
  });
});

describe.skipIf(!folder)("the published ice_text.model", () => {
  it("has the ids of ChatGLM-6B's configuration", async () => {
    const tokenizer = (await openTokenizer(join(folder!, "chatglm-6b"), chatglm6bCard))!;
    expect(tokenizer.tokenCount).toBe(130_344);
    expect(tokenizer.stopTokens).toEqual([130_005]);
    expect(tokenizer.encodeText("你好", whole)).toEqual([5, 74_874, 130_001, 130_004]);
    expect(tokenizer.encodeText("\n\ta  b", plain)).toEqual([5, 4, 130_008, 131, 130_009, 178]);
    // Two public implementations agree on these.
    const history = tokenizer.encodeChat([user("你好"), assistant("你好"), user("你好")]);
    expect(history.slice(0, 13)).toEqual([53, 6945, 5, 8, 42, 4, 64_286, 12, 74_874, 4, 67_342, 12, 74_874]);
    expect(history.slice(-2)).toEqual([130_001, 130_004]);
    const ids = [0, 1, 2, 3, 4, 5, 130_000, 130_002, 130_003, 130_006, 130_007, 130_087, 130_343];
    expect(names(tokenizer, ids)).toBe(
      ` ⁇ |<s>|</s>|<pad>|\n| |[MASK]|[sMASK]|<unused_0>|<ENC>|<dBLOCK>|${" ".repeat(80)}|<0xFF>`,
    );
  });

  it("without its last pieces is GLM-130B's: the same ids, 20,000 higher", () => {
    const path = join(folder!, "chatglm-6b", "ice_text.model");
    const whole6b = parseSentencePiece(readFileSync(path), path);
    const parts: Uint8Array[] = [];
    let pieces = 0;
    for (const { field: id, bytes } of readFields(readFileSync(path), path)) {
      if (id === 1 && pieces++ >= 130_000) continue;
      parts.push(field(id, id === 2 ? Buffer.concat([bytes!, number(35, 0)]) : bytes!));
    }
    const file = parseSentencePiece(Buffer.concat(parts), path, added);
    expect(tokenCountOf(file, glm130bCard)).toBe(150_344);
    expect(stopTokenIds(file, glm130bCard)).toEqual([150_005, 20_002]);
    expect(fillIdsOf(file, glm130bCard)).toEqual(fillIdsOf(null, glm130bCard));
    expect(fillIdsOf(whole6b, chatglm6bCard)).toEqual(fillIdsOf(null, chatglm6bCard));
    const [ours, theirs] = [new Tokenizer(file, glm130bCard), new Tokenizer(whole6b, chatglm6bCard)];
    const golden = JSON.parse(
      readFileSync(new URL("golden/chatglm-6b.json", import.meta.url), "utf8"),
    ) as Extended;
    for (const [text, ids] of golden.texts) {
      const expected = ids.map((id) => id + 20_000);
      expect(ours.encodeText(text, plain)).toEqual(expected);
      expect(ours.decode(expected, skip)).toBe(theirs.decode(ids, skip));
    }
  });
});

describe("whitespace", () => {
  it.each([
    ["a\n\n\tb", " a|\n|\n|\t|b"],
    ["a  b", " a|  |b"],
    [`a${" ".repeat(80)}b`, ` a|${" ".repeat(80)}|b`],
    [`a${" ".repeat(81)}b`, ` a|${" ".repeat(80)}| |b`],
    [`a${" ".repeat(163)}b`, ` a|${" ".repeat(80)}|${" ".repeat(80)}|   |b`],
    [" a ", " a"],
    ["   ", " |   "],
    ["", ""],
  ])("%j becomes %s", (text, expected) => {
    expect(names(small6b, small6b.encodeText(text, plain))).toBe(expected);
  });

  it("comes back, but for a single space at either end", () => {
    for (const text of ["\n\na", "  a", "\tb\n", "a b  c   \n d", `a${" ".repeat(200)}b`, "  ", "火 火"]) {
      const ids = small6b.encodeText(text, plain);
      expect(small6b.decode(ids, skip)).toBe(text);
      const detokenizer = new StreamDetokenizer(small6b, skip);
      expect([...ids.map((id) => detokenizer.push(id)), detokenizer.flush()].join("")).toBe(text);
    }
    expect(small6b.decode(small6b.encodeText(" a ", plain), skip)).toBe("a");
  });
});

describe("chat", () => {
  const textOf = (tokenizer: Tokenizer, messages: { role: string; content: string }[]) =>
    tokenizer.decode(tokenizer.encodeChat(messages), { skipSpecialTokens: false });

  it("asks ChatGLM-6B a first question as it is, later ones in rounds from 0", () => {
    expect(textOf(small6b, [user("a")])).toBe("a[gMASK]<sop>");
    expect(textOf(small6b, [{ role: "system", content: "b\n" }, user("a")])).toBe("b\na[gMASK]<sop>");
    expect(textOf(small6b, [user("a"), assistant("b"), user("c")])).toBe(
      "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答：[gMASK]<sop>",
    );
  });

  it("gives GLM-130B the text of the rounds", () => {
    expect(textOf(small130b, [user("a")])).toBe("问：a\n答：[gMASK]<sop>");
    expect(textOf(small130b, [user("a"), assistant("b"), user("c")])).toBe(
      "问：a\n答：b\n问：c\n答：[gMASK]<sop>",
    );
  });

  it("leaves the names of special tokens in messages text", () => {
    const ids = small6b.encodeChat([user("[gMASK]<sop>[MASK]<eop>")]);
    const special = ids.filter((id) => small6b.isSpecial(id));
    expect(names(small6b, special)).toBe("[gMASK]|<sop>");
    expect(names(small6b, ids.slice(-2))).toBe("[gMASK]|<sop>");
  });
});

describe("a text with blanks", () => {
  const filled = (tokenizer: Tokenizer, text: string) => names(tokenizer, tokenizer.encodeText(text, whole));

  it.each([
    ["a b", " a| |b|[gMASK]|<sop>"],
    ["", "[gMASK]|<sop>"],
    ["a[MASK]b", " a|[MASK]| |b|</s>|<sop>"],
    ["a[sMASK]", " a|[sMASK]|<sop>"],
    ["[gMASK]", "[gMASK]|<sop>"],
    ["a[MASK][sMASK]b[MASK]", " a|[MASK]|[sMASK]| |b|[MASK]|<sop>"],
    ["a[gMASK]\n", " a|[gMASK]| |\n|</s>|<sop>"],
  ])("for GLM-130B: %j", (text, expected) => {
    expect(filled(small130b, text)).toBe(expected);
  });

  it("may have very many", () => {
    expect(small130b.encodeText("a[MASK]".repeat(100_000), whole)).toHaveLength(200_001);
  });

  it("for ChatGLM-6B knows two masks and no end", () => {
    expect(filled(small6b, "a b")).toBe(" a| |b|[gMASK]|<sop>");
    expect(filled(small6b, "a[MASK]b")).toBe(" a|[MASK]| |b|<sop>");
    expect(filled(small6b, "[sMASK]")).not.toContain("|[sMASK]|");
  });

  it("reads masks only where special tokens are asked for, and no other names", () => {
    const special = (ids: number[]) => ids.filter((id) => small130b.isSpecial(id));
    expect(special(small130b.encodeText("a[MASK]b<sop>", plain))).toEqual([]);
    const ids = small130b.encodeText("<sop>[xMASK]<eop></s><dBLOCK>[ MASK]", whole);
    expect(names(small130b, special(ids))).toBe("[gMASK]|<sop>");
  });
});

const unigramWithBytes = { ...unigram, byteFallback: true };

it("a file without the tokens of the card is refused, with the token's name", () => {
  const file = parseSentencePiece(
    sentencePieceBytes([...base, ...bytePieces], unigramWithBytes),
    "ice_text.model",
  );
  expect(() => new Tokenizer(file, chatglm6bCard)).toThrow(/ice_text\.model: no control piece "<eop>"/);
});
