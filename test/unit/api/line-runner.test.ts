import { Registry } from "prom-client";
import { beforeEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { ApiLineRunner } from "../../../coordinator/api/line-runner.js";
import { createMetrics } from "../../../coordinator/api/metrics.js";
import type { BatchEndpoint } from "../../../coordinator/batches/batch.js";
import { LogLines } from "../../support/log-lines.js";
import { eventually, gate, post, ScriptedService, saying, startApi, tokensEvent } from "./support.js";

let service: ScriptedService;
let runner: ApiLineRunner;
let registry: Registry;
beforeEach(() => {
  service = new ScriptedService();
  registry = new Registry();
  runner = new ApiLineRunner(service, createMetrics(service, registry, null), new LogLines().log);
});

const line = (customId: string, batchId = "batch_a") => ({
  requestId: `req_${customId}`,
  batchId,
  customId,
  tenant: "t",
});
const run = (
  endpoint: BatchEndpoint,
  body: unknown,
  customId = "a",
  signal = new AbortController().signal,
) => {
  const bytes = Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return runner.run(endpoint, new Uint8Array(bytes), line(customId), signal);
};
const chat = { messages: [{ role: "user", content: "hi" }] };
const tools = [{ type: "function", function: { name: "look", parameters: { type: "object" } } }];

describe("a line's answer", () => {
  it.each([
    ["/v1/chat/completions", chat],
    ["/v1/chat/completions", { ...chat, n: 2, logprobs: true, top_logprobs: 1, return_token_ids: true }],
    ["/v1/chat/completions", { ...chat, tools }],
    ["/v1/completions", { prompt: "abc", seed: 5 }],
    ["/v1/completions", { prompt: ["a", "bc"], n: 2, echo: true, logprobs: 1, max_tokens: 4 }],
    ["/v1/chat/completions", { ...chat, max_tokens: 0 }],
    ["/v1/chat/completions", { ...chat, n: 1_000_000 }],
    ["/v1/completions", { prompt: "x".repeat(5_000) }],
    ["/v1/completions", {}],
  ] as [BatchEndpoint, object][])("is the body of its endpoint: %s %#", async (path, body) => {
    service.script = saying("one", "other");
    const api = await startApi(service);
    try {
      const direct = await post(api, path, body);
      const answer = await run(path, body);
      expect(answer.status).toBe(direct.status);
      const own = JSON.parse(answer.body);
      expect({ ...own, id: "", created: 0 }).toEqual({ ...direct.body, id: "", created: 0 });
      const { prompt_tokens = 0, completion_tokens = 0, prompt_tokens_details } = own.usage ?? {};
      expect(answer).toMatchObject({
        requestId: "req_a",
        usage: {
          promptTokens: prompt_tokens,
          completionTokens: completion_tokens,
          cachedTokens: prompt_tokens_details?.cached_tokens ?? 0,
          reasoningTokens: 0,
        },
      });
    } finally {
      await api.close();
    }
  });

  it("is one of class batch and of its tenant, under its name, and counted", async () => {
    await run("/v1/completions", { prompt: "abc" });
    expect(service.submitted[0]).toMatchObject({
      class: "batch",
      tenant: "t",
      logId: "req_a",
      endpoint: "completions",
    });
    expect(await registry.metrics()).toMatch(/glm_relay_requests_total\{.*endpoint="completions".*\} 1/);
  });

  it("is drawn with the same seed whenever it is run, with another for another line or batch", async () => {
    const seeds = async (customId: string, batchId: string, body: object) => {
      await runner.run(
        "/v1/completions",
        new Uint8Array(Buffer.from(JSON.stringify(body))),
        line(customId, batchId),
        new AbortController().signal,
      );
      return service.submitted.at(-1)!.choices.map(({ seed }) => seed);
    };
    const body = { prompt: "abc", n: 3 };
    const first = await seeds("a", "batch_a", body);
    expect(new Set(first).size).toBe(3);
    expect(await seeds("a", "batch_a", body)).toEqual(first);
    expect(await seeds("b", "batch_a", body)).not.toEqual(first);
    expect(await seeds("a", "batch_b", body)).not.toEqual(first);
    expect((await seeds("a", "batch_a", { ...body, seed: 7 }))[0]).toBe("7");
  });

  it("of a long text comes in turns, and is refused when it is too long to be kept", async () => {
    service.script = async function* (request) {
      for (let i = 0; i < 300; i++)
        yield { ...tokensEvent(request, 0, "a"), text: "x".repeat(60_000) } as never;
      yield { type: "finish", choice: 0, text: "", reason: "stop", stopReason: null, completionTokens: 300 };
    };
    const answer = await run("/v1/completions", { prompt: "abc", max_tokens: 300 });
    expect(answer.status).toBe(501);
    expect(JSON.parse(answer.body).error.code).toBe("not_supported");
  });

  it("leaves the body as it is, so that it can be run again", async () => {
    const bytes = new Uint8Array(Buffer.from(JSON.stringify({ prompt: "abc" })));
    const before = Buffer.from(bytes);
    for (let i = 0; i < 2; i++)
      expect(
        (await runner.run("/v1/completions", bytes, line("a"), new AbortController().signal)).status,
      ).toBe(200);
    expect(Buffer.from(bytes)).toEqual(before);
  });
});

describe("a line without an answer", () => {
  it.each(["draining", "worker_lost", "queue_full", "queue_unavailable"] as const)(
    "may be run again after %s",
    async (code) => {
      service.refusal = new RelayError(code, "not now");
      await expect(run("/v1/completions", { prompt: "abc" })).rejects.toMatchObject({ code });
      service.refusal = null;
      service.script = async function* () {
        yield { type: "error", error: new RelayError(code, "gone") };
      };
      await expect(run("/v1/completions", { prompt: "abc" })).rejects.toMatchObject({ code });
    },
  );

  it("has an error that is final as its answer", async () => {
    service.script = async function* () {
      yield { type: "error", error: new RelayError("request_poisoned", "three deaths") };
    };
    const answer = await run("/v1/completions", { prompt: "abc" });
    expect(answer.status).toBe(500);
    expect(JSON.parse(answer.body).error).toMatchObject({
      code: "request_poisoned",
      message: "three deaths",
    });
    expect((await run("/v1/completions", "{")).status).toBe(400);
  });

  it("waits while the model is not served", async () => {
    service.refusal = new RelayError("model_loading", "not yet");
    let answered = 0;
    const runs = ["a", "b"].map((id) => run("/v1/completions", { prompt: "abc" }, id).then(() => answered++));
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(answered).toBe(0);
    service.refusal = null;
    for (const listener of service.readinessListeners) listener();
    await Promise.all(runs);
    expect(answered).toBe(2);
  });

  it("ends with the signal's reason, waiting or running, and frees what it held", async () => {
    const over = new AbortController();
    const hold = gate();
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "a");
      await hold.promise;
    };
    const reason = new RelayError("cancelled", "the batch was cancelled");
    const runs = ["a", "b", "c"].map((id) => run("/v1/completions", { prompt: "abc" }, id, over.signal));
    await eventually(() => service.submitted.length === 3, "all run");
    service.refusal = new RelayError("model_loading", "not yet");
    runs.push(run("/v1/completions", { prompt: "abc" }, "d", over.signal));
    await new Promise((resolve) => setTimeout(resolve, 50));
    over.abort(reason);
    for (const each of runs) await expect(each).rejects.toBe(reason);
    expect(service.cancelled).toHaveLength(3);
    await expect(run("/v1/completions", { prompt: "abc" }, "e", over.signal)).rejects.toBe(reason);
    hold.open();
  });

  it("with more choices than there is room for goes alone", async () => {
    let open = 0;
    let most = 0;
    service.script = async function* (request) {
      open += request.choices.length;
      most = Math.max(most, open);
      await new Promise((resolve) => setTimeout(resolve, 5));
      open -= request.choices.length;
      yield* saying("a")(request);
    };
    const runs = Array.from({ length: 20 }, (_, i) =>
      run("/v1/completions", { prompt: "abc", n: 128 }, `${i}`),
    );
    for (const { status } of await Promise.all(runs)) expect(status).toBe(200);
    expect(most).toBe(1_024);
  });
});
