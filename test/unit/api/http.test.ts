import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { Api } from "../../../coordinator/api/server.js";
import {
  finishEvent,
  gate,
  get,
  post,
  rawExchange,
  ScriptedService,
  startApi,
  tokensEvent,
} from "./support.js";

const service = new ScriptedService();
let api: Api;
beforeAll(async () => {
  api = await startApi(service);
});
afterAll(() => api.close());
afterEach(() => {
  service.refusal = null;
  service.notReadyError = null;
});

const completion = { prompt: "hi" };

describe("paths and methods", () => {
  it("an unknown path is 404 in OpenAI's shape, whatever the method and content type", async () => {
    for (const [path, method] of [
      ["/", "GET"],
      ["/v2/chat", "POST"],
      ["/v1/completions/x", "DELETE"],
      ["/v1/%zz", "GET"],
    ] as const) {
      const answer = await get(api, path, method);
      expect(answer.status).toBe(404);
      expect(answer.body.error).toMatchObject({ type: "not_found_error", code: "not_found", param: null });
    }
  });

  it("a wrong method is 405 and names the right one", async () => {
    for (const [path, method, allow] of [
      ["/v1/chat/completions", "GET", "POST"],
      ["/v1/completions", "PUT", "POST"],
      ["/v1/models", "POST", "GET, HEAD"],
      ["/v1/models/glm-test", "DELETE", "GET, HEAD"],
      ["/livez", "POST", "GET, HEAD"],
      ["/tokenize", "GET", "POST"],
    ] as const) {
      const answer = await get(api, path, method);
      expect(answer.status).toBe(405);
      expect(answer.headers.get("allow")).toBe(allow);
      expect(answer.body.error).toMatchObject({ type: "invalid_request_error", code: "method_not_allowed" });
    }
  });

  it("embeddings are not offered, and no client should try again", async () => {
    const answer = await post(api, "/v1/embeddings", { input: "x" });
    expect(answer.status).toBe(501);
    expect(answer.body.error).toMatchObject({ type: "not_supported_error", code: "not_supported" });
    expect(answer.headers.get("x-should-retry")).toBe("false");
  });
});

describe("bodies", () => {
  it.each([
    ["{", "not valid JSON"],
    ["", "empty"],
    ['{"prompt":"a",}', "not valid JSON"],
    ['{"temperature":NaN}', "not valid JSON"],
    ["prompt=hi", "not valid JSON"],
  ])("broken JSON %j is 400 invalid_json", async (body, message) => {
    const answer = await post(api, "/v1/completions", body);
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({ code: "invalid_json", param: null });
    expect(answer.body.error.message).toContain(message);
  });

  it("bytes that are not UTF-8 are refused, not repaired", async () => {
    const body = Buffer.concat([Buffer.from('{"prompt":"'), Buffer.of(0xc3, 0x28), Buffer.from('"}')]);
    const answer = await post(api, "/v1/completions", body);
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({
      code: "invalid_json",
      message: "the request body is not valid UTF-8",
    });
  });

  it("a byte order mark, deep nesting and __proto__ keys do no harm", async () => {
    for (const body of [
      '\ufeff{"prompt":"hi"}',
      `{"prompt":"hi","x":${"[".repeat(100_000)}${"]".repeat(100_000)}}`,
      '{"prompt":"hi","__proto__":{"temperature":9},"constructor":{"prototype":1}}',
      '{"prompt":"wrong","prompt":"hi"}',
    ]) {
      expect((await post(api, "/v1/completions", body)).status).toBe(200);
    }
    const deep = `{"prompt":${"[".repeat(100_000)}${"]".repeat(100_000)}}`;
    expect((await post(api, "/v1/completions", deep)).status).toBe(400);
  });

  it("another content type is 415", async () => {
    for (const headers of <Record<string, string>[]>[
      { "content-type": "text/plain" },
      { "content-type": "application/x-www-form-urlencoded" },
      { "content-encoding": "gzip" },
    ]) {
      const answer = await post(api, "/v1/completions", completion, headers);
      expect(answer.status).toBe(415);
      expect(answer.body.error).toMatchObject({
        type: "invalid_request_error",
        code: "unsupported_media_type",
      });
    }
    const charset = { "content-type": "application/json; charset=utf-8" };
    expect((await post(api, "/v1/completions", completion, charset)).status).toBe(200);
  });

  it("5 MB are 413, and the client gets to read it", async () => {
    const answer = await post(api, "/v1/completions", { prompt: "x".repeat(5_000_000) });
    expect(answer.status).toBe(413);
    expect(answer.body.error).toMatchObject({ type: "invalid_request_error", code: "request_too_large" });
    expect(answer.body.error.message).toContain("4194304 bytes");
  });

  it("bytes that are no HTTP get an answer in the same shape", async () => {
    const received = await rawExchange(api, "HELLO\r\n\r\n");
    expect(received).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
    expect(JSON.parse(received.split("\r\n\r\n")[1] ?? "").error).toMatchObject({
      code: "invalid_value",
      param: null,
    });
    const headers = `GET /livez HTTP/1.1\r\nHost: x\r\nX: ${"y".repeat(100_000)}\r\n\r\n`;
    expect(await rawExchange(api, headers)).toMatch(/^HTTP\/1\.1 431 /);
  });
});

