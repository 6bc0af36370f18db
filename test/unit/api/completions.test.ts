import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import { finishEvent, type Json, post, ScriptedService, saying, startApi, stream } from "./support.js";

const service = new ScriptedService();
const bareService = new ScriptedService({ tokenizer: false });
let api: Api;
let bare: Api;
beforeAll(async () => {
  api = await startApi(service);
  bare = await startApi(bareService);
});
afterAll(async () => {
  await api.close();
  await bare.close();
});
beforeEach(() => {
  service.script = saying("yes");
});

const path = "/v1/completions";

describe("a completion", () => {
  it("has OpenAI's shape", async () => {
    const { status, body } = await post(api, path, { prompt: "hi", stop: ["\n"] });
    expect(status).toBe(200);
    expect(body).toEqual({
      id: expect.stringMatching(/^cmpl-[0-9a-f]{32}$/),
      object: "text_completion",
      created: expect.any(Number),
      model: "glm-test",
      system_fingerprint: expect.stringMatching(/^fp_/),
      choices: [{ index: 0, text: "yes", logprobs: null, finish_reason: "stop", stop_reason: null }],
      usage: {
        prompt_tokens: 3,
        completion_tokens: 3,
        total_tokens: 6,
        prompt_tokens_details: { cached_tokens: 0 },
      },
    });
  });

  it.each<[string, Json, number[][]]>([
    ["a string", "ab", [[256, 97, 98]]],
    [
      "strings",
      ["a", "b"],
      [
        [256, 97],
        [256, 98],
      ],
    ],
    ["ids", [1, 2, 3], [[1, 2, 3]]],
    ["lists of ids", [[1, 2], [3]], [[1, 2], [3]]],
  ])("takes %s as prompt", async (_name, prompt, tokens) => {
    const { status } = await post(api, path, { prompt });
    expect(status).toBe(200);
    expect(service.last.choices.map((choice) => choice.promptTokens)).toEqual(tokens);
  });

  it("leaves special tokens out when asked", async () => {
    await post(api, path, { prompt: "ab", add_special_tokens: false });
    expect(service.last.choices[0]?.promptTokens).toEqual([97, 98]);
  });

  it("numbers choices prompt * n + j; each prompt is seeded as if it were alone", async () => {
    service.script = saying("a0", "a1", "b0", "b1");
    const { body } = await post(api, path, { prompt: [[1, 2], [3]], n: 2, seed: "9223372036854775807" });
    expect(body.choices.map((choice: Json) => [choice.index, choice.text])).toEqual([
      [0, "a0"],
      [1, "a1"],
      [2, "b0"],
      [3, "b1"],
    ]);
    const { choices } = service.last;
    expect(choices.map((choice) => choice.promptTokens)).toEqual([[1, 2], [1, 2], [3], [3]]);
    expect(choices[0]?.seed).toBe("9223372036854775807");
    expect(choices[2]?.seed).toBe(choices[0]?.seed);
    expect(choices[3]?.seed).toBe(choices[1]?.seed);
    expect(choices[1]?.seed).not.toBe(choices[0]?.seed);
    expect(body.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 8 });
  });

  it("logprobs are lists with the token itself among the alternatives", async () => {
    service.script = saying("hé");
    const { body } = await post(api, path, { prompt: "hi", logprobs: 1 });
    expect(body.choices[0].logprobs).toEqual({
      tokens: ["h", "<195>", "<169>"],
      token_logprobs: [-0.5, -0.5, -0.5],
      top_logprobs: [{ h: -0.5 }, { "<195>": -0.5 }, { "<169>": -0.5 }],
      // The second byte of é begins no character of its own.
      text_offset: [0, 1, 2],
    });
    const zero = await post(api, path, { prompt: "hi", logprobs: 0 });
    expect(service.last.sampling.topLogprobs).toBe(0);
    expect(zero.body.choices[0].logprobs.top_logprobs[0]).toEqual({ h: -0.5 });
  });

  it("a token that is not among the best is added to them", async () => {
    service.script = async function* () {
      const logprobs = [{ token: 65, logprob: -4, top: [{ token: 66, logprob: -0.1 }] }];
      yield { type: "tokens", choice: 0, text: "A", tokens: [65], logprobs };
      yield finishEvent(0, 1);
    };
    const { body } = await post(api, path, { prompt: "hi", logprobs: 1 });
    expect(body.choices[0].logprobs.top_logprobs).toEqual([{ B: -0.1, A: -4 }]);
  });
});

