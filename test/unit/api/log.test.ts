/** One log line per finished request: enough to follow and bill it, nothing of what was said. */
import { expect, onTestFinished, test } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { LogLines } from "../../support/log-lines.js";
import { eventually, get, post, ScriptedService, saying, startApi, tokensEvent } from "./support.js";

async function start() {
  const lines = new LogLines("info");
  const service = new ScriptedService();
  const api = await startApi(service, {}, undefined, lines.log);
  onTestFinished(() => api.close());
  const responses = async (count: number) => {
    await eventually(() => lines.of("response").length >= count, `${count} lines`);
    return lines.of("response");
  };
  return { lines, service, api, responses };
}

test("names id, route, status, duration and tokens, for JSON and for a stream", async () => {
  const { service, api, responses } = await start();
  service.script = saying("hello");
  const whole = await post(api, "/v1/completions", { prompt: [1, 2, 3] }, { "x-request-id": "mine" });
  const first = (await responses(1))[0]!;
  expect(first).toMatchObject({
    requestId: "mine",
    completionId: whole.body.id,
    method: "POST",
    route: "/v1/completions",
    status: 200,
    promptTokens: 3,
    completionTokens: 5,
  });
  expect(first["ms"]).toBeGreaterThanOrEqual(0);
  expect(first).not.toHaveProperty("code");

  const response = await fetch(`${api.address}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ messages: [{ role: "user", content: "hi" }], stream: true }),
  });
  await response.text();
  expect((await responses(2))[1]).toMatchObject({
    requestId: response.headers.get("x-request-id"),
    route: "/v1/chat/completions",
    status: 200,
    completionTokens: 5,
  });
});

test("names the error code, also of an error inside a stream whose status was 200", async () => {
  const { service, api, responses } = await start();
  await post(api, "/v1/completions", { prompt: [1], temperature: 9 });
  expect((await responses(1))[0]).toMatchObject({ status: 400, code: "invalid_value" });
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "a");
    yield { type: "error", error: new RelayError("worker_lost", "gone") };
  };
  const response = await fetch(`${api.address}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: [1], stream: true }),
  });
  await response.text();
  expect((await responses(2))[1]).toMatchObject({ status: 200, code: "worker_lost", completionTokens: 1 });
});

test("a client that left is 499 with the tokens it got", async () => {
  const { service, api, responses } = await start();
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "abc");
    await new Promise(() => undefined);
  };
  const leaving = new AbortController();
  const response = await fetch(`${api.address}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": "left" },
    body: JSON.stringify({ prompt: [1], stream: true }),
    signal: leaving.signal,
  });
  await response.body!.getReader().read();
  leaving.abort();
  expect((await responses(1))[0]).toMatchObject({
    requestId: "left",
    status: 499,
    code: "cancelled",
    completionTokens: 3,
  });
});

test("probes and scrapes are not logged at the usual level", async () => {
  const { lines, api, responses } = await start();
  for (const path of ["/livez", "/readyz", "/health", "/api/cluster"]) await get(api, path);
  await fetch(`${api.address}/metrics`).then((page) => page.text());
  await get(api, "/v1/models");
  expect((await responses(1)).map(({ route }) => route)).toEqual(["/v1/models"]);
  expect(lines.all).toHaveLength(1);
});

test("neither prompt nor answer nor key stands in the log, whatever goes wrong", async () => {
  const { lines, service, api, responses } = await start();
  const headers = { authorization: "Bearer sk-topsecret" };
  service.script = saying("sesame");
  const body = { messages: [{ role: "user", content: "openup" }], unknown_openup: "openup" };
  await post(api, "/v1/chat/completions", body, headers);
  await post(api, "/v1/chat/completions", '{"messages": openup', headers);
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "sesame");
    throw Object.assign(new Error("our own mistake"), { request });
  };
  await post(api, "/v1/completions", { prompt: "openup" }, headers);
  await responses(3);
  expect(lines.all.some(({ msg }) => msg === "request failed")).toBe(true);
  for (const said of ["openup", "sesame", "topsecret"]) expect(lines.text).not.toContain(said);
});
