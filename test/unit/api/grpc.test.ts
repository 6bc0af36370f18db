/** The public gRPC service in front of a scripted one, with a plain grpc-js client. */
import { type StatusObject, status } from "@grpc/grpc-js";
import { Registry } from "prom-client";
import { expect, onTestFinished, test } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { maxBodyBytes } from "../../../common/limits.js";
import type { GenerateResponse__Output } from "../../../proto/generated/glm/relay/v1/GenerateResponse.js";
import { answerOf, GrpcClient, trailers } from "../../support/grpc-client.js";
import { LogLines } from "../../support/log-lines.js";
import {
  contextLength,
  eventually,
  finishEvent,
  post,
  ScriptedService,
  saying,
  startApi,
  tokensEvent,
} from "./support.js";

async function start(timing = {}, service = new ScriptedService()) {
  const lines = new LogLines("info");
  const api = await startApi(service, timing, new Registry(), lines.log, 0);
  const client = new GrpcClient(api.grpcAddress!);
  onTestFinished(async () => {
    client.close();
    await api.close();
  });
  const responses = async (count = 1) => {
    await eventually(() => lines.of("response").length >= count, `${count} lines`);
    return lines.of("response");
  };
  return { service, api, client, lines, responses };
}

const untilAsked = async function* () {
  await new Promise(() => undefined);
} as () => AsyncGenerator<never>;

test("a prompt is answered in order: accepted, deltas, finished", async () => {
  const { service, client } = await start();
  const { messages, tokens, text, finished, status: ended } = await client.generate({ prompt: "hi" });
  expect(ended.code).toBe(status.OK);
  expect(messages.map(({ event }) => event)).toEqual([
    "accepted",
    ...Array.from({ length: 5 }, () => "delta"),
    "finished",
  ]);
  expect(messages[0]!.accepted).toMatchObject({ id: service.last.id, model: "glm-test", prompt_tokens: 3 });
  expect(text).toBe("hello");
  expect(tokens).toEqual([...Buffer.from("hello")]);
  expect(finished).toEqual({
    choices: [{ finish_reason: "stop", blanks: [] }],
    usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 },
  });
});

test("a request becomes what the same body over HTTP becomes", async () => {
  const { service, api, client } = await start();
  const shared = {
    ...{ max_tokens: 7, temperature: 0.7, top_p: 0.5, top_k: 9, min_p: 0.1, n: 2, min_tokens: 2 },
    ...{ stop: ["x", "y"], stop_token_ids: [3], ignore_eos: true, include_stop_str_in_output: true },
    skip_special_tokens: false,
    // Beyond 2^53: as text, exactly.
    seed: "9007199254740993",
  };
  const both = async (request: object, path: string, body: object) => {
    const overGrpc = await client.generate(request);
    expect(overGrpc.status).toMatchObject({ code: status.OK });
    const { id: _, logId: __, ...first } = service.last;
    expect((await post(api, path, body)).status).toBe(200);
    const { id: ___, logId: ____, ...second } = service.last;
    expect(first).toEqual(second);
  };
  const prompt = { ...shared, prompt: "héllo 你", add_special_tokens: false };
  await both({ ...prompt, logprobs: 3, echo: true }, "/v1/completions", {
    ...prompt,
    logprobs: 3,
    echo: true,
  });
  await both({ prompt_token_ids: [1, 2, 3], seed: 5 }, "/v1/completions", { prompt: [1, 2, 3], seed: 5 });
  const called = { id: "call_1", function: { name: "add", arguments: '{"a":1}' } };
  const described = { name: "add", description: "adds" };
  const messages = [
    { role: "system", content: "be brief" },
    { role: "user", content: "1 + 1?" },
  ];
  const calls = [
    { role: "assistant", tool_calls: [called], reasoning_content: "hm" },
    { role: "tool", content: "2", tool_call_id: "call_1" },
  ];
  await both(
    {
      ...shared,
      messages: [...messages, ...calls],
      tools: [{ function: { ...described, parameters: '{"type":"object"}' } }],
      logprobs: 2,
    },
    "/v1/chat/completions",
    {
      ...shared,
      messages: [...messages, { ...calls[0], tool_calls: [{ ...called, type: "function" }] }, calls[1]],
      tools: [{ type: "function", function: { ...described, parameters: { type: "object" } } }],
      ...{ logprobs: true, top_logprobs: 2 },
    },
  );
  const seen = [service.prompt.chatMessages, service.prompt.chatOptions];
  expect(seen[0]).toMatchObject([
    {},
    {},
    { reasoning: "hm", toolCalls: [{ name: "add" }] },
    { content: "2" },
  ]);
});