describe("echo", () => {
  it("puts the prompt in front of every choice", async () => {
    const { body } = await post(api, path, { prompt: ["hi ", "so "], n: 2, echo: true });
    expect(body.choices.map((choice: Json) => choice.text)).toEqual(["hi yes", "hi yes", "so yes", "so yes"]);
    expect(service.last.sampling.promptLogprobs).toBe(false);
  });

  it("reads a prompt of ids back as text", async () => {
    const { body } = await post(api, path, { prompt: [104, 105], echo: true });
    expect(body.choices[0].text).toBe("hiyes");
  });

  it("with logprobs scores the prompt; the first token has none", async () => {
    const { body } = await post(api, path, { prompt: [104, 105], echo: true, logprobs: 1 });
    expect(service.last.sampling).toMatchObject({ promptLogprobs: true, topLogprobs: 1 });
    expect(body.choices[0].logprobs).toEqual({
      tokens: ["h", "i", "y", "e", "s"],
      token_logprobs: [null, -0.5, -0.5, -0.5, -0.5],
      top_logprobs: [null, { i: -0.5 }, { y: -0.5 }, { e: -0.5 }, { s: -0.5 }],
      text_offset: [0, 1, 2, 3, 4],
    });
  });

  it("with max_tokens 0 does nothing but score", async () => {
    service.script = async function* (request) {
      yield* saying("")(request);
    };
    const { status, body } = await post(api, path, { prompt: "hi", echo: true, logprobs: 1, max_tokens: 0 });
    expect(status).toBe(200);
    expect(service.last.sampling.maxTokens).toBe(0);
    expect(body.choices[0].text).toBe("hi");
    expect(body.choices[0].logprobs.token_logprobs).toEqual([null, -0.5, -0.5]);
    expect(body.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 0 });
  });

  it("is the first chunk of a stream", async () => {
    const events = await stream(api, path, { prompt: "hi", echo: true, logprobs: 0 });
    const choices = events.slice(0, -1).map((chunk) => chunk.choices[0]);
    expect(choices.map((choice) => choice.text)).toEqual(["hi", "y", "e", "s", ""]);
    expect(choices[0].logprobs.tokens).toEqual(["<256>", "h", "i"]);
    expect(choices.flatMap((choice) => choice.logprobs?.text_offset ?? [])).toEqual([0, 0, 1, 2, 3, 4]);
    const plain = await stream(api, path, { prompt: "hi", echo: true });
    expect(plain.slice(0, -1).map((chunk) => chunk.choices[0].text)).toEqual(["hi", "y", "e", "s", ""]);
  });
});

describe("a stream", () => {
  it("is text chunks, an empty one with the reason, [DONE]", async () => {
    const events = await stream(api, path, { prompt: "hi", stream_options: { include_usage: true } });
    expect(events.at(-1)).toBe("[DONE]");
    expect(events.at(-2)).toMatchObject({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 3 } });
    const chunks = events.slice(0, -2);
    expect(chunks.map((chunk) => chunk.choices[0].text)).toEqual(["y", "e", "s", ""]);
    expect(chunks.map((chunk) => chunk.choices[0].finish_reason)).toEqual([null, null, null, "stop"]);
    expect(chunks.at(-1).choices[0].stop_reason).toBeNull();
    expect(chunks.every((chunk) => chunk.object === "text_completion" && chunk.usage === null)).toBe(true);
    expect(chunks.every((chunk) => chunk.id === service.last.id)).toBe(true);
  });

  it("of several prompts gives each its own index", async () => {
    service.script = saying("a", "b");
    const events = (await stream(api, path, { prompt: ["x", "y"] })).slice(0, -1);
    const text = (index: number) =>
      events
        .map((chunk) => chunk.choices[0])
        .filter((choice) => choice.index === index)
        .map((choice) => choice.text)
        .join("");
    expect([text(0), text(1)]).toEqual(["a", "b"]);
  });
});

