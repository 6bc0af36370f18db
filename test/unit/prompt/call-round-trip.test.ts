/**
 * A model that was given calls in its prompt writes calls of the same form: what each format encodes for a
 * call is decoded, taken apart, and read as that call.
 */
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type ReplyPart, replyReader, replyRules } from "../../../coordinator/output/reply/reply.js";
import { StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { ReplyTrimmer } from "../../../coordinator/prompt/reply.js";
import { openTokenizer, type Tokenizer } from "../../../coordinator/prompt/tokenizer.js";
import type { ModelCard } from "../../../models/card.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { glm45Prompt, glm45Tokenizer } from "../../../models/glm45-prompt.js";
import { rankLines, smallTokens } from "./ranks-fixture.js";
import { sentencePieceBytes, smallPieces, tokenizerDirectory } from "./sentencepiece-fixture.js";
import { call } from "./templates-fixture.js";

const pieces = tokenizerDirectory(sentencePieceBytes(smallPieces));
const ranks = tokenizerDirectory(Buffer.from(rankLines(smallTokens())));
const realTokenizers = process.env.GLM_RELAY_TOKENIZERS;
if (!realTokenizers) console.log("skipped: real tokenizers, because GLM_RELAY_TOKENIZERS names no folder");

const glm45: ModelCard = { ...glm4, family: "glm45", prompt: glm45Prompt, tokenizer: glm45Tokenizer };

const question = { role: "user", content: "hi" };
const names = ["get_weather", "天气", "f-1.x"];

/** What comes of the reply when its tokens are pushed one by one. */
function replyTo(tokenizer: Tokenizer, prompt: number[], reply: number[], texts: string[]): ReplyPart[] {
  const tail = prompt.slice(-2).map((id) => tokenizer.tokenString(id));
  const rules = replyRules(
    tokenizer.prompt,
    names.map((name) => ({ name, texts, nullable: [] })),
    tail.join(""),
  )!;
  const keepTokens = rules.calls && rules.calls.kind !== "tags" ? [rules.calls.segment] : [];
  const decoder = new ReplyTrimmer(new StreamDetokenizer(tokenizer, { skipSpecialTokens: true, keepTokens }));
  const reader = replyReader(rules);
  const parts = reply.flatMap((id) => reader.push(decoder.push(id)));
  return [...parts, ...reader.push(decoder.flush()), ...reader.finish()];
}

const value = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.string({ unit: "grapheme" }),
  fc.constant("你好\n'\""),
);
const calls = fc.array(
  fc.tuple(fc.constantFrom(...names), fc.dictionary(fc.constantFrom("city", "n", "地"), value)),
  { minLength: 1, maxLength: 3 },
);

function comesBack(tokenizer: Tokenizer, runs: number): void {
  const prompt = tokenizer.encodeChat([question]);
  fc.assert(
    fc.property(calls, fc.boolean(), (list, withText) => {
      // SentencePiece's own sign for a space is a space.
      const plain = JSON.parse(JSON.stringify(list).replaceAll("\u2581", "_")) as [
        string,
        Record<string, unknown>,
      ][];
      const toolCalls = plain.map(([name, given]) => call(name, given));
      const content = withText ? "Let me see." : "";
      const all = tokenizer.encodeChat([question, { role: "assistant", content, toolCalls }], {
        addGenerationPrompt: false,
      });
      expect(all.slice(0, prompt.length)).toEqual(prompt);
      for (const [name, given] of plain) {
        const texts = Object.keys(given).filter((key) => typeof given[key] === "string");
        // Which arguments are texts is a fact of the tool: here each call has its own.
        const one = tokenizer.encodeChat(
          [question, { role: "assistant", content, toolCalls: [call(name, given)] }],
          { addGenerationPrompt: false },
        );
        const parts = replyTo(tokenizer, prompt, one.slice(prompt.length), texts);
        expect(
          parts.map((part) => (part.kind === "call" ? JSON.parse(part.arguments) : part.text)).at(-1),
        ).toEqual(given);
      }
      const parts = replyTo(tokenizer, prompt, all.slice(prompt.length), []);
      expect(parts.flatMap((part) => (part.kind === "call" ? [part.name] : []))).toEqual(
        plain.map(([name]) => name),
      );
      const said = parts.map((part) => (part.kind === "content" ? part.text : "")).join("");
      expect(said.trim()).toBe(content);
    }),
    { numRuns: runs },
  );
}

describe("a call comes back from the tokens of its prompt", () => {
  it.each<[string, string, ModelCard]>([
    ["ChatGLM3", pieces, chatglm3],
    ["GLM-4-9B", ranks, glm4_9b],
    ["GLM-4-0414", ranks, glm4],
    ["GLM-4.5", ranks, glm45],
  ])("of %s", async (_, directory, card) => {
    comesBack((await openTokenizer(directory, card))!, 300);
  });

  it.skipIf(!realTokenizers)("of ChatGLM3 with its own tokenizer", async () => {
    const tokenizer = (await openTokenizer(join(realTokenizers!, "chatglm3-6b"), chatglm3))!;
    comesBack(tokenizer, 100);
    const tools = [{ type: "function" as const, function: { name: "f" } }];
    const ids = tokenizer.encodeChat([{ role: "user", content: "你好" }], { tools });
    expect(ids.slice(0, 5)).toEqual([64790, 64792, 64794, 30910, 13]);
    expect(ids.slice(-6)).toEqual([64795, 30910, 13, 36474, 54591, 64796]);
    const described = tokenizer.encodeText(
      "Answer the following questions as best as you can. You have access to the following tools:\n" +
        '[\n    {\n        "name": "f"\n    }\n]',
      { addSpecialTokens: false },
    );
    expect(ids.slice(5, -6)).toEqual(described);
  });
});