test("a large request is read like a small one", async () => {
  const service = new ScriptedService();
  const { client } = await start({}, service);
  const { status: ended } = await client.generate({ prompt: "x".repeat(100_000) });
  expect(ended.code).toBe(status.INVALID_ARGUMENT);
  expect(trailers(ended)).toMatchObject({
    "glm-relay-code": "context_length_exceeded",
    "glm-relay-n-prompt-tokens": "100001",
    "glm-relay-n-ctx": String(contextLength),
  });
});

test.each([
  [{}, "prompt", "prompt: missing, expected one of prompt, prompt_token_ids and messages"],
  [{ prompt: "a", prompt_token_ids: [1] }, "prompt_token_ids", /given beside prompt/],
  [
    { prompt: "a", temperature: 3 },
    "temperature",
    "temperature: 3 is out of range, expected a number from 0 to 2",
  ],
  [{ prompt: "a", temperature: Number.NaN }, "temperature", /not a finite number/],
  [{ prompt_token_ids: [1, 999] }, "prompt", /prompt\[1\]: 999 is not a token id/],
  [{ prompt: "a", max_tokens: -1 }, "max_tokens", /-1 is out of range/],
  [{ messages: [{ role: "king" }] }, "messages[0].role", /"king" is not a role/],
  [{ messages: [{ role: "user", content: "a" }], logprobs: 21 }, "logprobs", /21 is out of range/],
  [{ messages: [{ role: "user", content: "a" }], echo: true }, "echo", /not supported/],
  [{ prompt: "a", tool_choice: "auto" }, "tool_choice", /given without messages/],
  [
    { messages: [{ role: "user", content: "a" }], tools: [{ function: { name: "f", parameters: "{" } }] },
    "tools[0].function.parameters",
    /is not JSON/,
  ],
] as [object, string, string | RegExp][])("%j is refused by its field", async (request, param, message) => {
  const { client, service } = await start();
  const { status: ended } = await client.generate(request);
  expect(ended.code).toBe(status.INVALID_ARGUMENT);
  expect(trailers(ended)["glm-relay-param"]).toBe(param);
  expect(ended.details).toMatch(message);
  expect(service.submitted).toEqual([]);
});

test("bytes that are no message, and text that is no UTF-8, are refused and not guessed", async () => {
  const { client, service, lines } = await start();
  const send = (bytes: number[]) =>
    answerOf(
      client.inference.makeServerStreamRequest(
        "/glm.relay.v1.Inference/Generate",
        () => Buffer.from(bytes),
        () => ({}) as GenerateResponse__Output,
        {},
      ),
    );
  for (const bytes of [
    [0x50, 0xff],
    [0x12, 1, 0xff],
  ]) {
    const { status: ended } = await send(bytes);
    expect(ended.code).toBe(status.INVALID_ARGUMENT);
    expect(trailers(ended)["glm-relay-code"]).toBe("invalid_value");
  }
  expect(service.submitted).toEqual([]);
  // U+FFFD itself is a character like any other.
  expect((await client.generate({ prompt: "a\uFFFDb" })).status.code).toBe(status.OK);
  expect(lines.of("request failed")).toEqual([]);
});

test("a message beyond the limit of a body is refused with our code", async () => {
  const { client } = await start();
  const { status: ended } = await client.generate({ prompt: "x".repeat(maxBodyBytes) });
  expect(ended.code).toBe(status.RESOURCE_EXHAUSTED);
  expect(trailers(ended)["glm-relay-code"]).toBe("request_too_large");
});

test("logprobs come with the tokens, by id, text and bytes", async () => {
  const { client } = await start();
  const { deltas } = await client.generate({ messages: [{ role: "user", content: "a" }], logprobs: 2 });
  expect(deltas[0]).toMatchObject({ text: "h", token_ids: [104] });
  expect(deltas[0]!.logprobs).toMatchObject([
    {
      ...{ token_id: 104, token: "h", bytes: Buffer.from("h"), logprob: -0.5 },
      top_logprobs: [
        { token_id: 104, logprob: -0.5 },
        { token_id: 105, logprob: -1.5 },
      ],
    },
  ]);
});

test("an echoed prompt is scored before the first token", async () => {
  const { client } = await start();
  const { messages } = await client.generate({ prompt: "abc", echo: true, logprobs: 1 });
  const prompts = messages.flatMap(({ prompt }) => (prompt ? [prompt] : []));
  expect(prompts.map(({ text }) => text).join("")).toBe("abc");
  const scores = prompts.flatMap(({ logprobs }) => logprobs);
  expect(scores.map(({ token_id }) => token_id)).toEqual([256, 97, 98, 99]);
  expect(scores.map(({ logprob }) => logprob)).toEqual([undefined, -0.5, -0.5, -0.5]);
  expect(messages.findIndex(({ delta }) => delta)).toBe(1 + prompts.length);
});