describe("a model without a tokenizer", () => {
  const idsOnly: typeof bareService.script = async function* (request) {
    if (request.sampling.promptLogprobs) {
      yield {
        type: "prompt",
        choice: 0,
        scores: [null, { token: 2, logprob: -1, top: [{ token: 9, logprob: -0.3 }] }],
      };
    }
    for (const token of [5, 6]) {
      const logprobs = request.sampling.topLogprobs < 0 ? [] : [{ token, logprob: -0.5, top: [] }];
      yield { type: "tokens", choice: 0, text: "", tokens: [token], logprobs };
    }
    yield finishEvent(0, 2, { reason: "length" });
  };
  beforeEach(() => {
    bareService.script = idsOnly;
  });

  it("answers ids with ids", async () => {
    const { status, body } = await post(bare, path, { prompt: [1, 2], logprobs: 0 });
    expect(status).toBe(200);
    expect(body.choices[0]).toMatchObject({ text: "", token_ids: [5, 6], finish_reason: "length" });
    expect(body.choices[0].logprobs).toEqual({
      tokens: ["token_id:5", "token_id:6"],
      token_logprobs: [-0.5, -0.5],
      top_logprobs: [{ "token_id:5": -0.5 }, { "token_id:6": -0.5 }],
      text_offset: [0, 0],
    });
  });

  it("streams ids", async () => {
    const events = (await stream(bare, path, { prompt: [1, 2] })).slice(0, -1);
    expect(events.map((chunk) => chunk.choices[0].token_ids)).toEqual([[5], [6], []]);
  });

  it("echoes ids and scores them", async () => {
    const { body } = await post(bare, path, { prompt: [1, 2], echo: true, logprobs: 1 });
    expect(body.choices[0]).toMatchObject({ text: "", prompt_token_ids: [1, 2], token_ids: [5, 6] });
    expect(body.choices[0].logprobs.tokens).toEqual(["token_id:1", "token_id:2", "token_id:5", "token_id:6"]);
    expect(body.choices[0].logprobs.top_logprobs[1]).toEqual({ "token_id:9": -0.3, "token_id:2": -1 });
    const events = await stream(bare, path, { prompt: [1, 2], echo: true, logprobs: 1 });
    expect(events[0].choices[0]).toMatchObject({
      prompt_token_ids: [1, 2],
      logprobs: { token_logprobs: [null, -1] },
    });
  });

  it("cannot take text", async () => {
    const { status, body } = await post(bare, path, { prompt: "hi" });
    expect(status).toBe(501);
    expect(body.error.code).toBe("not_supported");
  });
});

it("return_token_ids gives ids beside the text", async () => {
  const { body } = await post(api, path, { prompt: "hi", return_token_ids: true });
  expect(body.choices[0]).toMatchObject({
    text: "yes",
    token_ids: [121, 101, 115],
    prompt_token_ids: [256, 104, 105],
  });
});

it("a long echo streams in several chunks that join to the whole, the text with the first", async () => {
  const prompt = Array.from({ length: 200 }, (_, i) => 40 + (i % 80));
  const request = { prompt, echo: true, logprobs: 1, max_tokens: 3, return_token_ids: true };
  const whole = (await post(api, path, request)).body.choices[0];
  const chunks = (await stream(api, path, request)).slice(0, -1).map(({ choices }: Json) => choices[0]);
  const echoed = chunks.filter((choice: Json) => choice.token_ids.length === 0 && choice.logprobs !== null);
  expect(echoed.map((choice: Json) => choice.text.length)).toEqual([200, 0, 0, 0]);
  expect(chunks.map((choice: Json) => choice.text).join("")).toBe(whole.text);
  expect(chunks.flatMap((choice: Json) => choice.prompt_token_ids ?? [])).toEqual(prompt);
  for (const list of ["tokens", "token_logprobs", "top_logprobs", "text_offset"]) {
    expect(chunks.flatMap((choice: Json) => choice.logprobs?.[list] ?? [])).toEqual(whole.logprobs[list]);
  }
  expect(whole.logprobs.tokens).toHaveLength(203);
});
