import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import { post, ScriptedService, startApi } from "./support.js";

const service = new ScriptedService();
let api: Api;
beforeAll(async () => {
  api = await startApi(service);
});
afterAll(() => api.close());

const messages = [{ role: "user", content: "hi" }];
const chat = (fields: object) => ({ messages, ...fields });
const completion = (fields: object) => ({ prompt: "hi", ...fields });

describe("the context", () => {
  it("bounds prompt and answer together, with the figures that clients parse", async () => {
    const answer = await post(api, "/v1/completions", { prompt: Array(390).fill(65), max_tokens: 11 });
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({
      code: "context_length_exceeded",
      type: "invalid_request_error",
      n_prompt_tokens: 390,
      n_ctx: 400,
    });
    expect((await post(api, "/v1/completions", { prompt: Array(390).fill(65), max_tokens: 10 })).status).toBe(
      200,
    );
  });

  it("refuses a prompt that leaves no room", async () => {
    const answer = await post(api, "/v1/chat/completions", {
      messages: [{ role: "user", content: "x".repeat(500) }],
    });
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({
      code: "context_length_exceeded",
      n_prompt_tokens: 506,
      n_ctx: 400,
    });
  });

  it("may be filled by a prompt that is only scored", async () => {
    const body = { prompt: Array(400).fill(65), max_tokens: 0, echo: true, logprobs: 0 };
    expect((await post(api, "/v1/completions", body)).status).toBe(200);
  });

  it("is named as the reason when max_tokens alone is beyond it", async () => {
    const answer = await post(api, "/v1/chat/completions", chat({ max_tokens: 1e15 }));
    expect(answer.body.error).toMatchObject({ code: "context_length_exceeded", param: "max_tokens" });
  });
});

describe("what is accepted", () => {
  it("fields with their neutral values, harmless fields and unknown ones", async () => {
    const fields = {
      repetition_penalty: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      logit_bias: {},
      use_beam_search: false,
      prompt_logprobs: null,
      response_format: { type: "text" },
      bad_words: [],
      user: "me",
      metadata: { a: "b" },
      store: false,
      priority: 3,
      cache_salt: "s",
      stop: null,
      seed: null,
      max_tokens: null,
      something_new: { deep: [1] },
    };
    const chatFields = {
      tools: [{}],
      tool_choice: "none",
      parallel_tool_calls: true,
      add_generation_prompt: true,
    };
    expect((await post(api, "/v1/chat/completions", chat({ ...fields, ...chatFields }))).status).toBe(200);
    expect(
      (await post(api, "/v1/completions", completion({ ...fields, suffix: null, best_of: 1 }))).status,
    ).toBe(200);
  });

  it("unknown fields are refused when the client asks for strictness", async () => {
    const answer = await post(api, "/v1/completions", completion({ tempperature: 1 }), {
      "x-glm-strict": "1",
    });
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({ code: "invalid_value", param: "tempperature" });
    expect(
      (await post(api, "/v1/completions", completion({ top_k: 1 }), { "x-glm-strict": "1" })).status,
    ).toBe(200);
  });

  it("the served model by its id, as default, or not named; no other", async () => {
    for (const model of ["glm-test", "default", null, undefined]) {
      const answer = await post(api, "/v1/completions", completion({ model }));
      expect(answer.status).toBe(200);
      expect(answer.body.model).toBe("glm-test");
    }
    for (const path of ["/v1/completions", "/v1/chat/completions"]) {
      const answer = await post(api, path, { ...completion({ model: "gpt-4o" }), messages });
      expect(answer.status).toBe(404);
      expect(answer.body.error).toMatchObject({
        code: "model_not_found",
        type: "not_found_error",
        param: "model",
      });
    }
  });

  it("sampling fields arrive at the service as they were meant", async () => {
    await post(api, "/v1/completions", {
      prompt: "hi",
      max_tokens: 9,
      temperature: 0,
      top_p: 0.5,
      top_k: 40,
      min_p: 0.1,
      seed: -5,
      stop: ["a", "b"],
      stop_token_ids: [7],
      include_stop_str_in_output: true,
      ignore_eos: true,
      min_tokens: 2,
      skip_special_tokens: false,
    });
    expect(service.last).toMatchObject({
      endpoint: "completions",
      choices: [{ promptTokens: [256, 104, 105], seed: "-5" }],
      sampling: {
        temperature: 0,
        topP: 0.5,
        topK: 40,
        minP: 0.1,
        maxTokens: 9,
        minTokens: 2,
        ignoreEos: true,
        stop: ["a", "b"],
        stopTokenIds: [7],
        includeStopInOutput: true,
        topLogprobs: -1,
        promptLogprobs: false,
      },
      text: { skipSpecialTokens: false, chatReply: false },
    });
  });

  it("defaults come from the model and the endpoint; top_k 0 and -1 are off", async () => {
    await post(api, "/v1/completions", { prompt: "hi", stop: "x", top_k: -1 });
    expect(service.last.sampling).toMatchObject({
      temperature: 0.8,
      topP: 0.9,
      topK: 0,
      minP: 0,
      maxTokens: 16,
      stop: ["x"],
    });
    await post(api, "/v1/chat/completions", chat({ top_k: 0 }));
    expect(service.last.sampling).toMatchObject({ topK: 0, maxTokens: 400 - "user:hi".length - 1 });
    expect(service.last.text).toEqual({ skipSpecialTokens: true, chatReply: true });
    await post(api, "/v1/chat/completions", chat({ max_tokens: 5, max_completion_tokens: 6 }));
    expect(service.last.sampling.maxTokens).toBe(6);
  });

  it("text parts are joined as they are", async () => {
    const content = [
      { type: "text", text: "a" },
      { type: "text", text: "b" },
    ];
    await post(api, "/v1/chat/completions", { messages: [{ role: "user", content }] });
    expect(Buffer.from(Array.from(service.last.choices[0]?.promptTokens ?? []).slice(1)).toString()).toBe(
      "user:ab",
    );
  });
});
