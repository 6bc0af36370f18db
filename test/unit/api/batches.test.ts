import fc from "fast-check";
import OpenAI from "openai";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { Api } from "../../../coordinator/api/server.js";
import { startBatchApi } from "./batch-support.js";
import { eventually, get, type Json, post } from "./support.js";

const wanted = {
  input_file_id: "file-0",
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
};

const clientOf = (api: Api) => new OpenAI({ baseURL: `${api.address}/v1`, apiKey: "none" });

describe("making a batch", () => {
  it("hands on what the body says, with what it leaves out", async () => {
    const { api, batches } = await startBatchApi({ hosts: ["hooks.example"] });
    expect((await post(api, "/v1/batches", wanted)).body).toMatchObject({ id: "batch_0", object: "batch" });
    await post(
      api,
      "/v1/batches",
      {
        ...wanted,
        endpoint: "/v1/completions",
        completion_window: "90m",
        metadata: { team: "data" },
        output_expires_after: { anchor: "created_at", seconds: 3_600 },
        priority: -5,
        token_budget: 1_000_000,
        webhook: { url: "https://hooks.example/a?b=c" },
        nobody_knows: 1,
      },
      { "x-glm-tenant": "team-a" },
    );
    expect(batches.created).toEqual([
      {
        tenant: "default",
        name: null,
        batch: {
          inputFileId: "file-0",
          endpoint: "/v1/chat/completions",
          completionWindow: "24h",
          windowS: 86_400,
          metadata: null,
          outputExpiresAfterS: null,
          priority: 0,
          tokenBudget: null,
          webhookUrl: null,
        },
      },
      {
        tenant: "team-a",
        name: null,
        batch: {
          inputFileId: "file-0",
          endpoint: "/v1/completions",
          completionWindow: "90m",
          windowS: 5_400,
          metadata: { team: "data" },
          outputExpiresAfterS: 3_600,
          priority: -5,
          tokenBudget: 1_000_000,
          webhookUrl: "https://hooks.example/a?b=c",
        },
      },
    ]);
  });

  it("hands on the key by which a client may ask again, and what it asked for whatever the order", async () => {
    const { api, batches } = await startBatchApi();
    const make = (body: object, key: string) => post(api, "/v1/batches", body, { "idempotency-key": key });
    const metadata = { a: "1", b: "2", "3": "c" };
    await make({ ...wanted, metadata }, "run-1");
    await make({ metadata: { "3": "c", b: "2", a: "1" }, ...wanted }, "run-1");
    await make({ ...wanted, metadata: { ...metadata, b: "3" } }, "run-1");
    await make({ ...wanted, metadata: { ...metadata, fields: "x" } }, "run-1");
    const [first, same, ...others] = batches.created.map(({ name }) => name!);
    expect(first).toEqual({ key: "run-1", request: expect.stringMatching(/^[0-9a-f]{64}$/) });
    expect(same).toEqual(first);
    expect(new Set([first, ...others].map((name) => name?.request)).size).toBe(3);
    for (const key of ["", " ", "a b", "\u00e4", "x".repeat(256)]) {
      const refused = await make(wanted, key);
      expect([refused.status, refused.body.error.param]).toEqual([400, "idempotency-key"]);
    }
    expect((await make(wanted, "x".repeat(255))).status).toBe(200);
  });

  const long = "x".repeat(513);
  it.each<[object | string, string, string | null]>([
    [{ input_file_id: undefined }, "input_file_id: missing", "input_file_id"],
    [{ input_file_id: 5 }, "input_file_id: 5 is out of range, expected the id of a file", "input_file_id"],
    [{ input_file_id: "" }, 'input_file_id: "", expected the id of a file', "input_file_id"],
    [{ endpoint: undefined }, "endpoint: missing, expected /v1/chat/completions or", "endpoint"],
    [{ endpoint: "/v1/embeddings" }, 'endpoint: "/v1/embeddings", expected /v1/chat', "endpoint"],
    [{ completion_window: undefined }, "completion_window: missing", "completion_window"],
    [
      { completion_window: "24" },
      'completion_window: "24", expected a time from 1s to 30d',
      "completion_window",
    ],
    [{ completion_window: "0s" }, 'completion_window: "0s"', "completion_window"],
    [{ completion_window: "31d" }, 'completion_window: "31d"', "completion_window"],
    [{ completion_window: "999999999d" }, 'completion_window: "999999999d"', "completion_window"],
    [{ completion_window: "-1h" }, 'completion_window: "-1h"', "completion_window"],
    [{ metadata: "x" }, 'metadata: "x" is a string, expected a JSON object', "metadata"],
    [{ metadata: { a: 1 } }, 'metadata["a"]: 1 is out of range, expected a string', 'metadata["a"]'],
    [{ metadata: { a: long } }, 'metadata["a"]: a string of 513 characters, expected', 'metadata["a"]'],
    [{ metadata: { [long]: "a" } }, "metadata: a key of 513 characters, expected at most 64", "metadata"],
    [
      { metadata: Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`k${i}`, "v"])) },
      "metadata: 17 pairs, expected at most 16",
      "metadata",
    ],
    [
      { output_expires_after: { seconds: 3600 } },
      "output_expires_after.anchor: missing",
      "output_expires_after.anchor",
    ],
    [
      { output_expires_after: { anchor: "created_at", seconds: 3599 } },
      "output_expires_after.seconds: 3599 is out of range, expected an integer from 3600 to 2592000",
      "output_expires_after.seconds",
    ],
    [
      { output_expires_after: { anchor: "created_at" } },
      "output_expires_after.seconds: missing",
      "output_expires_after.seconds",
    ],
    [{ priority: 101 }, "priority: 101 is out of range, expected an integer from -100 to 100", "priority"],
    [{ priority: 0.5 }, "priority: 0.5 is not an integer", "priority"],
    [{ token_budget: 0 }, "token_budget: 0 is out of range, expected an integer from 1", "token_budget"],
    [{ webhook: "https://a" }, "webhook: ", "webhook"],
    [{ webhook: {} }, "webhook.url: missing", "webhook.url"],
    [{ webhook: { url: "https://hooks.example" } }, "webhook.url: webhooks are off here", "webhook.url"],
    ["[]", "body: a list of 0, expected a JSON object", "body"],
  ])("refuses %j", async (change, message, param) => {
    const { api, batches } = await startBatchApi();
    const body = typeof change === "string" ? change : { ...wanted, ...change };
    const answer = await post(api, "/v1/batches", body);
    expect(answer.body.error.message).toContain(message);
    expect(answer.body.error).toMatchObject({ param, code: "invalid_value", type: "invalid_request_error" });
    expect(answer.status).toBe(400);
    expect(batches.created).toEqual([]);
  });

  it("refuses bytes that are no JSON, too many of them, none at all, and unknown fields of a strict client", async () => {
    const { api } = await startBatchApi();
    expect((await post(api, "/v1/batches", "{")).body.error.code).toBe("invalid_json");
    const large = await post(api, "/v1/batches", { ...wanted, metadata: { a: "x".repeat(200_000) } });
    expect([large.status, large.body.error.code]).toEqual([413, "request_too_large"]);
    const none = await fetch(`${api.address}/v1/batches`, { method: "POST" });
    expect(none.status).toBe(400);
    const strict = await post(api, "/v1/batches", { ...wanted, model: "x" }, { "x-glm-strict": "1" });
    expect(strict.body.error).toMatchObject({ param: "model", code: "invalid_value" });
    const tenant = await post(api, "/v1/batches", wanted, { "x-glm-tenant": "ä" });
    expect(tenant.body.error.param).toBe("x-glm-tenant");
  });

  it("makes of any JSON a batch or an error that names what is wrong", async () => {
    const { api } = await startBatchApi({ hosts: ["hooks.example"] });
    const text = fc.oneof(
      fc.string(),
      fc.constantFrom("24h", "created_at", "http://hooks.example/", "\ud800"),
    );
    const value = fc.oneof(text, fc.jsonValue(), fc.integer(), fc.constantFrom(null, -0, 1e308, {}, []));
    const body = fc.record(
      {
        input_file_id: fc.oneof(text, value),
        endpoint: fc.oneof(fc.constant("/v1/completions"), value),
        completion_window: fc.oneof(fc.constant("24h"), value),
        metadata: fc.oneof(fc.dictionary(text, text), value),
        output_expires_after: fc.oneof(fc.record({ anchor: value, seconds: value }), value),
        priority: value,
        token_budget: value,
        webhook: fc.oneof(fc.record({ url: text }), value),
        ["__proto__"]: value,
      },
      { requiredKeys: [] },
    );
    await fc.assert(
      fc.asyncProperty(body, async (fields) => {
        const answer = await post(api, "/v1/batches", fields);
        if (answer.status === 200) return;
        expect(answer.status).toBe(400);
        const { param, message } = answer.body.error;
        expect(message.startsWith(`${param}: `)).toBe(true);
        expect(message.length).toBeLessThan(400);
      }),
      { numRuns: 300, seed: 20_261_125 },
    );
  });

  it("allows webhooks to the hosts that are named, and no other", async () => {
    const { api } = await startBatchApi({ hosts: ["hooks.example", "10.0.0.7:9000", "[::1]:80"] });
    const send = (url: string) => post(api, "/v1/batches", { ...wanted, webhook: { url } });
    const allowed = [
      "https://hooks.example/x",
      "http://HOOKS.example:81",
      "http://10.0.0.7:9000/",
      "http://[::1]/",
    ];
    for (const url of allowed) expect((await send(url)).status).toBe(200);
    const refused: [string, RegExp][] = [
      ["https://hooks.example.evil/", /"hooks\.example\.evil" is not one of/],
      ["https://evil/?hooks.example", /"evil" is not one of/],
      ["http://10.0.0.7:9001/", /"10\.0\.0\.7:9001" is not one of/],
      ["http://hooks.example@evil/", /user name or a password/],
      ["ftp://hooks.example/", /begins with http/],
      ["hooks.example", /not a URL/],
      [`https://hooks.example/${"x".repeat(2_048)}`, /2070 characters, expected at most 2048/],
    ];
    for (const [url, message] of refused) {
      const answer = await send(url);
      expect(answer.body.error.message).toMatch(message);
      expect(answer.body.error.param).toBe("webhook.url");
    }
  });

  it("passes on why a batch cannot be made", async () => {
    const { api, batches } = await startBatchApi();
    batches.refusal = new RelayError("queue_full", "256 batches are unfinished");
    const answer = await post(api, "/v1/batches", wanted);
    expect(answer.status).toBe(429);
    expect(answer.headers.get("retry-after")).toBe("1");
  });
});

