/**
 * A prefix-LM asked with text: the tiny ChatGLM-6B with a SentencePiece file of its size, whose special
 * pieces have the ids that its config.json names.
 */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openTokenizer, type Tokenizer } from "../../coordinator/prompt/tokenizer.js";
import { chatglm6b } from "../../models/chatglm-6b.js";
import { fixtureFolder } from "../golden/support.js";
import { TestCluster } from "../support/cluster.js";
import { GrpcClient } from "../support/grpc-client.js";
import {
  controlPieces,
  type FixturePiece,
  sentencePieceBytes,
} from "../unit/prompt/sentencepiece-fixture.js";

/** Of the fixture's config.json: masks at 110 and 111, the start of a reply at 114, its end at 115. */
const specialPieces = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"];
const firstSpecial = 110;
const unigram = 1;

const letters = [..."▁abcdefghijklmnopqrstuvwxyz0123456789.,:[]你好问答："];
const words = Array.from({ length: firstSpecial - 4 - 1 - letters.length }, (_, i) => `▁w${i}`);
const text = (piece: string, score: number): FixturePiece => ({ text: piece, score });
const pieces: FixturePiece[] = [
  ...controlPieces,
  { text: "<pad>", type: "control" },
  { text: "<n>", score: 0, type: "userDefined" },
  ...letters.map((letter) => text(letter, -10)),
  ...words.map((word) => text(word, -8)),
  ...specialPieces.map((name): FixturePiece => ({ text: name, type: "control" })),
  { text: "<|tab|>", score: 0, type: "userDefined" },
  { text: "<|blank_2|>", score: 0, type: "userDefined" },
];

describe("blanks in a text", () => {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-test-"));
  const { file } = chatglm6b.tokenizer;
  let cluster: TestCluster;
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    cpSync(fixtureFolder("chatglm-6b-tiny"), directory, { recursive: true });
    writeFileSync(
      join(directory, file),
      sentencePieceBytes(pieces, { modelType: unigram, byteFallback: false }),
    );
    tokenizer = (await openTokenizer(directory, chatglm6b))!;
    cluster = await TestCluster.start({ model: directory, stages: 2, dtype: "float32", grpc: true });
  });
  afterAll(async () => {
    await cluster?.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  const sampling = { max_tokens: 5, temperature: 1, seed: 7, ignore_eos: true };
  const complete = async (body: Record<string, unknown>) => {
    const answer = await cluster.post("/v1/completions", { ...sampling, ...body });
    expect(answer.status, JSON.stringify(answer.body)).toBe(200);
    return answer.body;
  };

  it("are its masks, and only in a completion", async () => {
    const prompt = "ab [MASK] cd [MASK]";
    const { body } = await cluster.post("/tokenize", { prompt });
    const ids = [...tokenizer.encodeText("ab ", { addSpecialTokens: false }), 110];
    ids.push(...tokenizer.encodeText(" cd ", { addSpecialTokens: false }), 110, 114);
    expect(body.tokens).toEqual(ids);
    const chat = await cluster.post("/tokenize", { messages: [{ role: "user", content: prompt }] });
    expect(chat.body.tokens.slice(-2)).toEqual([111, 114]);
    expect(chat.body.tokens.slice(0, -2).filter((id: number) => id >= firstSpecial)).toEqual([]);
  });

  it("are filled one after the other, and the reply says which text fills which", async () => {
    const { choices, usage } = await complete({ prompt: "ab [MASK] cd [MASK].", return_token_ids: true });
    const [{ blanks, text, token_ids: ids, finish_reason }] = choices;
    expect(blanks.map(({ index, mask }: { index: number; mask: string }) => [index, mask])).toEqual([
      [0, "[MASK]"],
      [1, "[MASK]"],
    ]);
    expect(blanks.map((blank: { text: string }) => blank.text).join("")).toBe(text);
    expect(blanks[0].text).toBe(tokenizer.decode(ids.slice(0, 5), { skipSpecialTokens: true }));
    expect(blanks[1].text).toBe(tokenizer.decode(ids.slice(5), { skipSpecialTokens: true }));
    expect([ids.length, usage.completion_tokens, finish_reason]).toEqual([10, 10, "length"]);
  });

  it("come one by one in a stream, with the same text", async () => {
    const whole = await complete({ prompt: "ab [MASK] cd [MASK]." });
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...sampling, prompt: "ab [MASK] cd [MASK].", stream: true }),
    });
    const events = (await response.text()).split("\n\n").filter((event) => event.startsWith("data: {"));
    const choices = events.map((event) => JSON.parse(event.slice(6)).choices[0]);
    const texts = ["", ""];
    let blank = 0;
    for (const choice of choices) {
      if (blank < texts.length) texts[blank] += choice.text;
      if (choice.blank !== undefined) expect(choice.blank.index).toBe(blank++);
    }
    expect(texts).toEqual(whole.choices[0].blanks.map((filled: { text: string }) => filled.text));
    expect(choices.at(-1).finish_reason).toBe("length");
  });

  it("come over gRPC with the same text", async () => {
    const prompt = "ab [MASK] cd [MASK].";
    const whole = await complete({ prompt });
    const client = new GrpcClient(await cluster.grpcAddress());
    try {
      const { text, deltas, finished } = await client.generate({ ...sampling, prompt });
      expect(text).toBe(whole.choices[0].text);
      expect(finished!.choices[0]!.blanks).toEqual(whole.choices[0].blanks);
      expect(deltas.flatMap(({ blank }) => (blank ? [blank.index] : []))).toEqual([0, 1]);
    } finally {
      client.close();
    }
  });

  it("are one at the end where the text names none, as in a chat", async () => {
    const completion = await complete({ prompt: "ab cd", return_token_ids: true });
    const messages = [{ role: "user", content: "ab cd" }];
    const chat = await cluster.post("/v1/chat/completions", {
      ...sampling,
      messages,
      return_token_ids: true,
    });
    expect(completion.choices[0].blanks).toHaveLength(1);
    expect(chat.body.choices[0].token_ids).toEqual(completion.choices[0].token_ids);
    expect(chat.body.choices[0].blanks).toBeUndefined();
  });

  it("are counted in what a completion may take of the context", async () => {
    const prompt = "[MASK] [MASK] [MASK]";
    const fits = await cluster.post("/v1/completions", { prompt, max_tokens: 40, ignore_eos: true });
    expect(fits.status).toBe(200);
    const { status, body } = await cluster.post("/v1/completions", { prompt, max_tokens: 45 });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "context_length_exceeded" });
  });
});
