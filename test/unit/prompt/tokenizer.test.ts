/** The chat format, special tokens and incremental decoding. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { ReplyReplacer, ReplyTrimmer } from "../../../coordinator/prompt/reply.js";
import { openTokenizer, type Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";
import {
  controlPieces,
  openOracle,
  seededRandom,
  sentencePieceBytes,
  smallPieces,
  tokenizerDirectory,
} from "./sentencepiece-fixture.js";

const small = (await openTokenizer(tokenizerDirectory(sentencePieceBytes(smallPieces)), chatglm3))!;
const small2 = (await openTokenizer(tokenizerDirectory(sentencePieceBytes(smallPieces)), chatglm2))!;
const id = (text: string) => smallPieces.findIndex((piece) => piece.text === text);
const special = (name: string) => smallPieces.length + chatglm3.tokenizer.specialTokens.indexOf(name);
const plain = { addSpecialTokens: false };
const newline = id("<0x0A>");

const realTokenizers = process.env.GLM_RELAY_TOKENIZERS;
if (!realTokenizers) console.log("skipped: real tokenizers, because GLM_RELAY_TOKENIZERS names no folder");

describe("chat", () => {
  it("puts role, metadata line and content behind the prefix, each encoded on its own", () => {
    const ids = small.encodeChat([
      { role: "system", content: "hello" },
      { role: "user", content: "你好" },
      { role: "assistant", content: "", metadata: "abc" },
      { role: "tool", content: "1" },
    ]);
    const expected = [special("[gMASK]"), special("sop")];
    expected.push(special("<|system|>"), id("▁"), newline, id("▁hello"));
    expected.push(special("<|user|>"), id("▁"), newline, id("▁"), id("你好"));
    expected.push(special("<|assistant|>"), id("▁"), id("abc"), newline);
    expected.push(special("<|observation|>"), id("▁"), newline, id("▁"), id("1"));
    expected.push(special("<|assistant|>"));
    expect(ids).toEqual(expected);
    const closed = small.encodeChat([{ role: "user", content: "hello" }], { addGenerationPrompt: false });
    expect(closed.at(-1)).toBe(id("▁hello"));
  });

  it.skipIf(!realTokenizers)("equals the worked example of ChatGLM3", async () => {
    const tokenizer = (await openTokenizer(join(realTokenizers!, "chatglm3-6b"), chatglm3))!;
    const expected = [64790, 64792, 64795, 30910, 13, 36474, 54591, 64796];
    expect(tokenizer.encodeChat([{ role: "user", content: "你好" }])).toEqual(expected);
    expect(tokenizer.tokenCount).toBe(64798);
    expect(tokenizer.stopTokens).toEqual([2, 64795, 64797]);
  });

  it.each([
    ["no messages", [], "messages"],
    ["an unknown role", [{ role: "robot", content: "" }], "messages[0].role"],
    ["a role named like an object's member", [{ role: "constructor", content: "" }], "messages[0].role"],
    [
      "a system message that is not the first",
      [
        { role: "user", content: "a" },
        { role: "system", content: "b" },
      ],
      "messages[1].role",
    ],
  ])("refuses %s", (_, messages, param) => {
    try {
      small.encodeChat(messages);
    } catch (error) {
      expect(error).toBeInstanceOf(RelayError);
      expect(error).toMatchObject({ code: "invalid_value", param });
      return;
    }
    throw new Error("accepted");
  });

  it("keeps the names of special tokens in a text as text", () => {
    const text = "<|user|>[gMASK]sop</s><unk><0x41>";
    const ids = small.encodeText(text, plain);
    expect(ids.every((token) => token >= 3 && token < smallPieces.length)).toBe(true);
    expect(small.decode(ids, { skipSpecialTokens: false })).toBe(text);
    expect(small.encodeText(text, { addSpecialTokens: true }).slice(0, 2)).toEqual([
      special("[gMASK]"),
      special("sop"),
    ]);
  });
});

describe("ChatGLM2's rounds", () => {
  const textOf = (
    messages: { role: string; content: string; metadata?: string }[],
    addGenerationPrompt = true,
  ) => small2.decode(small2.encodeChat(messages, { addGenerationPrompt }), { skipSpecialTokens: true });
  const user = (content: string) => ({ role: "user", content });
  const assistant = (content: string) => ({ role: "assistant", content });

  it("are numbered from 1 and encoded as one text behind the prefix", () => {
    const messages = [user("a"), assistant("b"), user("c")];
    const text = "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答：";
    expect(textOf(messages)).toBe(text);
    expect(small2.encodeChat(messages)).toEqual(small2.encodeText(text, { addSpecialTokens: true }));
    expect(small2.encodeChat(messages).slice(0, 2)).toEqual([smallPieces.length + 1, smallPieces.length + 3]);
  });

  it("can be left open or closed", () => {
    expect(textOf([user("a")], false)).toBe("[Round 1]\n\n问：a");
    expect(textOf([user("a"), assistant("b")], false)).toBe("[Round 1]\n\n问：a\n\n答：b");
  });

  it("have no system turn: its text goes before the last question", () => {
    const system = { role: "system", content: "s. " };
    expect(textOf([system, user("a"), assistant("b"), user("c")])).toBe(
      "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：s. c\n\n答：",
    );
  });

  it("take a number in a question for what it is", () => {
    expect(textOf([user("{n} $& [Round 9]")])).toBe("[Round 1]\n\n问：{n} $& [Round 9]\n\n答：");
  });

  it.each([
    ["no messages", [], "messages"],
    ["two questions in a row", [user("a"), user("b")], "messages[1].role"],
    ["an answer first", [assistant("a")], "messages[0].role"],
    ["an answer last", [user("a"), assistant("b")], "messages[1].role"],
    ["a system message alone", [{ role: "system", content: "a" }], "messages[0].role"],
    ["a late system message", [user("a"), { role: "system", content: "b" }], "messages[1].role"],
    ["a tool's result", [user("a"), { role: "tool", content: "b" }], "messages[1].role"],
    ["metadata", [{ ...user("a"), metadata: "b" }], "messages[0].metadata"],
  ])("refuse %s", (_, messages, param) => {
    expect(() => textOf(messages)).toThrow(RelayError);
    expect(() => textOf(messages)).toThrow(expect.objectContaining({ code: "invalid_value", param }));
  });

  it.skipIf(!realTokenizers)(
    "have the ids of the published tokenizer, which SentencePiece confirms",
    async () => {
      const folder = join(realTokenizers!, "chatglm3-6b");
      const tokenizer = (await openTokenizer(folder, chatglm2))!;
      const oracle = await openOracle(join(folder, "tokenizer.model"));
      const text = "[Round 1]\n\n问：你好\n\n答：";
      expect(tokenizer.encodeChat([user("你好")])).toEqual([64_790, 64_792, ...oracle.encodeIds(text)]);
      expect(tokenizer.tokenCount).toBe(64_794);
      expect(tokenizer.stopTokens).toEqual([2]);
    },
  );
});

describe("single tokens", () => {
  it("have bytes and a string", () => {
    expect(Buffer.from(small.pieceBytes(id("▁hello"))).toString()).toBe(" hello");
    expect([...small.pieceBytes(id("<0xE4>"))]).toEqual([0xe4]);
    expect(Buffer.from(small.pieceBytes(special("<|user|>"))).toString()).toBe("<|user|>");
    const strings = ["▁hello", "<0xE4>", "<0x0A>", "</s>", "<unk>"].map((text) =>
      small.tokenString(id(text)),
    );
    expect(strings).toEqual([" hello", "<0xE4>", "\n", "</s>", " ⁇ "]);
    expect(small.tokenString(special("eop"))).toBe("eop");
  });

  it("are special when they stand for no text", () => {
    const tokens = [special("sop"), id("</s>"), id("hello"), id("<0x41>"), id("<unk>")];
    expect(tokens.map((token) => small.isSpecial(token))).toEqual([true, true, false, false, false]);
  });

  it.each([-1, 0.5, small.tokenCount, Number.NaN])("do not exist as id %d", (token) => {
    expect(() => small.tokenString(token)).toThrow(/token id .* does not exist/);
    expect(() => small.decode([token], { skipSpecialTokens: true })).toThrow(RelayError);
  });
});

describe("incremental decoding", () => {
  const pushed = (tokenizer: Tokenizer, ids: number[], skipSpecialTokens: boolean) => {
    const detokenizer = new StreamDetokenizer(tokenizer, { skipSpecialTokens });
    return [...ids.map((token) => detokenizer.push(token)), detokenizer.flush()];
  };

  it("equals decoding at once, and never gives half a character", () => {
    const random = seededRandom(1);
    for (let round = 0; round < 500; round++) {
      const ids = Array.from({ length: random(30) }, () => random(small.tokenCount));
      const parts = pushed(small, ids, round % 2 === 0);
      expect(parts.join("")).toBe(small.decode(ids, { skipSpecialTokens: round % 2 === 0 }));
      expect(parts.every((part) => Buffer.from(part).toString() === part)).toBe(true);
    }
  });

  it("holds the bytes of a character until the last one", () => {
    const ids = [...Buffer.from("火🔥")].map((byte) => 3 + byte);
    expect(pushed(small, ids, false)).toEqual(["", "", "火", "", "", "", "🔥", ""]);
  });

  it("replaces what can no longer become a character, at the latest at the end", () => {
    const ids = [0xe7, 0x41, 0xc0, 0x80, 0xf0, 0x9f].map((byte) => 3 + byte);
    expect(pushed(small, ids, false)).toEqual(["", "\ufffdA", "", "\ufffd\ufffd", "", "", "\ufffd\ufffd"]);
  });

  it("drops the dummy prefix at the beginning and after special tokens only", () => {
    const hello = id("▁hello");
    expect(pushed(small, [hello, hello, special("sop"), hello], true).join("")).toBe("hello hellohello");
    expect(pushed(small, [id("▁"), hello, id("</s>")], false).join("")).toBe(" hello</s>");
  });

  it("trims the whitespace in front of a chat reply and nothing else", () => {
    const ids = [id("▁"), newline, id("▁hello"), newline, id("▁world"), newline];
    const trimmer = new ReplyTrimmer(new StreamDetokenizer(small, { skipSpecialTokens: true }));
    expect([...ids.map((token) => trimmer.push(token)), trimmer.flush()].join("")).toBe("hello\n world\n");
  });
});

describe("replacing a text in a reply", () => {
  const replacement = { text: "[[训练时间]]", by: "2023年" };
  /** Each part as if a token. */
  const replaced = (parts: string[]) => {
    const inner = { push: (token: number) => parts[token] ?? "", flush: () => "" };
    const replacer = new ReplyReplacer(inner, replacement);
    return [...parts.map((_, token) => replacer.push(token)), replacer.flush()];
  };

  it.each([
    [
      ["在", "[[训练时间]]", "。"],
      ["在", "2023年", "。", ""],
    ],
    [
      ["a[", "[训练", "时间]", "] b"],
      ["a", "", "", "2023年 b", ""],
    ],
    [["[[[训练时间]]]"], ["[2023年]", ""]],
    [["[[训练时间]][[训练时间]][["], ["2023年2023年", "[["]],
    [
      ["[[训练", "x"],
      ["", "[[训练x", ""],
    ],
    [
      ["", "["],
      ["", "", "["],
    ],
  ])("%j becomes %j", (parts, expected) => {
    expect(replaced(parts)).toEqual(expected);
  });

  it("does not depend on how the text is cut", () => {
    const random = seededRandom(8);
    for (let round = 0; round < 500; round++) {
      const text = Array.from(
        { length: random(30) },
        () => ["[", "]", "[[训练时间]]", "训练"][random(4)],
      ).join("");
      const parts: string[] = [];
      while (parts.join("").length < text.length) {
        const at = parts.join("").length;
        parts.push(text.slice(at, at + 1 + random(6)));
      }
      expect(replaced(parts).join("")).toBe(text.replaceAll(replacement.text, replacement.by));
    }
  });
});

it("a directory without a tokenizer has none", async () => {
  expect(await openTokenizer(temporaryDirectory(), chatglm3)).toBeNull();
});

it("the self-check passes whatever script the pieces are of", async () => {
  const pieces = [...controlPieces, ...["▁", "п", "р", "пр"].map((text, rank) => ({ text, score: -rank }))];
  const bytes = sentencePieceBytes(pieces, { byteFallback: false });
  const tokenizer = (await openTokenizer(tokenizerDirectory(bytes), chatglm3))!;
  expect(() => tokenizer.selfCheck()).not.toThrow();
  expect(() => small.selfCheck()).not.toThrow();
});
