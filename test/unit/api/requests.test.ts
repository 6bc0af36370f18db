import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { requestId } from "../../../common/ids.js";
import type { Api } from "../../../coordinator/api/server.js";
import type { GenerationRequest, RequestEvent, RequestHandle } from "../../../coordinator/inference.js";
import { GrpcClient } from "../../support/grpc-client.js";
import { eventually, gate, get, type Json, post, ScriptedService, saying, startApi } from "./support.js";

let api: Api;
let service: ScriptedService;
beforeEach(async () => {
  service = new ScriptedService();
  api = await startApi(service, {}, undefined, undefined, 0);
});
afterEach(() => api.close());

const acceptedAtMs = 1_700_000_123_456;

/** Hands a request over as one that an earlier process had accepted; it crossed Redis on its way. */
function orphan(request: GenerationRequest, events: AsyncIterable<RequestEvent>): { cancelled: boolean } {
  const accepted = { term: 1, atMs: acceptedAtMs, numericsId: "", recoveries: 1, tokens: 0 };
  const fate = { cancelled: false };
  const handle: RequestHandle = {
    id: request.id,
    events,
    cancel: () => {
      fate.cancelled = true;
    },
  };
  service.orphanListener(JSON.parse(JSON.stringify({ ...request, accepted })), handle);
  return fate;
}

async function kept(id: string): Promise<Json> {
  await eventually(() => service.states.get(requestId(id))?.status === "ended", "the answer is kept");
  const answer = await get(api, `/v1/requests/${id}`);
  expect(answer.status).toBe(200);
  return answer.body;
}

const chat = { messages: [{ role: "user", content: "hi" }] };
const tools = [{ type: "function", function: { name: "look", parameters: { type: "object" } } }];

describe("an orphan's answer", () => {
  it.each([
    ["/v1/chat/completions", chat],
    ["/v1/chat/completions", { ...chat, n: 2, logprobs: true, top_logprobs: 1, return_token_ids: true }],
    ["/v1/chat/completions", { ...chat, tools, return_tokens_as_token_ids: true, logprobs: true }],
    ["/v1/completions", { prompt: "abc" }],
    ["/v1/completions", { prompt: ["a", "bc"], n: 2, echo: true, logprobs: 1, max_tokens: 4 }],
    ["/v1/completions", { prompt: [1, 2], return_token_ids: true, stream: true }],
  ])("is the body that its client would have got: %s %j", async (path, body) => {
    service.script = saying("one", "other");
    const { stream: _, ...whole } = body as { stream?: boolean };
    const direct = await post(api, path, whole);
    expect(direct.status).toBe(200);
    const request = service.last;
    orphan(request, service.script(request));
    const found = await kept(request.id);
    expect(found).toEqual({
      id: request.id,
      object: "request",
      status: "completed",
      created_at: 1_700_000_123,
      response: { ...direct.body, created: 1_700_000_123 },
    });
    expect(await api.metrics()).toContain('glm_relay_orphans_total{model="glm-test",outcome="completed"} 1');
  });

  it("is its error when it failed", async () => {
    await post(api, "/v1/completions", { prompt: "abc" });
    const request = service.last;
    orphan(
      request,
      (async function* () {
        yield { type: "started" as const };
        yield { type: "error" as const, error: new RelayError("worker_lost", "gone") };
      })(),
    );
    expect(await kept(request.id)).toEqual({
      id: request.id,
      object: "request",
      status: "failed",
      created_at: 1_700_000_123,
      error: { message: "gone", type: "unavailable_error", param: null, code: "worker_lost" },
    });
    expect(await api.metrics()).toContain('glm_relay_orphans_total{model="glm-test",outcome="failed"} 1');
  });

  it("is an internal error when its record does not say how to write it", async () => {
    await post(api, "/v1/chat/completions", chat);
    const request = { ...service.last, answer: { n: 1, asTokenIds: false, options: { reply: 5 } } };
    orphan(request, saying("x")(request));
    const { status, error } = await kept(request.id);
    expect([status, error.code]).toEqual(["failed", "internal"]);
    expect(error.message).toContain(request.logId);
  });

  it.each(["HTTP", "gRPC"])("is `cancelled` when somebody ends it over %s", async (way) => {
    await post(api, "/v1/completions", { prompt: "abc" });
    const request = service.last;
    const never = gate();
    const fate = orphan(
      request,
      (async function* () {
        await never.promise;
        yield { type: "started" as const };
      })(),
    );
    service.states.set(request.id, { status: "running", id: request.id, createdS: 5 });
    expect((await get(api, `/v1/requests/${request.id}`)).body).toEqual({
      id: request.id,
      object: "request",
      status: "running",
      created_at: 5,
    });
    if (way === "HTTP") {
      const { status, body } = await post(api, `/v1/requests/${request.id}/cancel`, "");
      expect([status, body.status, body.error.code]).toEqual([200, "failed", "cancelled"]);
    } else {
      const grpc = new GrpcClient(api.grpcAddress!);
      expect(await grpc.cancel(request.id)).toBeNull();
      grpc.close();
    }
    expect(await kept(request.id)).toMatchObject({ status: "failed", error: { code: "cancelled" } });
    expect(fate.cancelled).toBe(true);
    never.open();
  });
});

describe("a request by its id", () => {
  it("that nobody knows is not found, for reading and for cancelling", async () => {
    for (const answer of [
      await get(api, "/v1/requests/cmpl-1"),
      await post(api, "/v1/requests/cmpl-1/cancel", ""),
    ]) {
      expect([answer.status, answer.body.error.code]).toEqual([404, "not_found"]);
      expect(answer.body.error.message).toContain('id: "cmpl-1" is not known');
    }
  });

  it("that has ended cannot be cancelled", async () => {
    service.keepAnswer(requestId("cmpl-1"), "{}");
    expect((await post(api, "/v1/requests/cmpl-1/cancel", "")).status).toBe(404);
  });

  it("with a client can be cancelled, and its client is told", async () => {
    const never = gate();
    service.script = async function* () {
      await never.promise;
      yield { type: "started" };
    };
    const answer = post(api, "/v1/completions", { prompt: "abc" });
    await eventually(() => service.submitted.length === 1, "the request is submitted");
    service.states.set(service.last.id, { status: "queued", id: service.last.id, createdS: 5 });
    expect((await post(api, `/v1/requests/${service.last.id}/cancel`, "")).status).toBe(200);
    expect((await answer).body.error.code).toBe("cancelled");
    never.open();
  });
});
