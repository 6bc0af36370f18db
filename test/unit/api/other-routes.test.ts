import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import { get, post, ScriptedService, startApi } from "./support.js";

let api: Api;
beforeAll(async () => {
  api = await startApi(new ScriptedService());
});
afterAll(() => api.close());

describe("models", () => {
  const model = {
    id: "glm-test",
    object: "model",
    created: 1_700_000_000,
    owned_by: "glm-relay",
    root: "glm-test",
    parent: null,
    max_model_len: 400,
    permission: [],
    meta: { n_ctx_train: 400, n_vocab: 260, n_embd: 64, n_params: 1_000, size: 2_000 },
  };

  it("are listed and found by id or as default", async () => {
    expect((await get(api, "/v1/models")).body).toEqual({ object: "list", data: [model] });
    expect((await get(api, "/v1/models/glm-test")).body).toEqual(model);
    expect((await get(api, "/v1/models/default")).body).toEqual(model);
    for (const id of ["gpt-4o", "org/name", "a%2Fb"]) {
      const answer = await get(api, `/v1/models/${id}`);
      expect(answer.status).toBe(404);
      expect(answer.body.error.code).toBe("model_not_found");
    }
  });
});

describe("tokenize", () => {
  it("speaks vLLM's dialect, for text and for messages", async () => {
    expect((await post(api, "/tokenize", { prompt: "hi" })).body).toEqual({
      count: 3,
      max_model_len: 400,
      tokens: [256, 104, 105],
    });
    const bare = { prompt: "hi", add_special_tokens: false, return_token_strs: true };
    expect((await post(api, "/tokenize", bare)).body).toMatchObject({
      tokens: [104, 105],
      token_strs: ["h", "i"],
    });
    const messages = [{ role: "user", content: "x" }];
    expect((await post(api, "/tokenize", { messages })).body.count).toBe(7);
  });

  it("speaks llama.cpp's dialect, bytes for a piece of a character", async () => {
    expect((await post(api, "/tokenize", { content: "hi" })).body).toEqual({ tokens: [104, 105] });
    expect(
      (await post(api, "/tokenize", { content: "é!", with_pieces: true, add_special: true })).body,
    ).toEqual({
      tokens: [
        { id: 256, piece: "" },
        { id: 0xc3, piece: [0xc3] },
        { id: 0xa9, piece: [0xa9] },
        { id: 33, piece: "!" },
      ],
    });
  });

  it("and back, under both names", async () => {
    const { body } = await post(api, "/detokenize", { tokens: [104, 105] });
    expect(body).toEqual({ prompt: "hi", content: "hi" });
  });

  it.each([
    ["/tokenize", {}, "prompt"],
    ["/tokenize", { prompt: 5 }, "prompt"],
    ["/tokenize", { content: ["x"] }, "content"],
    ["/tokenize", { messages: [] }, "messages"],
    ["/tokenize", { content: "x", parse_special: false }, "parse_special"],
    ["/tokenize", { messages: [{ role: "user", content: "x" }], tools: [{}] }, "tools[0].type"],
    ["/detokenize", {}, "tokens"],
    ["/detokenize", { tokens: "x" }, "tokens"],
    ["/detokenize", { tokens: [1, 5000] }, "tokens"],
  ])("%s refuses %j, naming %s", async (path, body, param) => {
    const answer = await post(api, path, body);
    expect(answer.status).toBe(400);
    expect(answer.body.error.param).toBe(param);
  });

  it("is not offered without a tokenizer", async () => {
    const bare = await startApi(new ScriptedService({ tokenizer: false }));
    for (const [path, body] of [
      ["/tokenize", { prompt: "x" }],
      ["/tokenize", { content: "x" }],
      ["/tokenize", { messages: [{ role: "user", content: "x" }] }],
      ["/detokenize", { tokens: [1] }],
    ] as const) {
      expect((await post(bare, path, body)).status).toBe(501);
    }
    await bare.close();
  });
});

describe("openapi.json", () => {
  it("lists the paths that answer, and no other", async () => {
    const { body } = await get(api, "/openapi.json");
    expect(body.openapi).toBe("3.1.0");
    expect(Object.keys(body.paths).sort()).toEqual([
      "/api/cluster",
      "/detokenize",
      "/health",
      "/livez",
      "/metrics",
      "/openapi.json",
      "/readyz",
      "/tokenize",
      "/v1/batches",
      "/v1/batches/{id}",
      "/v1/batches/{id}/cancel",
      "/v1/batches/{id}/events",
      "/v1/chat/completions",
      "/v1/completions",
      "/v1/embeddings",
      "/v1/files",
      "/v1/files/{id}",
      "/v1/files/{id}/content",
      "/v1/models",
      "/v1/models/{id}",
      "/v1/requests/{id}",
      "/v1/requests/{id}/cancel",
    ]);
    for (const [path, methods] of Object.entries(body.paths)) {
      for (const method of Object.keys(methods as object)) {
        const url = api.address + path.replace("{id}", "glm-test");
        const init = method === "post" ? { body: "{}", headers: { "content-type": "application/json" } } : {};
        const response = await fetch(url, { method: method.toUpperCase(), ...init });
        // Nobody knows a request of this name; a path that is not there says so in other words.
        if ((await response.text()).includes("is not known")) continue;
        expect([404, 405]).not.toContain(response.status);
      }
    }
  });

  it("describes the fields that are read", async () => {
    const { body } = await get(api, "/openapi.json");
    const schema = body.paths["/v1/chat/completions"].post.requestBody.content["application/json"].schema;
    expect(schema.required).toEqual(["messages"]);
    expect(schema.properties.temperature).toEqual({ type: "number", minimum: 0, maximum: 2 });
    expect(schema.properties.top_p).toMatchObject({ exclusiveMinimum: 0, maximum: 1 });
    expect(schema.properties.prompt).toBeUndefined();
  });
});