test("choices, stop reasons and blanks stand in the last message", async () => {
  const { client, service } = await start();
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "ab");
    yield { type: "blank", choice: 0, blank: 0, mask: 77, text: "c", reason: "stop" };
    yield tokensEvent(request, 1, "x");
    yield finishEvent(1, 1, { reason: "length", text: "y" });
    yield finishEvent(0, 2, { stopReason: 9 });
  };
  const { deltas, text, finished } = await client.generate({ prompt: "a", n: 2, seed: 1 });
  expect(text).toBe("abc");
  expect(deltas.filter(({ choice }) => choice === 1).map((delta) => delta.text)).toEqual(["x", "y"]);
  const blank = { index: 0, mask: "M", finish_reason: "stop" };
  expect(deltas.find((delta) => delta.blank)!.blank).toMatchObject(blank);
  expect(finished!.choices).toEqual([
    {
      finish_reason: "stop",
      stop_reason: "stop_token_id",
      stop_token_id: 9,
      blanks: [{ ...blank, text: "abc" }],
    },
    { finish_reason: "length", blanks: [] },
  ]);
  service.script = async function* () {
    yield finishEvent(0, 0, { stopReason: "END" });
  };
  const stopped = await client.generate({ prompt: "a" });
  expect(stopped.finished!.choices[0]).toMatchObject({ stop_string: "END", stop_reason: "stop_string" });
});

test("errors carry our code, and when a new try is worth it", async () => {
  const { client, service } = await start();
  service.refusal = new RelayError("queue_full", "10 sequences wait", { retryAfterS: 5 });
  const full = (await client.generate({ prompt: "a" })).status;
  expect(full).toMatchObject({ code: status.RESOURCE_EXHAUSTED, details: "10 sequences wait" });
  expect(trailers(full)).toMatchObject({
    ...{ "glm-relay-code": "queue_full", "retry-after": "5" },
    ...{ "retry-after-ms": "5000", "grpc-retry-pushback-ms": "5000" },
  });
  service.refusal = new RelayError("draining", "the server is shutting down");
  expect((await client.generate({ prompt: "a" })).status.code).toBe(status.UNAVAILABLE);
  service.refusal = null;
  const other = (await client.generate({ prompt: "a", model: `a${"😀".repeat(60)}` })).status;
  // The name is cut in the middle of a character, which a header cannot hold.
  expect(other.code).toBe(status.NOT_FOUND);
  expect(other.details).toMatch(/😀\uFFFD\.\.\." is not served here/);
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "a");
    yield { type: "error", error: new RelayError("worker_lost", "gone") };
  };
  const lost = await client.generate({ prompt: "a" });
  expect(lost.text).toBe("a");
  expect(trailers(lost.status)["glm-relay-code"]).toBe("worker_lost");
  service.script = async function* () {
    yield* [];
    throw new Error("secret");
  };
  const ours = (await client.generate({ prompt: "a" })).status;
  expect(ours.code).toBe(status.INTERNAL);
  expect(ours.details).not.toContain("secret");
});

test("a client that leaves, by cancelling or by its deadline, cancels its request", async () => {
  const { client, service, responses } = await start();
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "a");
    yield* untilAsked();
  };
  const call = client.inference.Generate({ prompt: "a" });
  call.once("data", () => call.cancel());
  const left = await answerOf(call);
  expect(left.status.code).toBe(status.CANCELLED);
  await eventually(() => service.cancelled.length === 1, "the request is cancelled");
  expect((await responses(1))[0]).toMatchObject({ grpcStatus: "CANCELLED", code: "cancelled" });
  const late = await client.generate({ prompt: "a" }, {}, { deadline: Date.now() + 100 });
  expect(late.status.code).toBe(status.DEADLINE_EXCEEDED);
  await eventually(() => service.cancelled.length === 2, "the request is cancelled");
  expect((await responses(2))[1]).toMatchObject({
    ...{ grpcStatus: "DEADLINE_EXCEEDED", code: "deadline_exceeded" },
  });
});

test("Cancel ends a request by its id, over HTTP too, and says when there is none", async () => {
  const { api, client, service } = await start();
  service.script = untilAsked;
  const cancelled = client.generate({ prompt: "a" });
  await eventually(() => service.submitted.length === 1, "the request runs");
  expect(await client.cancel(service.last.id)).toBeNull();
  const { status: ended } = await cancelled;
  expect(ended).toMatchObject({ code: status.CANCELLED, details: "the request was cancelled" });
  expect(trailers(ended)["glm-relay-code"]).toBe("cancelled");
  const overHttp = post(api, "/v1/completions", { prompt: "a" });
  await eventually(() => service.submitted.length === 2, "the request runs");
  expect(await client.cancel(service.last.id)).toBeNull();
  expect(await overHttp).toMatchObject({ status: 499, body: { error: { code: "cancelled" } } });
  expect(service.cancelled).toEqual(service.submitted.map(({ id }) => id));
  expect(await client.cancel(service.last.id)).toMatchObject({ code: status.NOT_FOUND });
});

