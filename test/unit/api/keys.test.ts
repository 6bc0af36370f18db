/** The API with keys: who may ask what, over HTTP and gRPC, and what becomes of the keys. */
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import {
  credentials,
  Metadata,
  makeGenericClientConstructor,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import OpenAI, { AuthenticationError } from "openai";
import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { createLogger } from "../../../common/log.js";
import { ApiKeys } from "../../../coordinator/api/keys.js";
import type { Api } from "../../../coordinator/api/server.js";
import { GrpcClient } from "../../support/grpc-client.js";
import { post, ScriptedService, saying, startApi } from "./support.js";

const key = "sk-first.key_0123456789";
const other = "sk-second/key+9876543210==";
const checkMs = 20;

let logged = "";
const log = createLogger(
  "test",
  "trace",
  new Writable({
    write(chunk, _encoding, done) {
      logged += String(chunk);
      done();
    },
  }),
);

function keysFile(text: string): string {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-keys-"));
  const file = join(directory, "keys");
  writeFileSync(file, text);
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return file;
}

const bearer = (of: string) => ({ authorization: `Bearer ${of}` });

async function eventually(check: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + 5_000;
  while (!(await check())) {
    if (performance.now() > endMs) throw new Error(`not in time: ${check}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe("an API with keys", () => {
  const service = new ScriptedService();
  let directory: string;
  let keys: ApiKeys;
  let api: Api;
  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), "glm-relay-keys-"));
    const file = join(directory, "keys");
    writeFileSync(file, `# two keys\n${key}\r\n\n  ${other}  \n`);
    keys = await ApiKeys.open(file, log);
    service.script = saying("hello");
    api = await startApi(service, {}, new Registry(), log, 0, keys);
  });
  afterAll(async () => {
    await api.close();
    keys.close();
    rmSync(directory, { recursive: true, force: true });
  });

  it.each(["/livez", "/readyz", "/health", "/metrics"])("%s is open", async (path) => {
    expect((await fetch(api.address + path)).status).toBe(200);
  });

  it.each([
    ["GET", "/v1/models"],
    ["GET", "/v1/models/glm-test"],
    ["POST", "/v1/chat/completions"],
    ["POST", "/v1/completions"],
    ["POST", "/v1/embeddings"],
    ["GET", "/v1/requests/a"],
    ["POST", "/v1/requests/a/cancel"],
    ["GET", "/v1/files"],
    ["POST", "/v1/files"],
    ["GET", "/v1/files/a/content"],
    ["GET", "/v1/batches"],
    ["POST", "/v1/batches"],
    ["POST", "/tokenize"],
    ["POST", "/detokenize"],
    ["GET", "/api/cluster"],
    ["GET", "/openapi.json"],
    ["GET", "/nowhere"],
    ["PUT", "/v1/models"],
    ["GET", "/livez/../v1/models"],
    ["GET", "//livez"],
    ["GET", "/livez%2f"],
  ])("%s %s wants one", async (method, path) => {
    for (const headers of [{}, bearer("wrong"), { authorization: key }, { authorization: `Basic ${key}` }]) {
      const response = await fetch(api.address + path, { method, headers });
      expect(response.status).toBe(401);
      expect(response.headers.get("www-authenticate")).toBe("Bearer");
      expect(response.headers.get("x-request-id")).toMatch(/^req-/);
      expect(await response.json()).toEqual({
        error: {
          message: expect.stringMatching(/API key/),
          type: "authentication_error",
          param: null,
          code: "invalid_api_key",
        },
      });
    }
  });

  it("answers whoever has one of them, however Bearer is written", async () => {
    for (const authorization of [`Bearer ${key}`, `bearer  ${other}`, `BEARER ${key} `]) {
      const { status: answered } = await post(api, "/v1/completions", { prompt: [1] }, { authorization });
      expect(answered).toBe(200);
    }
    expect((await fetch(`${api.address}/nowhere`, { headers: bearer(key) })).status).toBe(404);
    expect((await fetch(`${api.address}/v1/models`, { headers: bearer(key.slice(0, -1)) })).status).toBe(401);
    expect((await fetch(`${api.address}/v1/models`, { headers: bearer(`${key}x`) })).status).toBe(401);
  });

  it("is described so in its document", async () => {
    const response = await fetch(`${api.address}/openapi.json`, { headers: bearer(key) });
    const document = (await response.json()) as any;
    expect(document.security).toEqual([{ apiKey: [] }]);
    expect(document.components.securitySchemes.apiKey).toEqual({ type: "http", scheme: "bearer" });
    const open = Object.keys(document.paths).filter(
      (path) => document.paths[path].get?.security?.length === 0,
    );
    expect(open.sort()).toEqual(["/health", "/livez", "/metrics", "/readyz"]);
    expect(document.paths["/v1/models"].get.security).toBeUndefined();
  });

  it("refuses an upload before it reads it", async () => {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", new Blob(["x".repeat(1_000_000)]), "a.jsonl");
    const response = await fetch(`${api.address}/v1/files`, { method: "POST", body: form });
    expect(response.status).toBe(401);
  });

  it("the official client's key is taken, and a wrong one is an AuthenticationError at once", async () => {
    const client = (apiKey: string) => new OpenAI({ baseURL: `${api.address}/v1`, apiKey });
    const chat = { model: "default", messages: [{ role: "user" as const, content: "hi" }] };
    const answer = await client(key).chat.completions.create(chat);
    expect(answer.choices[0]?.message.content).toBe("hello");
    const refused = await client("wrong")
      .chat.completions.create(chat)
      .catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(AuthenticationError);
    expect(refused).toMatchObject({ status: 401, code: "invalid_api_key", type: "authentication_error" });
  });

  it("gRPC wants it in the metadata; health is open", async () => {
    const client = new GrpcClient(api.grpcAddress!);
    onTestFinished(() => client.close());
    for (const headers of [{}, bearer("wrong")]) {
      const { status: how, tokens } = await client.generate({ prompt: "a" }, headers);
      expect([how.code, how.metadata.get("glm-relay-code"), tokens]).toEqual([
        status.UNAUTHENTICATED,
        ["invalid_api_key"],
        [],
      ]);
    }
    const refused = await client.listModels().catch((error: ServiceError) => error);
    expect(refused).toMatchObject({ code: status.UNAUTHENTICATED });
    expect((await client.generate({ prompt: "a" }, bearer(other))).text).toBe("hello");
    expect(await checkHealth(api.grpcAddress!)).toBe(1);
    const page = await api.metrics();
    expect(page).toMatch(/glm_relay_grpc_requests_total\{method="Generate",status="UNAUTHENTICATED"\} 2/);
  });

  it("no log and no metric holds a key, whatever was done with it", async () => {
    await post(api, "/v1/completions", { prompt: [1] }, { ...bearer(key), "x-request-id": "seen-in-log" });
    await eventually(() => logged.includes("seen-in-log"));
    const page = await api.metrics();
    for (const secret of [key, other, "wrong"]) expect(logged + page).not.toContain(secret);
    expect(logged).toContain('"code":"invalid_api_key"');
    expect(service.last.tenant).toBe("default");
  });
});