describe("headers", () => {
  it("a request id comes back as it was, or new when it could not stand in a log", async () => {
    const id = (headers: Record<string, string>) =>
      post(api, "/v1/completions", completion, headers).then((answer) => answer.headers.get("x-request-id"));
    expect(await id({ "x-request-id": "my-id.1" })).toBe("my-id.1");
    for (const bad of ["a b", "x".repeat(200), "a{b}"]) {
      expect(await id({ "x-request-id": bad })).toMatch(/^req-[0-9a-f]{24}$/);
    }
    expect(await id({})).toMatch(/^req-/);
    expect((await get(api, "/nowhere")).headers.get("x-request-id")).toMatch(/^req-/);
  });

  it("the processing time is on every answer", async () => {
    for (const answer of [await post(api, "/v1/completions", completion), await get(api, "/nowhere")]) {
      expect(Number(answer.headers.get("openai-processing-ms"))).toBeGreaterThanOrEqual(0);
      expect(answer.headers.get("openai-processing-ms")).toMatch(/^\d+$/);
    }
  });

  it("a retryable error says when to come back", async () => {
    service.refusal = new RelayError("queue_full", "10000 requests wait", { retryAfterS: 2.5 });
    const answer = await post(api, "/v1/completions", completion);
    expect(answer.status).toBe(429);
    expect(answer.headers.get("retry-after")).toBe("3");
    expect(answer.headers.get("retry-after-ms")).toBe("2500");
    service.refusal = new RelayError("queue_unavailable", "Redis is away");
    const away = await post(api, "/v1/completions", { ...completion, stream: true });
    expect(away.status).toBe(503);
    expect(away.body.error).toMatchObject({ type: "unavailable_error", code: "queue_unavailable" });
    expect(away.headers.get("retry-after")).toBe("1");
  });

  it("a mistake of ours is 500 without its text", async () => {
    service.refusal = new TypeError("secret detail") as unknown as RelayError;
    const answer = await post(api, "/v1/completions", completion);
    expect(answer.status).toBe(500);
    expect(answer.body.error).toMatchObject({ type: "server_error", code: "internal" });
    expect(JSON.stringify(answer.body)).not.toContain("secret");
    expect(answer.body.error.message).toContain(answer.headers.get("x-request-id"));
  });
});

describe("probes", () => {
  it("livez answers while not ready; readyz and health say why", async () => {
    expect(await get(api, "/readyz")).toMatchObject({ status: 200, body: { status: "ok" } });
    service.notReadyError = new RelayError("model_loading", "2 of 4 stages are loaded");
    expect(await get(api, "/livez")).toMatchObject({ status: 200, body: { status: "ok" } });
    for (const path of ["/readyz", "/health"]) {
      const answer = await get(api, path);
      expect(answer.status).toBe(503);
      expect(answer.body.error).toMatchObject({ code: "model_loading", message: "2 of 4 stages are loaded" });
      expect(answer.headers.get("retry-after")).toBe("1");
    }
    expect((await get(api, "/livez", "HEAD")).status).toBe(200);
  });

  it("the cluster's view is JSON", async () => {
    const answer = await get(api, "/api/cluster");
    expect(answer.body).toEqual(JSON.parse(JSON.stringify(service.cluster())));
  });
});

describe("close", () => {
  it("lets a running answer end", async () => {
    const held = gate();
    const other = new ScriptedService();
    other.script = async function* (request) {
      await held.promise;
      yield tokensEvent(request, 0, "late");
      yield finishEvent(0, 4);
    };
    const closing = await startApi(other, { closeGraceMs: 5_000 });
    const answer = post(closing, "/v1/completions", completion);
    while (other.submitted.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    const closed = closing.close();
    held.open();
    expect((await answer).body.choices[0].text).toBe("late");
    await closed;
  });

  it("cuts what outlasts the grace time and cancels it", async () => {
    const other = new ScriptedService();
    other.script = async function* () {
      await new Promise(() => {});
    };
    const closing = await startApi(other, { closeGraceMs: 50 });
    const answer = post(closing, "/v1/completions", completion).catch(() => "cut");
    while (other.submitted.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await closing.close();
    expect(await answer).toBe("cut");
    expect(other.cancelled).toEqual([other.last.id]);
  });
});
