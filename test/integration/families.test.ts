/**
 * Families beside ChatGLM3 through a cluster of real processes: checkpoints of random weights with small
 * tokenizers of the family's kind, named as the authors name theirs.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { shapes, writeRandomCheckpoint } from "../../bench/random-checkpoint.js";
import { openTokenizer, type Tokenizer } from "../../coordinator/prompt/tokenizer.js";
import type { ModelCard } from "../../models/card.js";
import { chatglm2 } from "../../models/chatglm2.js";
import { glm4_9b } from "../../models/glm4-9b.js";
import { TestCluster } from "../support/cluster.js";
import { rankLines, smallTokens } from "../unit/prompt/ranks-fixture.js";
import { sentencePieceBytes, smallPieces } from "../unit/prompt/sentencepiece-fixture.js";

interface Family {
  card: ModelCard;
  config: Record<string, unknown>;
  tokenizer: Uint8Array;
  /** Of the conversation below. */
  prompt: string;
  tools: boolean;
}

const messages = [
  { role: "user", content: "hello 🔥" },
  { role: "assistant", content: "你好" },
  { role: "user", content: "world" },
];
const rankCount = smallTokens().length;
const families: Family[] = [
  {
    card: chatglm2,
    config: { _name_or_path: "THUDM/chatglm2-6b-32k", rope_ratio: 16 },
    tokenizer: sentencePieceBytes(smallPieces),
    prompt: "[gMASK]sop[Round 1]\n\n问：hello 🔥\n\n答：你好\n\n[Round 2]\n\n问：world\n\n答：",
    tools: false,
  },
  {
    card: glm4_9b,
    config: {
      _name_or_path: "THUDM/glm-4-9b-chat-1m",
      eos_token_id: [rankCount, rankCount + 7, rankCount + 9],
      layernorm_epsilon: 1.5625e-7,
      rope_ratio: 10_000,
      seq_length: 1_048_576,
    },
    tokenizer: Buffer.from(rankLines(smallTokens())),
    prompt: "[gMASK]<sop><|user|>\nhello 🔥<|assistant|>\n你好<|user|>\nworld<|assistant|>",
    tools: true,
  },
];

describe.each(families)(
  "a checkpoint of $card.title in two stages",
  ({ card, config, tokenizer: file, prompt, tools: hasTools }) => {
    const directory = mkdtempSync(join(tmpdir(), "glm-relay-family-"));
    let cluster: TestCluster;
    let tokenizer: Tokenizer;
    beforeAll(async () => {
      await writeRandomCheckpoint({ directory, shape: { ...shapes.tiny, config } });
      writeFileSync(join(directory, card.tokenizer.file), file);
      tokenizer = (await openTokenizer(directory, card))!;
      cluster = await TestCluster.start({ model: directory, stages: 2 });
    });
    afterAll(async () => {
      await cluster?.stop();
      rmSync(directory, { recursive: true, force: true });
    });

    it("renders a conversation in the family's format", async () => {
      const { body } = await cluster.post("/tokenize", { messages });
      expect(tokenizer.decode(body.tokens, { skipSpecialTokens: false })).toBe(prompt);
      expect(body.tokens).toEqual(tokenizer.encodeChat(messages));
    });

    it("answers it with tokens that exist, and with their text", async () => {
      const sampling = { max_tokens: 24, temperature: 1, seed: 3, ignore_eos: true, return_token_ids: true };
      const chat = await cluster.post("/v1/chat/completions", { messages, ...sampling });
      expect(chat.status).toBe(200);
      const [choice] = chat.body.choices;
      expect(choice.token_ids).toHaveLength(24);
      expect(Math.max(...choice.token_ids)).toBeLessThan(tokenizer.tokenCount);
      const text = tokenizer.decode(choice.token_ids, { skipSpecialTokens: true });
      expect(choice.message.content).toBe(text.trimStart());
      // The same rows by the other route: the prompt as ids, the reply as it is.
      const ids = tokenizer.encodeChat(messages);
      const completion = await cluster.post("/v1/completions", { prompt: ids, ...sampling });
      expect(completion.body.choices[0].token_ids).toEqual(choice.token_ids);
      expect(completion.body.choices[0].text).toBe(text);
    });

    it("streams the same text in whole characters", async () => {
      const sampling = { max_tokens: 24, temperature: 1, seed: 3, ignore_eos: true };
      const whole = await cluster.post("/v1/chat/completions", { messages, ...sampling });
      const response = await fetch(`${cluster.url}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ messages, ...sampling, stream: true }),
      });
      const events = (await response.text()).split("\n\n").filter((event) => event.startsWith("data: {"));
      const parts = events.map((event) => JSON.parse(event.slice(6)).choices[0]?.delta.content ?? "");
      expect(parts.join("")).toBe(whole.body.choices[0].message.content);
      expect(parts.length).toBeGreaterThan(2);
    });

    it("describes tools where the format has a place for them, else refuses them", async () => {
      const tools = [{ type: "function" as const, function: { name: "f", parameters: {} } }];
      const { status, body } = await cluster.post("/tokenize", { messages, tools });
      if (!hasTools) {
        expect([status, body.error.code, body.error.param]).toEqual([400, "unsupported_parameter", "tools"]);
        return;
      }
      expect(body.tokens).toEqual(tokenizer.encodeChat(messages, { tools }));
      expect(tokenizer.decode(body.tokens, { skipSpecialTokens: false })).toContain('"name": "f"');
      const sampling = { max_tokens: 24, temperature: 1, seed: 3, ignore_eos: true };
      const chat = await cluster.post("/v1/chat/completions", { messages, tools, ...sampling });
      // Random weights call nothing.
      expect(chat.body.choices[0]).toMatchObject({ finish_reason: "length", message: { role: "assistant" } });
    });

    it("refuses messages that its format has no place for", async () => {
      const late = await cluster.post("/v1/chat/completions", {
        messages: [...messages, { role: "system", content: "x" }],
      });
      expect(late.status).toBe(400);
      expect(late.body.error).toMatchObject({ code: "invalid_value", param: "messages[3].role" });
    });
  },
);
