import { request as httpRequest, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { Api } from "../../../coordinator/api/server.js";
import {
  eventually,
  finishEvent,
  gate,
  get,
  post,
  ScriptedService,
  saying,
  sseData,
  startApi,
  tokensEvent,
} from "./support.js";

const service = new ScriptedService();
let api: Api;
beforeAll(async () => {
  api = await startApi(service, { headDelayMs: 60, pingMs: 40, stalledClientMs: 300 });
});
afterAll(() => api.close());
beforeEach(() => {
  service.script = saying("hello");
});
afterEach(() => {
  service.submitted.length = 0;
  service.cancelled.length = 0;
});

const path = "/v1/chat/completions";
const chat = { messages: [{ role: "user", content: "hi" }], stream: true };

/** A request of which the test holds the socket; resolves with the head of the response. */
function open(body: object, to = path): { response: Promise<IncomingMessage>; leave: () => void } {
  const url = new URL(api.address + to);
  const request = httpRequest(url, { method: "POST", headers: { "content-type": "application/json" } });
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    request.on("response", resolve);
    request.on("error", reject);
  });
  // A request that is left is not waited for.
  response.catch(() => undefined);
  request.end(JSON.stringify(body));
  return { response, leave: () => request.destroy() };
}

async function readAll(response: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of response.setEncoding("utf8")) text += chunk;
  return text;
}

describe("the head", () => {
  it("says event stream, not to be cached or buffered", async () => {
    const response = await open(chat).response;
    expect(response.statusCode).toBe(200);
    expect(response.headers).toMatchObject({
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
      "x-request-id": expect.stringMatching(/^req-/),
      "openai-processing-ms": expect.stringMatching(/^\d+$/),
    });
    expect(response.headers["content-encoding"]).toBeUndefined();
    expect((await readAll(response)).endsWith("data: [DONE]\n\n")).toBe(true);
  });

  it("goes out after a while even when no event has come", async () => {
    const held = gate();
    service.script = async function* (request) {
      await held.promise;
      yield* saying("late")(request);
    };
    const response = await open(chat).response;
    expect(response.statusCode).toBe(200);
    held.open();
    expect(sseData(await readAll(response)).at(-1)).toBe("[DONE]");
  });

  it("waits for the first event, so an error before it is a status", async () => {
    // biome-ignore lint/correctness/useYield: this script fails before its first event.
    service.script = async function* () {
      throw new RelayError("worker_lost", "stage 1 is gone", { retryAfterS: 4 });
    };
    const thrown = await post(api, path, chat);
    expect(thrown.status).toBe(503);
    service.script = async function* () {
      yield { type: "error", error: new RelayError("worker_lost", "stage 1 is gone", { retryAfterS: 4 }) };
    };
    for (const body of [chat, { ...chat, stream: false }]) {
      const answer = await post(api, path, body);
      expect(answer.status).toBe(503);
      expect(answer.body.error).toMatchObject({ code: "worker_lost", type: "unavailable_error" });
      expect(answer.headers.get("retry-after")).toBe("4");
    }
    // The service itself has ended these requests.
    expect(service.cancelled).toHaveLength(1);
  });
});

describe("inside the stream", () => {
  it("an error is data, then [DONE], and the connection stays usable", async () => {
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "par");
      yield { type: "error", error: new RelayError("numeric_error", "a value is not finite") };
    };
    const events = sseData(await readAll(await open(chat).response));
    expect(events.map((event) => event.choices?.[0].delta.content ?? event)).toEqual([
      "",
      "par",
      {
        error: { message: "a value is not finite", type: "server_error", param: null, code: "numeric_error" },
      },
      "[DONE]",
    ]);
    const whole = await post(api, path, { ...chat, stream: false });
    expect(whole.status).toBe(500);
    expect(whole.body.error.code).toBe("numeric_error");
  });

  it("an end without an answer is an error, not a short answer", async () => {
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "par");
    };
    const events = sseData(await readAll(await open(chat).response));
    expect(events.at(-2).error.code).toBe("internal");
    expect(events.at(-1)).toBe("[DONE]");
    expect((await post(api, path, { ...chat, stream: false })).status).toBe(500);
  });

  it("silence is filled with comments", async () => {
    const held = gate();
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "a");
      await held.promise;
      yield finishEvent(0, 1);
    };
    const response = await open(chat).response;
    let text = "";
    response.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (text.split(": ping\n\n").length > 3) held.open();
    });
    await new Promise((resolve) => response.on("end", resolve));
    expect(sseData(text)).toHaveLength(4);
  });

  it("text of any script arrives whole, line breaks and all", async () => {
    const text = 'a\n\nb\r\ndata: x "é" 中文 👩‍🚀 \u2028 \0';
    service.script = async function* (request) {
      yield tokensEvent(request, 0, text);
      yield finishEvent(0, 1);
    };
    const events = sseData(await readAll(await open(chat).response));
    expect(events[1].choices[0].delta.content).toBe(text);
  });
});

