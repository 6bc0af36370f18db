import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, TestCluster } from "../support/cluster.js";

describe("the official openai client on a cluster of four workers", () => {
  let cluster: TestCluster;
  let client: OpenAI;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: demoModel, stages: 4 });
    client = new OpenAI({ baseURL: `${cluster.url}/v1`, apiKey: "none", maxRetries: 0 });
  });
  afterAll(async () => {
    await cluster?.stop();
  });

  it("streams a chat that is right", async () => {
    const stream = await client.chat.completions.create({
      model: "default",
      messages: [{ role: "user", content: "What is the capital of France?" }],
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let chunks = 0;
    let finish: string | null = null;
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      chunks++;
      text += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    expect(text).toMatch(/Paris/);
    expect(chunks).toBeGreaterThan(2);
    expect(finish).toBe("stop");
    expect(usage!.total_tokens).toBe(usage!.prompt_tokens + usage!.completion_tokens);
  });

  it("gets the same text streaming and not, and in Chinese", async () => {
    const messages = [{ role: "user" as const, content: "法国的首都是哪里？" }];
    const whole = await client.chat.completions.create({ model: "default", messages, temperature: 0 });
    const stream = await client.chat.completions.create({
      model: "default",
      messages,
      temperature: 0,
      stream: true,
    });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
    expect(text).toBe(whole.choices[0]!.message.content);
    expect(text).toMatch(/巴黎/);
  });

  it("gets a completion with logprobs that agree with scoring the same text", async () => {
    const first = await client.completions.create({
      model: "default",
      prompt: [5, 6, 7],
      max_tokens: 6,
      temperature: 0,
      logprobs: 2,
      // Fields beyond OpenAI's are passed on as they are.
      ignore_eos: true,
      return_tokens_as_token_ids: true,
    } as OpenAI.CompletionCreateParamsNonStreaming);
    const { tokens, token_logprobs } = first.choices[0]!.logprobs!;
    expect(tokens).toHaveLength(6);
    const ids = tokens!.map((token) => Number(token.slice("token_id:".length)));
    const scored = await client.completions.create({
      model: "default",
      prompt: [5, 6, 7, ...ids],
      max_tokens: 0,
      echo: true,
      logprobs: 0,
    });
    // Exact: prefill in one chunk and decoding token by token compute the same bits.
    expect(scored.choices[0]!.logprobs!.token_logprobs!.slice(3)).toEqual(token_logprobs);
  });

  it("gives n different choices with one seed, and the same ones again", async () => {
    const ask = () =>
      client.completions.create({
        model: "default",
        prompt: [9],
        n: 4,
        max_tokens: 8,
        temperature: 1.5,
        seed: 11,
      });
    const [a, b] = await Promise.all([ask(), ask()]);
    expect(a.choices.map((choice) => choice.text)).toEqual(b.choices.map((choice) => choice.text));
    expect(new Set(a.choices.map((choice) => choice.text)).size).toBeGreaterThan(1);
  });

  it("sees proper error objects", async () => {
    const bad = client.chat.completions.create({ model: "nope", messages: [{ role: "user", content: "x" }] });
    await expect(bad).rejects.toMatchObject({
      status: 404,
      code: "model_not_found",
      type: "not_found_error",
    });
    const hot = client.chat.completions.create({
      model: "default",
      messages: [{ role: "user", content: "x" }],
      temperature: 9,
    });
    await expect(hot).rejects.toMatchObject({ status: 400, code: "invalid_value", param: "temperature" });
  });

  it("lists the model", async () => {
    const models = await client.models.list();
    expect(models.data[0]!.id).toBe((await cluster.view()).model);
  });

  it("keeps the prompt of a chat what a client sees with /tokenize", async () => {
    const messages = [{ role: "user", content: "12 + 30 = ?" }];
    const { body } = await cluster.post("/tokenize", { messages });
    const chat = await cluster.post("/v1/chat/completions", { messages, max_tokens: 1 });
    expect(chat.body.usage.prompt_tokens).toBe(body.count);
  });
});