describe("batches that are there", () => {
  it("belong to their tenant", async () => {
    const { api, batches } = await startBatchApi();
    batches.add("batch_a", "team-a");
    for (const [path, method] of [
      ["/v1/batches/batch_a", "GET"],
      ["/v1/batches/batch_a/cancel", "POST"],
      ["/v1/batches/batch_a/events", "GET"],
    ] as const) {
      const answer = await get(api, path, method);
      expect(answer.status).toBe(404);
      expect(answer.body.error.code).toBe("not_found");
      const own = await fetch(`${api.address}${path}`, { method, headers: { "x-glm-tenant": "team-a" } });
      expect(own.status).toBe(200);
      await own.body?.cancel();
    }
    expect((await get(api, "/v1/batches")).body.data).toEqual([]);
  });

  it("are listed page by page", async () => {
    const { api, batches } = await startBatchApi();
    for (let i = 0; i < 25; i++) batches.add(`batch_${i}`);
    const { body } = await get(api, "/v1/batches");
    expect(body).toMatchObject({ object: "list", first_id: "batch_24", last_id: "batch_5", has_more: true });
    const last = await get(api, "/v1/batches?after=batch_5&limit=100");
    expect(last.body.data.map(({ id }: Json) => id)).toEqual([
      "batch_4",
      "batch_3",
      "batch_2",
      "batch_1",
      "batch_0",
    ]);
    expect(last.body.has_more).toBe(false);
    expect((await get(api, "/v1/batches?after=batch_0")).body).toMatchObject({ data: [], first_id: null });
    expect((await get(api, "/v1/batches?after=nobody")).status).toBe(404);
    for (const query of ["limit=0", "limit=101", "limit=x", "limit=1&limit=2", "after=a&after=b"]) {
      const answer = await get(api, `/v1/batches?${query}`);
      expect(answer.status).toBe(400);
      expect(answer.body.error.param).toBe(query.split("=", 1)[0]);
    }
  });

  it("cannot be cancelled once they have ended, and clients are told not to try again", async () => {
    const { api, batches } = await startBatchApi();
    batches.add("batch_a", "default", { status: "completed" });
    const answer = await post(api, "/v1/batches/batch_a/cancel", "");
    expect(answer.status).toBe(409);
    expect(answer.body.error).toMatchObject({ code: "conflict", type: "conflict_error" });
    expect(answer.headers.get("x-should-retry")).toBe("false");
  });

  it("are driven by the official client", async () => {
    const { api, batches } = await startBatchApi();
    const client = clientOf(api);
    const made = await client.batches.create({ ...wanted, metadata: { a: "b" } } as OpenAI.BatchCreateParams);
    expect(await client.batches.retrieve(made.id)).toMatchObject({ id: made.id, metadata: { a: "b" } });
    expect((await client.batches.cancel(made.id)).status).toBe("cancelling");
    for (let i = 0; i < 30; i++) batches.add(`batch_more_${i}`);
    const ids: string[] = [];
    for await (const { id } of client.batches.list({ limit: 7 })) ids.push(id);
    expect(ids).toEqual(batches.batches.map(({ object }) => object.id));
    expect(ids).toHaveLength(31);
    await expect(client.batches.retrieve("batch_nobody")).rejects.toThrow(OpenAI.NotFoundError);
    batches.change(made.id, { status: "cancelled" });
    await expect(client.batches.cancel(made.id)).rejects.toThrow(OpenAI.ConflictError);
  });

  it("are not offered without a data directory", async () => {
    const { api } = await startBatchApi({ batches: null });
    for (const [path, method] of [
      ["/v1/batches", "GET"],
      ["/v1/batches/x", "GET"],
      ["/v1/batches/x/cancel", "POST"],
      ["/v1/batches/x/events", "GET"],
    ] as const) {
      const answer = await get(api, path, method);
      expect(answer.status).toBe(501);
      expect(answer.body.error).toMatchObject({
        code: "not_supported",
        message: expect.stringContaining("start it with --data"),
      });
    }
    expect((await post(api, "/v1/batches", wanted)).status).toBe(501);
  });

  it("have paths with several methods, and say which", async () => {
    const { api } = await startBatchApi();
    const answer = await get(api, "/v1/batches", "DELETE");
    expect(answer.status).toBe(405);
    expect(answer.headers.get("allow")).toBe("POST, GET, HEAD");
    expect(answer.body.error.message).toBe("/v1/batches takes POST and GET, not DELETE");
    const { body } = await get(api, "/openapi.json");
    expect(Object.keys(body.paths["/v1/batches"])).toEqual(["post", "get"]);
    const { requestBody } = body.paths["/v1/batches"].post;
    expect(requestBody.content["application/json"].schema.required).toEqual([
      "input_file_id",
      "endpoint",
      "completion_window",
    ]);
    const { get: list } = body.paths["/v1/batches"];
    expect(list.requestBody).toBeUndefined();
    expect(list.parameters.map(({ name }: Json) => name)).toEqual(["after", "limit", "x-glm-tenant"]);
  });
});