describe("a client that leaves", () => {
  const endless = (ready: () => void): typeof service.script =>
    async function* (request) {
      yield tokensEvent(request, 0, "a");
      ready();
      await new Promise(() => {});
    };

  it("in the middle of a stream: the request is cancelled at once", async () => {
    const reached = gate();
    service.script = endless(reached.open);
    const { response, leave } = open(chat);
    await response;
    await reached.promise;
    leave();
    await eventually(() => service.cancelled.length === 1, "cancel");
    expect(service.cancelled).toEqual([service.last.id]);
  });

  it("while it waits for a whole answer, or for the head of a stream", async () => {
    for (const body of [{ ...chat, stream: false }, chat]) {
      service.script = async function* () {
        await new Promise(() => {});
      };
      const before = service.submitted.length;
      const { leave } = open(body);
      await eventually(() => service.submitted.length === before + 1, "submit");
      leave();
      await eventually(() => service.cancelled.at(-1) === service.last.id, "cancel");
    }
  });

  it("while its request is being accepted", async () => {
    const held = gate();
    const slow = new ScriptedService();
    const submit = slow.submit.bind(slow);
    let asked = false;
    slow.submit = async (request) => {
      asked = true;
      await held.promise;
      return submit(request);
    };
    const other = await startApi(slow);
    const { port, hostname } = new URL(other.address);
    const body = JSON.stringify(chat);
    const head = `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n`;
    const socket = connect(Number(port), hostname, () =>
      socket.write(`${head}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`),
    );
    await eventually(() => asked, "submit");
    socket.destroy();
    await new Promise((resolve) => setTimeout(resolve, 50));
    held.open();
    await eventually(() => slow.cancelled.length === 1, "cancel");
    await other.close();
  });

  it("after the answer is complete: nothing is cancelled", async () => {
    await readAll(await open(chat).response);
    await post(api, path, { ...chat, stream: false });
    expect(service.cancelled).toEqual([]);
  });

  it("at every chunk: the server lives on with nothing running", async () => {
    service.script = async function* (request) {
      for (let i = 0; i < 50; i++) {
        await new Promise((resolve) => setTimeout(resolve, 1));
        yield tokensEvent(request, 0, "x");
      }
      yield finishEvent(0, 50);
    };
    for (let chunks = 0; chunks < 20; chunks++) {
      const { response, leave } = open(chat);
      let seen = 0;
      const stream = await response;
      stream.on("error", () => undefined);
      await new Promise<void>((resolve) => {
        stream.on("data", () => {
          if (seen++ === chunks) leave();
        });
        stream.on("close", resolve);
      });
    }
    await eventually(() => service.cancelled.length === service.submitted.length, "all cancelled");
    expect((await get(api, "/livez")).status).toBe(200);
  });
});

describe("a client that does not read", () => {
  it("holds back the reading of events, then is given up", async () => {
    let taken = 0;
    service.script = async function* () {
      const text = "x".repeat(10_000);
      for (; taken < 10_000; taken++) yield { type: "tokens", choice: 0, text, tokens: [120], logprobs: [] };
      yield finishEvent(0, 1);
    };
    const { response } = open(chat);
    const stream = await response;
    stream.pause();
    stream.on("error", () => undefined);
    await eventually(() => service.cancelled.length === 1, "cancel");
    // What the kernel's socket buffers hold is a few MB; 100 MB were on offer.
    expect(taken).toBeLessThan(3_000);
  });
});
