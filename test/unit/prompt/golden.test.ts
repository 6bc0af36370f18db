/**
 * The published SentencePiece files, and small ones of every kind, against the ids that SentencePiece itself
 * gives (golden/make_golden.py), id for id. The published files are not ours to copy: GLM_RELAY_TOKENIZERS names the folder that has them.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseSentencePiece } from "../../../checkpoint/sentencepiece.js";
import { StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { openTokenizer, Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import type { ModelCard } from "../../../models/card.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { chatglm6bCard, glm10bChineseCard, plainCard } from "./prefix-cards.js";
import { seededRandom } from "./sentencepiece-fixture.js";

interface Golden {
  /** The text again where it decodes to itself. */
  texts: [text: string, ids: number[], decoded?: string][];
  decodings: [ids: number[], text: string][];
}

const folder = process.env.GLM_RELAY_TOKENIZERS;
if (!folder)
  console.log("skipped: golden ids, because GLM_RELAY_TOKENIZERS names no folder with real tokenizers");

const plain = { addSpecialTokens: false };
const skip = { skipSpecialTokens: true };

function goldenOf<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`golden/${name}.json`, import.meta.url), "utf8")) as T;
}

const trained = goldenOf<{ name: string; model: string; texts: Golden["texts"] }[]>("trained");

describe.each(trained)("a small model of the kind $name", ({ model, texts }) => {
  const file = parseSentencePiece(Buffer.from(model, "base64"), "trained.model");
  const tokenizer = new Tokenizer(file, plainCard);

  it("encodes as SentencePiece does", () => {
    tokenizer.selfCheck();
    const ours = texts.map(([text]) => ({ text, ids: tokenizer.encodeText(text, plain) }));
    expect(ours).toEqual(texts.map(([text, ids]) => ({ text, ids })));
  });

  it("decodes as SentencePiece does, whole or token by token", () => {
    for (const [text, ids, decoded = text] of texts) {
      expect(tokenizer.decode(ids, skip)).toBe(decoded);
      const detokenizer = new StreamDetokenizer(tokenizer, skip);
      expect([...ids.map((id) => detokenizer.push(id)), detokenizer.flush()].join("")).toBe(decoded);
    }
  });
});

describe.skipIf(!folder)("the published tokenizer of", () => {
  const opened = new Map<string, Promise<Tokenizer | null>>();
  const open = async (name: string, card: ModelCard): Promise<Tokenizer> => {
    const opening = opened.get(name) ?? openTokenizer(join(folder!, name), card);
    opened.set(name, opening);
    return (await opening)!;
  };

  describe.each<[string, ModelCard]>([
    ["chatglm-6b", chatglm6bCard],
    ["glm-10b-chinese", glm10bChineseCard],
    ["chatglm3-6b", chatglm3],
  ])("%s", (name, card) => {
    const golden = goldenOf<Golden>(name);

    it("encodes thousands of strings as SentencePiece does", async () => {
      const tokenizer = await open(name, card);
      tokenizer.selfCheck();
      expect(golden.texts.length).toBeGreaterThan(2000);
      const wrong = golden.texts.flatMap(([text, ids]) => {
        const ours = tokenizer.encodeText(text, plain);
        return ours.join() === ids.join() ? [] : [{ text, ids, ours }];
      });
      expect(wrong).toEqual([]);
    });

    it("decodes them, and ids drawn at random, as SentencePiece does, whole or token by token", async () => {
      const tokenizer = await open(name, card);
      const expected = golden.texts.map(([text, ids, decoded = text]): [number[], string] => [ids, decoded]);
      for (const [ids, text] of [...expected, ...golden.decodings]) {
        expect(tokenizer.decode(ids, skip)).toBe(text);
        const detokenizer = new StreamDetokenizer(tokenizer, skip);
        const parts = [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
        expect(parts.join("")).toBe(text);
        expect(parts.every((part) => Buffer.from(part).toString() === part)).toBe(true);
      }
    });

    it("takes a lone surrogate for U+FFFD", async () => {
      const tokenizer = await open(name, card);
      expect(tokenizer.encodeText("a\ud800你 \udc00😀\ud83d", plain)).toEqual(
        tokenizer.encodeText("a\ufffd你 \ufffd😀\ufffd", plain),
      );
    });

    // Encoding is linear: a quadratic step would take minutes.
    it.each(["今天天气怎么样，hello world 123! ", "a", " ", "ｱﾞ", "e\u0301", "好", "<", "\n "])(
      "encodes half a million characters of %j in well under a second",
      async (unit) => {
        const tokenizer = await open(name, card);
        tokenizer.encodeText(unit, plain);
        const text = unit.repeat(Math.ceil(500_000 / unit.length));
        const begun = process.cpuUsage();
        tokenizer.encodeText(text, plain);
        const { user, system } = process.cpuUsage(begun);
        // CPU time, and generous: other tests run beside this one.
        expect((user + system) / 1e6).toBeLessThan(2);
      },
    );
  });

  it("ChatGLM-6B gives back what it was given, where its normaliser leaves it alone", async () => {
    const tokenizer = await open("chatglm-6b", chatglm6bCard);
    const random = seededRandom(3);
    const parts = [
      "\n",
      "\t",
      "  ",
      " ".repeat(9),
      " ".repeat(170),
      "你好",
      "world",
      "、。",
      "{}",
      "0",
      "火",
      "\u0b15",
    ];
    for (let round = 0; round < 500; round++) {
      const middle = Array.from({ length: random(12) }, () => parts[random(parts.length)]).join("");
      const text = `a${middle}b`;
      expect(tokenizer.decode(tokenizer.encodeText(text, plain), skip)).toBe(text);
    }
  });
});
