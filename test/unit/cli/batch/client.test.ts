import { createServer } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { type Attempt, BatchClient } from "../../../../cli/batch/client.js";
import { freePort } from "../../../../cli/redis.js";
import { complete, respond, serveCompletions } from "./support.js";

function ask(url: string, body: Record<string, unknown> = {}, signal?: AbortSignal): Promise<Attempt> {
  const client = new BatchClient(url, 2);
  onTestFinished(() => client.close());
  const request = { customId: "a", url: "/v1/completions" as const, body: JSON.stringify(body) };
  return client.send(request, signal ?? new AbortController().signal);
}

const refusal = { error: { message: "no", type: "t", param: null, code: "c" } };

describe("one attempt of a request", () => {
  it("gives status, request id and body", async () => {
    const url = await serveCompletions((body, response) => complete(response, body.user));
    expect(await ask(url, { user: "熊" })).toEqual({
      response: {
        status_code: 200,
        request_id: "req-test",
        body: { id: "cmpl-熊", usage: { prompt_tokens: 2, completion_tokens: 3 } },
      },
      error: null,
      again: false,
      retryAfterMs: null,
    });
  });

  it("says that it is of a batch", async () => {
    const url = await serveCompletions((_, response, request) =>
      respond(response, 200, { of: request.headers["x-glm-class"] }),
    );
    expect((await ask(url)).response?.body).toEqual({ of: "batch" });
  });

  it.each([
    [400, {}, false],
    [404, {}, false],
    [408, {}, true],
    [409, {}, true],
    [429, {}, true],
    [500, {}, true],
    [503, {}, true],
    [500, { "x-should-retry": "false" }, false],
    [409, { "x-should-retry": "false" }, false],
    [400, { "x-should-retry": "true" }, true],
    [307, { location: "/elsewhere" }, false],
  ])("status %i with %j: again is %s", async (status, headers, again) => {
    const url = await serveCompletions((_, response) => respond(response, status, refusal, headers));
    const attempt = await ask(url);
    expect(attempt).toMatchObject({ response: { status_code: status, body: refusal }, error: null, again });
  });

  it("reads how long the server wants it to wait", async () => {
    const url = await serveCompletions((_, response) =>
      respond(response, 429, refusal, { "retry-after": "3", "retry-after-ms": "2500" }),
    );
    expect((await ask(url)).retryAfterMs).toBe(2_500);
  });

  it("keeps the begin of an error page that is not JSON, and takes such a success for a fault that passes", async () => {
    const url = await serveCompletions(({ user }, response) => {
      response.statusCode = user as number;
      response.end(`<html>${"x".repeat(5_000)}`);
    });
    const page = await ask(url, { user: 404 });
    expect(page.response?.body).toBe(`<html>${"x".repeat(994)}`);
    expect(page).toMatchObject({ again: false });
    expect(await ask(url, { user: 200 })).toMatchObject({
      response: null,
      error: { code: "invalid_response" },
      again: true,
    });
  });

  it("says that nobody listens, that the connection broke before or in a response, and tries that again", async () => {
    const expected = { response: null, error: { code: "connection_failed" }, again: true };
    const nobody = await ask(`http://127.0.0.1:${await freePort()}`);
    expect(nobody).toMatchObject(expected);
    expect(nobody.error?.message).toMatch(/^http:\/\/127.0.0.1:\d+: .*ECONNREFUSED/);

    const deaf = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => deaf.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void deaf.close());
    const { port } = deaf.address() as { port: number };
    expect(await ask(`http://127.0.0.1:${port}`)).toMatchObject(expected);

    const torn = await serveCompletions((_, response) => {
      response.writeHead(200, { "content-length": 100 });
      response.write('{"id":', () => response.destroy());
    });
    const attempt = await ask(torn);
    expect(attempt).toMatchObject(expected);
    expect(attempt.error?.message).toMatch(/broke in the middle of the response$/);
  });

  it("ends at once when it is cut, and the server sees the connection close", async () => {
    let closed: () => void = () => undefined;
    const seen = new Promise<void>((resolve) => {
      closed = resolve;
    });
    const cut = new AbortController();
    const url = await serveCompletions((_, response) => {
      response.once("close", closed);
      cut.abort();
    });
    expect(await ask(url, {}, cut.signal)).toMatchObject({ error: { code: "connection_failed" } });
    await seen;
  });
});