test("a call whose request does not arrive is ended", async () => {
  const { client } = await start({ arrivalMs: 100 });
  const path = "/glm.relay.v1.Inference/Generate";
  const call = client.inference.makeBidiStreamRequest(
    path,
    (bytes: Buffer) => bytes,
    () => ({}),
  );
  call.on("error", () => undefined);
  const ended = await new Promise<StatusObject>((resolve) => call.on("status", resolve));
  expect(ended).toMatchObject({
    code: status.DEADLINE_EXCEEDED,
    details: "the request took longer than 0.1 s to arrive",
  });
});

test("a client that reads nothing holds its request back, and is given up in the end", async () => {
  const { client, service, responses } = await start({ stalledClientMs: 300 });
  let made = 0;
  service.script = async function* (request) {
    for (; made < 5_000; made++) yield tokensEvent(request, 0, "x".repeat(1_000));
    yield finishEvent(0, made);
  };
  const call = client.inference.Generate({ prompt: "a" });
  call.on("error", () => undefined);
  // Before its first message a grpc-js client takes whatever comes.
  call.once("data", () => call.pause());
  await eventually(() => service.cancelled.length === 1, "the request is cancelled");
  expect(made).toBeLessThan(1_000);
  expect((await responses(1))[0]).toMatchObject({ code: "cancelled" });
  call.cancel();
});

test("calls are counted and logged with the client's id, and never with what was said", async () => {
  const { api, client, service, lines, responses } = await start();
  service.script = saying("sesame");
  const first = await client.generate({ prompt: "openup" }, { "x-request-id": "mine" });
  expect(first.metadata.get("x-request-id")).toEqual(["mine"]);
  await client.generate({ prompt: "openup", temperature: 9 });
  await client.listModels();
  const [answered, refused] = await responses(3);
  expect(answered).toMatchObject({
    ...{ requestId: "mine", route: "/glm.relay.v1.Inference/Generate", grpcStatus: "OK" },
    ...{ completionId: service.last.id, promptTokens: 7, completionTokens: 6 },
  });
  expect(refused).toMatchObject({ grpcStatus: "INVALID_ARGUMENT", code: "invalid_value" });
  expect(refused!["requestId"]).toMatch(/^req-/);
  expect(service.last.logId).toBe("mine");
  for (const said of ["openup", "sesame"]) expect(lines.text).not.toContain(said);
  const page = await api.metrics();
  expect(page).toContain('glm_relay_grpc_requests_total{method="Generate",status="OK"} 1');
  expect(page).toContain('glm_relay_grpc_requests_total{method="ListModels",status="OK"} 1');
});

test("lists the model", async () => {
  const { client } = await start();
  expect((await client.listModels()).models).toEqual([
    {
      ...{ id: "glm-test", max_model_len: contextLength, vocab_size: 260 },
      ...{ parameter_count: "1000", weight_bytes: "2000" },
    },
  ]);
});

test("health follows readiness, and unknown services are unknown", async () => {
  const service = new ScriptedService();
  service.notReadyError = new RelayError("model_loading", "loading");
  const { client } = await start({}, service);
  const told: string[] = [];
  client.watchHealth("glm.relay.v1.Inference", (now) => told.push(now));
  await eventually(() => told.length === 1, "the first status");
  const change = async (error: RelayError | null, count: number) => {
    service.notReadyError = error;
    for (const listener of service.readinessListeners) listener();
    await eventually(() => told.length === count, `status ${count}`);
  };
  await change(null, 2);
  expect(await client.health()).toBe("SERVING");
  await change(new RelayError("draining", "over"), 3);
  expect(await client.health()).toBe("NOT_SERVING");
  expect(told).toEqual(["NOT_SERVING", "SERVING", "NOT_SERVING"]);
  await expect(client.health("nope")).rejects.toMatchObject({ code: status.NOT_FOUND });
});

test("reflection lists the services", async () => {
  const { client } = await start();
  expect(await client.services()).toEqual(
    expect.arrayContaining(["glm.relay.v1.Inference", "grpc.health.v1.Health"]),
  );
});

test("a busy port is told by its address, and the HTTP server does not stay behind", async () => {
  const { api } = await start();
  const port = Number(api.grpcAddress!.split(":")[1]);
  await expect(
    startApi(new ScriptedService(), {}, new Registry(), new LogLines("info").log, port),
  ).rejects.toMatchObject({ code: "invalid_configuration", message: expect.stringContaining(`:${port}`) });
});
