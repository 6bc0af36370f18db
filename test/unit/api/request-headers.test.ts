/** Whose a request is, how urgent, and until when its answer is wanted: over HTTP and gRPC. */
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { maxRequestTimeoutMs, maxTenantLength } from "../../../coordinator/api/limits.js";
import type { Api } from "../../../coordinator/api/server.js";
import { GrpcClient, trailers } from "../../support/grpc-client.js";
import {
  get,
  post,
  rawExchange,
  ScriptedService,
  saying,
  sseData,
  startApi,
  tokensEvent,
} from "./support.js";

let service: ScriptedService;
let api: Api;
let grpc: GrpcClient;
beforeAll(async () => {
  service = new ScriptedService();
  api = await startApi(service, { headDelayMs: 50 }, undefined, undefined, 0);
  grpc = new GrpcClient(api.grpcAddress!);
});
afterAll(async () => {
  grpc.close();
  await api.close();
});
beforeEach(() => {
  service.submitted.length = 0;
  service.script = saying("hello");
  service.refusal = null;
});

const completion = { prompt: [1, 2] };
const chat = { messages: [{ role: "user", content: "hi" }] };

describe("over HTTP", () => {
  it("a request without them is the default tenant's, interactive, and has no deadline", async () => {
    for (const [path, body] of [
      ["/v1/completions", completion],
      ["/v1/chat/completions", chat],
    ] as const) {
      expect((await post(api, path, body)).status).toBe(200);
      expect(service.last).toMatchObject({ tenant: "default", class: "interactive" });
      expect(service.last).not.toHaveProperty("deadlineMs");
    }
  });

  it("they stand in the request as it goes to the queue", async () => {
    const before = Date.now();
    const headers = {
      "x-glm-tenant": "Team:a/b.c_d@e+f=g-1",
      "x-glm-class": "batch",
      "x-request-timeout-ms": "60000",
    };
    for (const [path, body] of [
      ["/v1/completions", completion],
      ["/v1/chat/completions", chat],
    ] as const) {
      expect((await post(api, path, body, headers)).status).toBe(200);
      expect(service.last).toMatchObject({ tenant: "Team:a/b.c_d@e+f=g-1", class: "batch" });
      expect(service.last.deadlineMs).toBeGreaterThanOrEqual(before + 60_000 - 1);
      expect(service.last.deadlineMs).toBeLessThanOrEqual(Date.now() + 60_000 + 1);
      expect(Number.isInteger(service.last.deadlineMs)).toBe(true);
    }
  });

  it("the largest values are taken", async () => {
    const headers = {
      "x-glm-tenant": "t".repeat(maxTenantLength),
      "x-request-timeout-ms": String(maxRequestTimeoutMs),
    };
    expect((await post(api, "/v1/completions", completion, headers)).status).toBe(200);
  });

  it.each([
    ["x-glm-tenant", "", '""', "1 to 128 characters"],
    ["x-glm-tenant", "t".repeat(maxTenantLength + 1), `"${"t".repeat(60)}"...`, "1 to 128 characters"],
    ["x-glm-tenant", "a b", '"a b"', "A-Z a-z 0-9 . _ : / @ + = -"],
    ["x-glm-tenant", "é", "", "A-Z a-z 0-9 . _ : / @ + = -"],
    ["x-glm-tenant", "a,b", '"a,b"', "A-Z a-z 0-9 . _ : / @ + = -"],
    ["x-glm-class", "fast", '"fast"', "interactive or batch"],
    ["x-glm-class", "Batch", '"Batch"', "interactive or batch"],
    ["x-glm-class", "", '""', "interactive or batch"],
    ["x-request-timeout-ms", "0", '"0"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "-1", '"-1"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "1.5", '"1.5"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "1e3", '"1e3"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "soon", '"soon"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "86400001", '"86400001"', "an integer from 1 to 86400000"],
    ["x-request-timeout-ms", "9".repeat(400), '"999', "an integer from 1 to 86400000"],
  ])("%s: %j is refused by name", async (name, value, shown, expected) => {
    const answer = await post(api, "/v1/completions", completion, { [name]: value });
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({ code: "invalid_value", param: name });
    expect(answer.body.error.message).toContain(`${name}: ${shown}`);
    expect(answer.body.error.message).toContain(expected);
    expect(service.submitted).toEqual([]);
  });

  it("a header that is sent twice is refused", async () => {
    const body = JSON.stringify(completion);
    const head =
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n" +
      `Content-Length: ${body.length}\r\nx-glm-class: batch\r\nx-glm-class: batch\r\n\r\n`;
    const answer = await rawExchange(api, head + body);
    expect(answer).toMatch(/^HTTP\/1.1 400 /);
    expect(answer).toContain('x-glm-class: \\"batch, batch\\" is not valid');
  });

  it("a deadline that passes is 408 before the answer began, and no library asks again", async () => {
    service.refusal = new RelayError("deadline_exceeded", "too late");
    for (const stream of [false, true]) {
      const answer = await post(api, "/v1/completions", { ...completion, stream });
      expect(answer.status).toBe(408);
      expect(answer.body.error).toMatchObject({ type: "timeout_error", code: "deadline_exceeded" });
      expect(answer.headers.get("x-should-retry")).toBe("false");
      expect(answer.headers.get("retry-after")).toBeNull();
    }
  });

  it("one that passes in a stream is its last event, and counts as an answer that nobody wanted", async () => {
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "a");
      yield { type: "error", error: new RelayError("deadline_exceeded", "too late") };
    };
    const response = await fetch(`${api.address}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...completion, stream: true }),
    });
    expect(response.status).toBe(200);
    const events = sseData(await response.text());
    expect(events.at(0).choices[0].text).toBe("a");
    expect(events.at(-2).error).toMatchObject({ type: "timeout_error", code: "deadline_exceeded" });
    expect(events.at(-1)).toBe("[DONE]");
    const whole = await post(api, "/v1/completions", completion);
    expect([whole.status, whole.body.error.code]).toEqual([408, "deadline_exceeded"]);
    const page = await api.metrics();
    expect(page).toContain(
      'glm_relay_requests_total{model="glm-test",endpoint="completions",finish_reason="abort"} 2',
    );
  });

  it("openapi.json describes them for the paths that read them", async () => {
    const { body } = await get(api, "/openapi.json");
    for (const path of ["/v1/completions", "/v1/chat/completions"]) {
      const { parameters } = body.paths[path].post;
      expect(parameters.map((one: { name: string }) => one.name)).toEqual([
        "x-glm-tenant",
        "x-glm-class",
        "x-request-timeout-ms",
      ]);
      for (const one of parameters) expect(one).toMatchObject({ in: "header", required: false });
      expect(parameters[1].schema).toEqual({
        type: "string",
        enum: ["interactive", "batch"],
        default: "interactive",
      });
    }
    expect(body.paths["/tokenize"].post.parameters).toBeUndefined();
  });
});

describe("over gRPC", () => {
  it("tenant and class stand in the metadata, and the deadline is the call's own", async () => {
    const plain = await grpc.generate({ prompt: "a" });
    expect(plain.status.code).toBe(status.OK);
    expect(service.last).toMatchObject({ tenant: "default", class: "interactive" });
    expect(service.last).not.toHaveProperty("deadlineMs");
    const deadline = Date.now() + 60_000;
    await grpc.generate({ prompt: "a" }, { "x-glm-tenant": "a/b", "x-glm-class": "batch" }, { deadline });
    expect(service.last).toMatchObject({ tenant: "a/b", class: "batch" });
    // It travels as the time that is left, and takes a moment.
    expect(service.last.deadlineMs).toBeGreaterThan(deadline - 1_000);
    expect(service.last.deadlineMs).toBeLessThan(deadline + 1_000);
  });

  it("the earlier of two deadlines counts", async () => {
    const earlier = { "x-request-timeout-ms": "20000" };
    await grpc.generate({ prompt: "a" }, earlier, { deadline: Date.now() + 60_000 });
    expect(service.last.deadlineMs).toBeLessThan(Date.now() + 20_001);
    await grpc.generate({ prompt: "a" }, earlier);
    expect(service.last.deadlineMs).toBeLessThan(Date.now() + 20_001);
    await grpc.generate(
      { prompt: "a" },
      { "x-request-timeout-ms": "90000" },
      { deadline: Date.now() + 5_000 },
    );
    expect(service.last.deadlineMs).toBeLessThan(Date.now() + 6_000);
  });

  it("what is wrong is refused by name", async () => {
    for (const [name, value] of [
      ["x-glm-tenant", "a b"],
      ["x-glm-class", "fast"],
      ["x-request-timeout-ms", "0"],
    ] as const) {
      const refused = (await grpc.generate({ prompt: "a" }, { [name]: value })).status;
      expect(refused.code).toBe(status.INVALID_ARGUMENT);
      expect(refused.details).toContain(`${name}: "${value}" is not valid, expected`);
      expect(trailers(refused)).toMatchObject({ "glm-relay-code": "invalid_value", "glm-relay-param": name });
    }
    expect(service.submitted).toEqual([]);
  });
});
