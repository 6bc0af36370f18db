import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import {
  finishEvent,
  type Json,
  post,
  ScriptedService,
  saying,
  startApi,
  stream,
  tokensEvent,
} from "./support.js";

const service = new ScriptedService();
let api: Api;
beforeAll(async () => {
  api = await startApi(service);
});
afterAll(() => api.close());
beforeEach(() => {
  service.script = saying("hello");
});

const path = "/v1/chat/completions";
const chat = { messages: [{ role: "user", content: "hi" }] };
/** Start token and "user:hi". */
const promptTokens = 8;

describe("a cluster whose KV cache holds less than the model's context", () => {
  const whole = service.contextLength;
  beforeAll(() => {
    service.contextLength = 50;
  });
  afterAll(() => {
    service.contextLength = whole;
  });

  it("lets an answer have what is left of it, and says how much that is", async () => {
    await post(api, path, chat);
    expect(service.last.sampling.maxTokens).toBe(50 - promptTokens);
    const { status, body } = await post(api, path, { ...chat, max_tokens: 60 });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({
      code: "context_length_exceeded",
      n_prompt_tokens: promptTokens,
      n_ctx: 50,
    });
    expect(body.error.message).toContain("more than the context of 50 tokens");
  });
});

describe("a chat answer", () => {
  it("has OpenAI's shape", async () => {
    const { status, body } = await post(api, path, chat);
    expect(status).toBe(200);
    expect(body).toEqual({
      id: expect.stringMatching(/^chatcmpl-[0-9a-f]{32}$/),
      object: "chat.completion",
      created: expect.any(Number),
      model: "glm-test",
      system_fingerprint: expect.stringMatching(/^fp_[0-9a-f]{12}$/),
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "hello", refusal: null },
          logprobs: null,
          finish_reason: "stop",
          stop_reason: null,
        },
      ],
      usage: {
        prompt_tokens: promptTokens,
        completion_tokens: 5,
        total_tokens: promptTokens + 5,
        prompt_tokens_details: { cached_tokens: 0 },
      },
    });
    expect(body.id).toBe(service.last.id);
  });

  it("n choices of one prompt: own seeds, one count of the prompt", async () => {
    service.script = saying("one", "two");
    const { body } = await post(api, path, { ...chat, n: 2, seed: 11 });
    expect(body.choices.map((choice: Json) => [choice.index, choice.message.content])).toEqual([
      [0, "one"],
      [1, "two"],
    ]);
    expect(body.usage).toMatchObject({ prompt_tokens: promptTokens, completion_tokens: 6 });
    const [first, second] = service.last.choices;
    expect(first?.seed).toBe("11");
    expect(second?.seed).not.toBe("11");
    expect(second?.promptTokens).toEqual(first?.promptTokens);
  });

  it("without a seed each request draws its own", async () => {
    await post(api, path, chat);
    const first = service.last.choices[0]?.seed;
    await post(api, path, chat);
    expect(service.last.choices[0]?.seed).not.toBe(first);
    expect(first).toMatch(/^-?\d+$/);
  });

  it("logprobs come with bytes and alternatives", async () => {
    service.script = saying("é!");
    const { body } = await post(api, path, { ...chat, logprobs: true, top_logprobs: 2 });
    const { content } = body.choices[0].logprobs;
    expect(service.last.sampling.topLogprobs).toBe(2);
    expect(content).toHaveLength(3);
    expect(content[2]).toEqual({
      token: "!",
      logprob: -0.5,
      bytes: [33],
      top_logprobs: [
        { token: "!", logprob: -0.5, bytes: [33] },
        { token: '"', logprob: -1.5, bytes: [34] },
      ],
    });
    expect(content[0].bytes).toEqual([0xc3]);
    const plain = await post(api, path, { ...chat, logprobs: true });
    expect(service.last.sampling.topLogprobs).toBe(0);
    expect(plain.body.choices[0].logprobs.content[0].top_logprobs).toEqual([]);
  });

  it("tokens can be named by their ids, and the ids given beside the text", async () => {
    const { body } = await post(api, path, {
      ...chat,
      logprobs: true,
      return_tokens_as_token_ids: true,
      return_token_ids: true,
    });
    expect(body.choices[0].logprobs.content[0].token).toBe("token_id:104");
    expect(body.choices[0].token_ids).toEqual([...Buffer.from("hello")]);
    expect(body.prompt_token_ids).toHaveLength(promptTokens);
  });

  it("an impossible token's logprob is a number that JSON can hold", async () => {
    service.script = async function* () {
      const logprobs = [{ token: 65, logprob: Number.NEGATIVE_INFINITY, top: [] }];
      yield { type: "tokens", choice: 0, text: "A", tokens: [65], logprobs };
      yield finishEvent(0, 1);
    };
    const { body } = await post(api, path, { ...chat, logprobs: true });
    expect(body.choices[0].logprobs.content[0].logprob).toBe(-9999);
  });

  it("held back text, stop reason and the service's own count of tokens are kept", async () => {
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "ab");
      yield finishEvent(0, 4, { text: "cd", reason: "length", stopReason: "x" });
    };
    const { body } = await post(api, path, chat);
    expect(body.choices[0]).toMatchObject({
      message: { content: "abcd" },
      finish_reason: "length",
      stop_reason: "x",
    });
    expect(body.usage.completion_tokens).toBe(4);
  });

  it("needs a tokenizer", async () => {
    const bare = await startApi(new ScriptedService({ tokenizer: false }));
    const { status, body } = await post(bare, path, chat);
    expect(status).toBe(501);
    expect(body.error).toMatchObject({ type: "not_supported_error", code: "not_supported" });
    await bare.close();
  });
});