describe("the events of a batch", () => {
  /** Events as they come. */
  async function listen(api: Api, id: string) {
    const leave = new AbortController();
    const response = await fetch(`${api.address}/v1/batches/${id}/events`, { signal: leave.signal });
    const seen: { events: Json[]; ended: boolean; contentType: string | null } = {
      events: [],
      ended: false,
      contentType: response.headers.get("content-type"),
    };
    const done = (async () => {
      let text = "";
      for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
        text += chunk;
        const parts = text.split("\n\n");
        text = parts.pop()!;
        for (const part of parts) {
          if (!part.startsWith("data: ")) continue;
          const data = part.slice("data: ".length);
          seen.events.push(data === "[DONE]" ? data : JSON.parse(data));
        }
      }
      seen.ended = true;
    })();
    return { seen, done, leave };
  }

  it("begin with the batch as it is, tell each change, and end behind the last", async () => {
    const { api, batches } = await startBatchApi({ timing: { batchEventMs: 1 } });
    batches.add("batch_a");
    const { seen, done } = await listen(api, "batch_a");
    await eventually(() => seen.events.length === 1, "the first event");
    expect(seen.contentType).toBe("text/event-stream; charset=utf-8");
    expect(seen.events[0]).toMatchObject({ id: "batch_a", status: "in_progress" });
    batches.change("batch_a", { status: "finalizing" });
    await eventually(() => seen.events.length === 2, "the second event");
    batches.change("batch_a", { status: "completed", output_file_id: "file-out" });
    await done;
    expect(seen.events.slice(1)).toMatchObject([
      { status: "finalizing" },
      { status: "completed", output_file_id: "file-out" },
      "[DONE]",
    ]);
    expect(batches.watcherCount("batch_a")).toBe(0);
  });

  it("of an ended one are its last state alone", async () => {
    const { api, batches } = await startBatchApi();
    batches.add("batch_a", "default", { status: "expired" });
    const { seen, done } = await listen(api, "batch_a");
    await done;
    expect(seen.events).toMatchObject([{ status: "expired" }, "[DONE]"]);
  });

  it("come at most every batchEventMs, with the newest state", async () => {
    const { api, batches } = await startBatchApi({ timing: { batchEventMs: 100 } });
    batches.add("batch_a");
    const { seen, done } = await listen(api, "batch_a");
    const beginMs = performance.now();
    for (let completed = 1; completed <= 50; completed++) {
      batches.change("batch_a", { request_counts: { total: 50, completed, failed: 0 } });
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    batches.change("batch_a", { status: "completed" });
    await done;
    const most = 3 + (performance.now() - beginMs) / 100;
    expect(seen.events.length).toBeLessThan(most);
    expect(seen.events.at(-2)).toMatchObject({ status: "completed", request_counts: { completed: 50 } });
  });

  it("end without [DONE] when the batch is gone or the server closes, and stop when the client leaves", async () => {
    const { api, batches } = await startBatchApi({ timing: { batchEventMs: 1, closeGraceMs: 5_000 } });
    for (const id of ["batch_a", "batch_b", "batch_c"]) batches.add(id);
    const gone = await listen(api, "batch_a");
    const left = await listen(api, "batch_b");
    const open = await listen(api, "batch_c");
    await eventually(() => [gone, left, open].every(({ seen }) => seen.events.length === 1), "first events");
    batches.remove("batch_a");
    await gone.done;
    expect(gone.seen.events.at(-1)).not.toBe("[DONE]");
    left.leave.abort();
    await expect(left.done).rejects.toThrow();
    const beginMs = performance.now();
    await api.close();
    // The grace is for answers, which have an end.
    expect(performance.now() - beginMs).toBeLessThan(3_000);
    await open.done;
    expect(open.seen.events.at(-1)).not.toBe("[DONE]");
    for (const id of ["batch_b", "batch_c"]) expect(batches.watcherCount(id)).toBe(0);
  });

  it("have a head that can be asked for alone", async () => {
    const { api, batches } = await startBatchApi();
    batches.add("batch_a");
    const response = await fetch(`${api.address}/v1/batches/batch_a/events`, { method: "HEAD" });
    expect(response.status).toBe(200);
    expect(batches.watcherCount("batch_a")).toBe(0);
  });
});