describe("the file of the keys", () => {
  const accepts = (keys: ApiKeys, of: string): boolean => {
    try {
      keys.require(`Bearer ${of}`);
      return true;
    } catch {
      return false;
    }
  };

  it("is read again when it changes, also when another file takes its place; a bad one changes nothing", async () => {
    const file = keysFile(`${key}\n`);
    const keys = await ApiKeys.open(file, log, checkMs);
    onTestFinished(() => keys.close());
    writeFileSync(file, `${key}\n${other}\n`);
    await eventually(() => accepts(keys, other));
    expect([accepts(keys, key), keys.count]).toEqual([true, 2]);
    logged = "";
    writeFileSync(file, "# none\n");
    await eventually(() => logged.includes("could not be read again"));
    expect([accepts(keys, key), accepts(keys, other)]).toEqual([true, true]);
    writeFileSync(`${file}.new`, `${other}\n`);
    renameSync(`${file}.new`, file);
    await eventually(() => !accepts(keys, key));
    expect(accepts(keys, other)).toBe(true);
    logged = "";
    rmSync(file);
    await eventually(() => logged.includes("could not be read again"));
    expect(accepts(keys, other)).toBe(true);
    expect(logged).not.toContain(other);
  });

  it.each([
    ["", /holds no key: expected one per line/],
    ["# a\n \n", /holds no key/],
    [`${key}\ntwo words\n`, /line 2: expected a key of 1 to 512 ASCII characters without spaces/],
    [`${"x".repeat(513)}\n`, /line 1: expected/],
    ["schlüssel\n", /line 1: expected/],
    [Array.from({ length: 1_025 }, (_, i) => `k${i}\n`).join(""), /holds 1025 keys: expected at most 1024/],
    ["x".repeat(2 ** 20 + 1), /has 1048577 bytes, expected at most 1048576/],
  ])("%# is refused, naming the file and no key", async (text, expected) => {
    const refused = await ApiKeys.open(keysFile(text), log).catch((error: Error) => error);
    expect(refused).toMatchObject({
      code: "invalid_configuration",
      message: expect.stringMatching(expected),
    });
    expect((refused as Error).message).not.toContain(key);
  });

  it("that is not there is refused", async () => {
    await expect(ApiKeys.open("/nowhere/keys", log)).rejects.toThrow(
      /keys \/nowhere\/keys cannot be read: ENOENT/,
    );
  });
});

/** 1: SERVING. */
function checkHealth(address: string): Promise<number> {
  const Health = makeGenericClientConstructor(
    {
      Check: {
        path: "/grpc.health.v1.Health/Check",
        requestStream: false,
        responseStream: false,
        requestSerialize: () => Buffer.alloc(0),
        requestDeserialize: (bytes: Buffer) => bytes,
        responseSerialize: (bytes: Buffer) => bytes,
        // Field 1, a number.
        responseDeserialize: (bytes: Buffer) => bytes[1] ?? 0,
      },
    },
    "Health",
  );
  const client = new Health(address, credentials.createInsecure()) as any;
  return new Promise((resolve, reject) => {
    client.Check({}, new Metadata(), (error: Error | null, answer: number) => {
      client.close();
      if (error) reject(error);
      else resolve(answer);
    });
  });
}