describe("a chat stream", () => {
  it("is role, content, an empty delta with the reason, [DONE]; the same head on each chunk", async () => {
    service.script = saying("hey");
    const events = await stream(api, path, chat);
    expect(events.pop()).toBe("[DONE]");
    expect(events.map((chunk) => chunk.choices[0].delta)).toEqual([
      { role: "assistant", content: "" },
      { content: "h" },
      { content: "e" },
      { content: "y" },
      {},
    ]);
    expect(events.map((chunk) => chunk.choices[0].finish_reason)).toEqual([null, null, null, null, "stop"]);
    const heads = events.map(({ choices: _, ...head }) => JSON.stringify(head));
    expect(new Set(heads).size).toBe(1);
    expect(events[0]).toMatchObject({
      id: service.last.id,
      object: "chat.completion.chunk",
      model: "glm-test",
    });
    expect(events.every((chunk) => !("usage" in chunk))).toBe(true);
  });

  it("text that lags behind makes no empty chunks, and what was held back comes before the end", async () => {
    service.script = async function* (request) {
      yield { type: "tokens", choice: 0, text: "", tokens: [0xc3], logprobs: [] };
      yield { type: "tokens", choice: 0, text: "é", tokens: [0xa9], logprobs: [] };
      yield tokensEvent(request, 0, "x");
      yield finishEvent(0, 4, { text: "held", stopReason: 7 });
    };
    const events = await stream(api, path, chat);
    const deltas = events.slice(0, -1).map((chunk) => chunk.choices[0].delta);
    expect(deltas.map((delta) => delta.content)).toEqual(["", "é", "x", "held", undefined]);
    expect(events.at(-2).choices[0].stop_reason).toBe(7);
  });

  it("choices interleave, each with its own role and end", async () => {
    service.script = saying("ab", "c");
    const events = (await stream(api, path, { ...chat, n: 2 })).slice(0, -1);
    for (const [index, text] of ["ab", "c"].entries()) {
      const own = events.map((chunk) => chunk.choices[0]).filter((choice) => choice.index === index);
      expect(own[0].delta.role).toBe("assistant");
      expect(own.map((choice) => choice.delta.content ?? "").join("")).toBe(text);
      expect(own.at(-1)).toMatchObject({ delta: {}, finish_reason: "stop" });
    }
  });

  it("include_usage adds one chunk without choices and null on the others", async () => {
    const events = await stream(api, path, { ...chat, stream_options: { include_usage: true } });
    const last = events.at(-2);
    expect(last).toMatchObject({
      choices: [],
      usage: { prompt_tokens: promptTokens, completion_tokens: 5, total_tokens: promptTokens + 5 },
    });
    expect(events.slice(0, -2).every((chunk) => chunk.usage === null)).toBe(true);
  });

  it("continuous_usage_stats puts the running count on every chunk", async () => {
    const events = await stream(api, path, { ...chat, stream_options: { continuous_usage_stats: true } });
    const counts = events.slice(0, -1).map((chunk) => chunk.usage.completion_tokens);
    expect(counts).toEqual([1, 1, 2, 3, 4, 5, 5]);
  });

  it("logprobs and token ids travel with their tokens", async () => {
    const events = await stream(api, path, {
      ...chat,
      logprobs: true,
      top_logprobs: 1,
      return_token_ids: true,
    });
    const chunks = events.slice(1, -2).map((chunk) => chunk.choices[0]);
    expect(chunks.map((choice) => choice.logprobs.content[0].token).join("")).toBe("hello");
    expect(chunks.flatMap((choice) => choice.token_ids)).toEqual([...Buffer.from("hello")]);
    expect(events[0].prompt_token_ids).toHaveLength(promptTokens);
  });
});
