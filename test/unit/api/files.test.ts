/** /v1/files over a real server and a real directory. */
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import type { Logger } from "../../../common/log.js";
import { maxUploads, type Timing } from "../../../coordinator/api/limits.js";
import { type Api, createApi } from "../../../coordinator/api/server.js";
import { DiskGuard } from "../../../coordinator/files/disk.js";
import { FileStore } from "../../../coordinator/files/store.js";
import { get, type Json, post, rawExchange, ScriptedService } from "./support.js";

let directory: string;
let free: number;
let store: FileStore;
let api: Api;
let lines: Json[];

async function start(options: { filesBytes?: number; timing?: Partial<Timing> } = {}): Promise<void> {
  const clock = { nowMs: () => performance.now() };
  // Asked anew each time.
  const guard = new DiskGuard(directory, 1_000, { nowMs: () => clock.nowMs() * 1e6 }, async () => free);
  const log: Logger = pino({ level: "info" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const timers = { timeOfDayMs: () => Date.now() };
  store = await FileStore.open(directory, { guard, timers, log, filesBytes: options.filesBytes ?? null });
  const timing = { closeGraceMs: 200, ...options.timing };
  api = await createApi(new ScriptedService(), { host: "127.0.0.1", port: 0, log, timing, files: store });
}

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "glm-relay-files-api-"));
  free = 1e12;
  lines = [];
  await start();
});
afterEach(async () => {
  await api.close();
  rmSync(directory, { recursive: true, force: true });
});

async function restart(options: Parameters<typeof start>[0]): Promise<void> {
  await api.close();
  await start(options);
}

type Part = [name: string, value: string | Uint8Array, filename?: string];

const boundary = "b0undary";
function multipart(parts: Part[]): Buffer {
  const pieces: Uint8Array[] = [];
  for (const [name, value, filename] of parts) {
    const file = filename === undefined ? "" : `; filename="${filename}"`;
    const type = filename === undefined ? "" : "content-type: application/octet-stream\r\n";
    pieces.push(
      Buffer.from(`--${boundary}\r\ncontent-disposition: form-data; name="${name}"${file}\r\n${type}\r\n`),
    );
    pieces.push(typeof value === "string" ? Buffer.from(value) : value, Buffer.from("\r\n"));
  }
  pieces.push(Buffer.from(`--${boundary}--\r\n`));
  return Buffer.concat(pieces);
}

const formHeaders = { "content-type": `multipart/form-data; boundary=${boundary}` };
const upload = (parts: Part[], headers: Record<string, string> = {}) =>
  post(api, "/v1/files", multipart(parts), { ...formHeaders, ...headers });

const purpose: Part = ["purpose", "batch"];
const file: Part = ["file", "one\ntwo\n", "in.jsonl"];

const leftovers = () => [
  ...readdirSync(join(directory, "uploads")),
  ...readdirSync(join(directory, "files")),
];

async function content(id: string, headers: Record<string, string> = {}, method = "GET") {
  const response = await fetch(`${api.address}/v1/files/${id}/content`, { method, headers });
  return {
    status: response.status,
    headers: response.headers,
    body: Buffer.from(await response.arrayBuffer()),
  };
}

describe("an upload", () => {
  it("is kept, whatever order its parts have", async () => {
    for (const parts of [
      [purpose, file],
      [file, purpose],
      [["user", "x"], file, ["x", "y"], purpose],
    ] as Part[][]) {
      const { status, body } = await upload(parts);
      expect(status).toBe(200);
      expect(body).toMatchObject({
        object: "file",
        bytes: 8,
        filename: "in.jsonl",
        purpose: "batch",
        status: "processed",
        expires_at: null,
      });
      expect((await get(api, `/v1/files/${body.id}`)).body).toEqual(body);
      expect((await content(body.id)).body.toString()).toBe("one\ntwo\n");
    }
  });

  it("leaves nothing open", async () => {
    for (let i = 0; i < 3; i++) {
      const { body } = await upload(i === 1 ? [file] : [file, purpose]);
      if (i !== 1) await content(body.id);
    }
    const open = () =>
      readdirSync("/proc/self/fd").filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`).startsWith(directory);
        } catch {
          return false;
        }
      });
    await until(() => open().length === 0);
  });

  it("is kept until the time that it names", async () => {
    const { body } = await upload([
      file,
      purpose,
      ["expires_after[anchor]", "created_at"],
      ["expires_after[seconds]", "3600"],
    ]);
    expect(body.expires_at).toBe(body.created_at + 3_600);
  });

  it("of 20 MB comes back as it was", async () => {
    const bytes = Buffer.alloc(20_000_000, "\r\n--b0undar\r\nx");
    const { status, body } = await upload([["file", bytes, "large"], purpose]);
    expect(status).toBe(200);
    expect(body.bytes).toBe(bytes.length);
    expect((await content(body.id)).body.equals(bytes)).toBe(true);
  });

  it("comes back as it was, whatever it has of a form's own marks and however it is cut on its way", async () => {
    const piece = fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc
        .constantFrom("\r", "\n", "\r\n", "--", "\r\n--", "\r\n--b0undar", "b0undary", "\r\n--b0undarX")
        .map(Buffer.from),
    );
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { maxLength: 30 }),
        fc.integer({ min: 1, max: 8 }),
        async (all, pieces) => {
          const bytes = Buffer.concat(all);
          // No client takes a boundary that stands in its file.
          fc.pre(!`\r\n${bytes.toString("latin1")}`.includes(`\r\n--${boundary}`));
          const { status, body } = await slowUpload(multipart([["file", bytes, "a"], purpose]), { pieces });
          expect([status, body.bytes]).toEqual([200, bytes.length]);
          expect((await content(body.id)).body.equals(bytes)).toBe(true);
          await store.remove(body.id, "default");
        },
      ),
      { numRuns: 60 },
    );
  });

  it.each<[string, Part[], string, string]>([
    ["no file", [purpose], "file", "file: missing, expected the content of a file, with its name"],
    ["a file without a name", [["file", "x"], purpose], "file", "file: has no file name"],
    ["two files", [file, file, purpose], "file", "file: given twice"],
    ["a file by another name", [["data", "x", "a"], purpose], "data", "data: is a file"],
    ["no purpose", [file], "purpose", "purpose: missing, expected batch"],
    ["another purpose", [["purpose", "fine-tune"], file], "purpose", 'purpose: "fine-tune", expected batch'],
    ["another purpose behind the file", [file, ["purpose", "batch_output"]], "purpose", '"batch_output"'],
    ["a purpose twice", [file, purpose, purpose], "purpose", "purpose: given twice"],
    ["a long value", [file, ["purpose", "b".repeat(2_000)]], "purpose", "purpose: too long"],
    [
      "a long name",
      [["file", "x", "n".repeat(256)], purpose],
      "file",
      "a name of 256 characters, expected at most 255",
    ],
    [
      "time without an anchor",
      [file, purpose, ["expires_after[seconds]", "3600"]],
      "expires_after[anchor]",
      "missing",
    ],
    [
      "another anchor",
      [file, purpose, ["expires_after[anchor]", "now"], ["expires_after[seconds]", "3600"]],
      "expires_after[anchor]",
      '"now", expected created_at',
    ],
    ...["3599", "2592001", "1e4", "-1", ""].map((seconds): [string, Part[], string, string] => [
      `${seconds} seconds`,
      [file, purpose, ["expires_after[anchor]", "created_at"], ["expires_after[seconds]", seconds]],
      "expires_after[seconds]",
      "expected an integer from 3600 to 2592000",
    ]),
    [
      "an anchor alone",
      [file, purpose, ["expires_after[anchor]", "created_at"]],
      "expires_after[seconds]",
      "missing",
    ],
    [
      "fields without end",
      [...Array.from({ length: 20 }, (_, i): Part => [`x${i}`, ""]), file, purpose],
      "body",
      "fields limit",
    ],
    ["a name of the language", [file, purpose, ["__proto__", "x"]], "body", "prototype"],
  ])("with %s is refused and leaves nothing", async (_, parts, param, message) => {
    const answer = await upload(parts);
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({ type: "invalid_request_error", code: "invalid_value", param });
    expect(answer.body.error.message).toContain(message);
    expect(leftovers()).toEqual([]);
    // The connection is as good as before.
    expect((await upload([file, purpose])).status).toBe(200);
  });

  it("with unknown fields is taken, unless its client wants it strictly", async () => {
    const parts: Part[] = [["user", "x"], file, purpose];
    expect((await upload(parts)).status).toBe(200);
    expect(lines.find(({ msg }) => msg === "unknown fields")?.fields).toEqual(['"user"']);
    const answer = await upload(parts, { "x-glm-strict": "1" });
    expect(answer.status).toBe(400);
    expect(answer.body.error).toMatchObject({
      param: "user",
      message: expect.stringContaining("X-GLM-Strict"),
    });
  });

  it("must be a form", async () => {
    for (const [headers, body] of <[Record<string, string>, string][]>[
      [{ "content-type": "application/json" }, "{}"],
      [{ "content-type": "application/octet-stream" }, "x"],
      [{ "content-type": "application/json" }, ""],
      [{ ...formHeaders, "content-encoding": "gzip" }, "x"],
    ]) {
      const answer = await post(api, "/v1/files", body, headers);
      expect(answer.status).toBe(415);
      expect(answer.body.error.code).toBe("unsupported_media_type");
    }
    const received = await rawExchange(
      api,
      "POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    );
    expect(received).toContain("multipart/form-data");
    // And no form is anything else.
    const form = await post(api, "/v1/completions", multipart([purpose]), formHeaders);
    expect(form.status).toBe(415);
  });

  it.each([
    ["nothing", ""],
    ["no boundary", "hello"],
    ["half a head", `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n`],
    ["half a file", `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nhalf`],
    ["no last boundary", multipart([purpose, file]).toString().slice(0, -8)],
  ])("of %s is a 400 that leaves nothing", async (_, body) => {
    const answer = await post(api, "/v1/files", body, formHeaders);
    expect(answer.status).toBe(400);
    expect(answer.body.error.code).toBe("invalid_value");
    expect(leftovers()).toEqual([]);
    const bare = await post(api, "/v1/files", body || "x", { "content-type": "multipart/form-data" });
    expect(bare.status).toBe(400);
    expect(bare.body.error.message).toContain("oundary");
  });

  it("is cut anywhere and leaves nothing, or is whole", { timeout: 30_000 }, async () => {
    const body = multipart([["x", "y"], ["file", "some\ncontent\n".repeat(20), "in.jsonl"], purpose]);
    await fc.assert(
      fc.asyncProperty(fc.nat(body.length - 1), async (length) => {
        const answer = await post(api, "/v1/files", body.subarray(0, length), formHeaders);
        // What stands behind the last boundary does not matter.
        if (length >= body.length - 2) {
          expect(answer.status).toBe(200);
          await store.remove(answer.body.id, "default");
        } else {
          expect(answer.status).toBe(400);
        }
        expect(leftovers()).toEqual([]);
      }),
      { numRuns: 80 },
    );
  });

  it("whose client leaves in the middle leaves nothing and is 499 in the log", async () => {
    const body = multipart([purpose, ["file", "x".repeat(100_000), "in.jsonl"]]);
    const { hostname, port } = new URL(api.address);
    const socket = connect(Number(port), hostname);
    onTestFinished(() => void socket.destroy());
    socket.write(
      `POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: ${formHeaders["content-type"]}\r\n` +
        `Content-Length: ${body.length}\r\n\r\n`,
    );
    socket.write(body.subarray(0, 70_000));
    await until(() => readdirSync(join(directory, "uploads")).length === 1);
    socket.destroy();
    await until(() => lines.some(({ msg }) => msg === "response"));
    await until(() => leftovers().length === 0);
    expect(lines.find(({ msg }) => msg === "response")).toMatchObject({
      route: "/v1/files",
      status: 499,
      code: "cancelled",
    });
    expect(lines.filter(({ level }) => level >= 40)).toEqual([]);
  });
});

describe("sizes", () => {
  it("a file that is too large is 413 that its client gets to read, by whatever way it comes", async () => {
    await restart({ filesBytes: 100_000 });
    const large = multipart([["file", "x".repeat(100_001), "a"], purpose]);
    const huge = multipart([["file", Buffer.alloc(30_000_000), "a"], purpose]);
    for (const bytes of [large, huge]) {
      for (const chunked of [false, true]) {
        const answer = await slowUpload(bytes, { chunked });
        expect(answer).toMatchObject({
          status: 413,
          body: { error: { code: "request_too_large", param: "file" } },
        });
        expect(answer.body.error.message).toBe("file: larger than 100000 bytes");
        expect(leftovers()).toEqual([]);
      }
    }
    expect((await upload([["file", "x".repeat(100_000), "a"], purpose])).status).toBe(200);
  });

  it("an answer is there for a client that writes all of its body before it reads", async () => {
    await restart({ filesBytes: 40_000_000 });
    const small: Part = ["file", Buffer.alloc(30_000_000), "a"];
    for (const [parts, status, message] of [
      [[["file", Buffer.alloc(41_000_000), "a"], purpose], 413, "file: larger than 40000000 bytes"],
      // Seen when reading has begun.
      [[["purpose", "x"], small], 400, "expected batch"],
      [[["data", small[1], "a"], purpose], 400, "data: is a file"],
    ] as [Part[], number, string][]) {
      const body = multipart(parts);
      const { hostname, port } = new URL(api.address);
      const socket = connect(Number(port), hostname);
      onTestFinished(() => void socket.destroy());
      socket.pause();
      socket.write(
        `POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: ${formHeaders["content-type"]}\r\n` +
          `Content-Length: ${body.length}\r\n\r\n`,
      );
      await new Promise<void>((resolve, reject) => {
        socket.write(body, (error) => (error ? reject(error) : resolve()));
      });
      let received = "";
      socket.on("data", (data: Buffer) => {
        received += data.toString();
      });
      socket.resume();
      await until(() => received.includes(message));
      expect(received.startsWith(`HTTP/1.1 ${status} `)).toBe(true);
      // And the connection goes on.
      socket.write("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
      await until(() => received.includes("HTTP/1.1 200 OK"));
      expect(leftovers()).toEqual([]);
    }
  });

  it("bytes that belong to no part do not come for ever", async () => {
    await restart({ filesBytes: 1_000 });
    const answer = await slowUpload(Buffer.alloc(2_000_000, "x"), { chunked: true });
    expect(answer.status).toBe(413);
  });

  it("a full disk is 507 before anything is read, and no library tries again", async () => {
    free = 3_000;
    expect((await upload([file, purpose])).status).toBe(200);
    const before = leftovers();
    for (const chunked of [false, true]) {
      const answer = await slowUpload(multipart([["file", "x".repeat(20_000), "a"], purpose]), { chunked });
      expect(answer).toMatchObject({
        status: 507,
        body: { error: { code: "storage_full", type: "server_error" } },
      });
      expect(answer.headers).toMatchObject({ "x-should-retry": "false", "retry-after": "60" });
      expect(leftovers()).toEqual(before);
    }
    const early = await slowUpload(Buffer.alloc(20_000), { stopAfter: 1 });
    expect(early.status).toBe(507);
    expect((await get(api, "/v1/files")).body.data).toHaveLength(1);
  });
});

describe("many at once", () => {
  it("are taken up to a bound, and those above it are told to come again", async () => {
    const body = multipart([purpose, ["file", "x".repeat(1_000), "a"]]);
    const open = Array.from({ length: maxUploads }, () => {
      let finish: () => void = () => {};
      const whole = new Promise<void>((resolve) => {
        finish = resolve;
      });
      return { finish, answer: slowUpload(body, { firstBytes: 300, rest: whole }) };
    });
    await until(() => readdirSync(join(directory, "uploads")).length === maxUploads);
    const more = await upload([file, purpose]);
    expect(more.status).toBe(429);
    expect(more.body.error).toMatchObject({
      code: "queue_full",
      message: expect.stringContaining("32 files"),
    });
    expect(more.headers.get("retry-after")).toBe("1");
    for (const { finish } of open) finish();
    for (const { answer } of open) expect((await answer).status).toBe(200);
    expect((await upload([file, purpose])).status).toBe(200);
    expect((await get(api, "/v1/files")).body.data).toHaveLength(maxUploads + 1);
  });
});

describe("time", () => {
  it("a slow upload goes on as long as it moves", async () => {
    await restart({ timing: { uploadStallMs: 250, arrivalMs: 300 } });
    const body = multipart([purpose, ["file", Buffer.alloc(1_000_000, "x"), "a"]]);
    const answer = await slowUpload(body, { pieces: 10, pauseMs: 100 });
    expect(answer.status).toBe(200);
    expect(answer.body.bytes).toBe(1_000_000);
  });

  it("one that comes to a halt is 408 and leaves nothing", async () => {
    await restart({ timing: { uploadStallMs: 200 } });
    const body = multipart([purpose, ["file", Buffer.alloc(1_000_000, "x"), "a"]]);
    for (const stopAfter of [20, 500_000]) {
      const answer = await slowUpload(body, { stopAfter });
      expect(answer).toMatchObject({ status: 408, body: { error: { code: "deadline_exceeded" } } });
      expect(answer.body.error.message).toMatch(/came to a halt: \d+ bytes in 0.2 s, expected 65536/);
      expect(leftovers()).toEqual([]);
    }
    // A byte now and then is no progress.
    const startedMs = performance.now();
    const drip = await slowUpload(body.subarray(0, 500), { pieces: 500, pauseMs: 20, declared: body.length });
    expect(drip.status).toBe(408);
    expect(performance.now() - startedMs).toBeLessThan(8_000);
  });

  it("other bodies still have a time for the whole", async () => {
    await restart({ timing: { arrivalMs: 150 } });
    const head =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    const startedMs = performance.now();
    const received = await rawExchange(api, head);
    expect(received).toMatch(/^HTTP\/1\.1 408 /);
    expect(received).toContain("the request took longer than 0.15 s to arrive");
    expect(performance.now() - startedMs).toBeLessThan(5_000);
    await until(() => lines.some(({ status, code }) => status === 408 && code === "deadline_exceeded"));
    // Nobody waits for the body of what was answered without it.
    const nowhere = "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx";
    expect(await rawExchange(api, nowhere)).toMatch(/^HTTP\/1\.1 404 /);
  });
});

describe("content", () => {
  let id: string;
  beforeEach(async () => {
    id = (await upload([["file", "0123456789", "näme (1).jsonl"], purpose])).body.id;
  });

  it("is whole, named and nothing that a browser shows", async () => {
    const { status, headers, body } = await content(id);
    expect(status).toBe(200);
    expect(body.toString()).toBe("0123456789");
    expect(Object.fromEntries(headers)).toMatchObject({
      "content-length": "10",
      "content-type": "application/octet-stream",
      "accept-ranges": "bytes",
      etag: `"${id}"`,
      "x-content-type-options": "nosniff",
      "content-disposition": "attachment; filename*=UTF-8''n%C3%A4me%20%281%29.jsonl",
    });
  });

  it.each([
    ["bytes=2-4", "234", "bytes 2-4/10"],
    ["bytes=7-", "789", "bytes 7-9/10"],
    ["bytes=-2", "89", "bytes 8-9/10"],
  ])("%s is a part of it", async (range, expected, contentRange) => {
    const { status, headers, body } = await content(id, { range });
    expect([status, body.toString()]).toEqual([206, expected]);
    expect(headers.get("content-range")).toBe(contentRange);
    expect(headers.get("content-length")).toBe(String(expected.length));
    const head = await content(id, { range }, "HEAD");
    expect([head.status, head.headers.get("content-length"), head.body.length]).toEqual([
      206,
      String(expected.length),
      0,
    ]);
  });

  it("a range behind its end is 416 and says how long it is", async () => {
    const { status, headers, body } = await content(id, { range: "bytes=10-" });
    expect(status).toBe(416);
    expect(headers.get("content-range")).toBe("bytes */10");
    expect(JSON.parse(body.toString()).error).toMatchObject({
      code: "range_not_satisfiable",
      param: "range",
    });
  });

  it("a part is for whoever has the rest of the same file", async () => {
    const same = await content(id, { range: "bytes=2-4", "if-range": `"${id}"` });
    const other = await content(id, { range: "bytes=2-4", "if-range": '"file-other"' });
    expect([same.status, other.status, other.body.length]).toEqual([206, 200, 10]);
  });

  it("may be nothing", async () => {
    const empty = (await upload([["file", "", "a"], purpose])).body.id;
    const { status, headers, body } = await content(empty);
    expect([status, headers.get("content-length"), body.length]).toEqual([200, "0", 0]);
    expect((await content(empty, { range: "bytes=0-" })).status).toBe(416);
    expect((await content(empty, {}, "HEAD")).headers.get("content-length")).toBe("0");
  });

  it("goes on to its end when it is deleted meanwhile", async () => {
    const bytes = Buffer.alloc(30_000_000, "x");
    const large = (await upload([["file", bytes, "a"], purpose])).body.id;
    const response = await fetch(`${api.address}/v1/files/${large}/content`);
    expect((await get(api, `/v1/files/${large}`, "DELETE")).status).toBe(200);
    expect((await response.arrayBuffer()).byteLength).toBe(bytes.length);
    expect((await content(large)).status).toBe(404);
  });

  it("that went from the disk by other hands is 404", async () => {
    rmSync(store.pathOf(id, "default")!);
    expect((await content(id)).status).toBe(404);
  });

  it("is not sent for ever to a client that does not read", async () => {
    await restart({ timing: { stalledClientMs: 200 } });
    const large = (await upload([["file", Buffer.alloc(50_000_000), "a"], purpose])).body.id;
    const { hostname, port } = new URL(api.address);
    const socket = connect(Number(port), hostname);
    onTestFinished(() => void socket.destroy());
    socket.pause();
    socket.write(`GET /v1/files/${large}/content HTTP/1.1\r\nHost: x\r\n\r\n`);
    await until(() => lines.some(({ route, status }) => route === "/v1/files/:id/content" && status === 499));
  });
});

describe("lists and deletion", () => {
  it("pages are told as OpenAI tells them", async () => {
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) ids.unshift((await upload([file, purpose])).body.id);
    const all = (await get(api, "/v1/files")).body;
    expect(all).toMatchObject({ object: "list", first_id: ids[0], last_id: ids[2], has_more: false });
    expect(all.data.map(({ id }: Json) => id)).toEqual(ids);
    const page = (await get(api, `/v1/files?limit=1&after=${ids[0]}&purpose=batch`)).body;
    expect(page).toMatchObject({ first_id: ids[1], last_id: ids[1], has_more: true });
    expect((await get(api, "/v1/files?order=asc&limit=1")).body.data[0].id).toBe(ids[2]);
    expect((await get(api, "/v1/files?purpose=batch_output")).body).toEqual({
      object: "list",
      data: [],
      first_id: null,
      last_id: null,
      has_more: false,
    });
  });

  it.each([
    ["limit=0", "limit", "an integer from 1 to 10000"],
    ["limit=1.5", "limit", "an integer from 1 to 10000"],
    ["limit=1&limit=2", "limit", "an integer from 1 to 10000"],
    ["order=up", "order", "desc or asc"],
    ["purpose=assistants", "purpose", "batch or batch_output"],
    [`after=${"x".repeat(300)}`, "after", "the id of the last file that was seen"],
  ])("%s is refused", async (query, param, expected) => {
    const { status, body } = await get(api, `/v1/files?${query}`);
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "invalid_value", param });
    expect(body.error.message).toContain(`expected ${expected}`);
  });

  it("what is not there is 404, and so is what another has", async () => {
    const { id } = (await upload([file, purpose], { "x-glm-tenant": "a" })).body;
    for (const name of [id, "file-0", "..%2F..%2Fetc%2Fpasswd", `${id}%2F..%2F${id}`, "%00"]) {
      for (const [path, method] of <[string, string][]>[
        [`/v1/files/${name}`, "GET"],
        [`/v1/files/${name}/content`, "GET"],
        [`/v1/files/${name}`, "DELETE"],
        [`/v1/files?after=${name}`, "GET"],
      ]) {
        const { status, body } = await get(api, path, method);
        expect([path, status, body.error.code]).toEqual([path, 404, "not_found"]);
      }
    }
    expect(leftovers()).toEqual([id]);
  });

  it("deletes once", async () => {
    const { id } = (await upload([file, purpose])).body;
    expect((await get(api, `/v1/files/${id}`, "DELETE")).body).toEqual({ id, object: "file", deleted: true });
    expect((await get(api, `/v1/files/${id}`, "DELETE")).status).toBe(404);
    expect(leftovers()).toEqual([]);
  });

  it("says which methods there are", async () => {
    const { status, headers } = await get(api, "/v1/files", "PUT");
    expect([status, headers.get("allow")]).toEqual([405, "POST, GET, HEAD"]);
    expect((await get(api, "/v1/files/x", "POST")).headers.get("allow")).toBe("GET, HEAD, DELETE");
  });
});

describe("beside the files", () => {
  it("their bytes are a metric", async () => {
    await upload([file, purpose]);
    expect(await api.metrics()).toContain('glm_relay_files_bytes{model="glm-test",purpose="batch"} 8\n');
  });

  it("the document tells the form and where it goes", async () => {
    const { paths } = (await get(api, "/openapi.json")).body;
    expect(Object.keys(paths["/v1/files"])).toEqual(["post", "get"]);
    const form = paths["/v1/files"].post.requestBody.content["multipart/form-data"].schema;
    expect(form.required).toEqual(["file", "purpose"]);
    expect(paths["/v1/files"].get.requestBody).toBeUndefined();
    expect(paths["/v1/files/{id}"].delete.parameters[0]).toMatchObject({ name: "id", in: "path" });
  });

  it("without a directory nothing is offered, and nobody tries again", async () => {
    await api.close();
    const log = pino({ level: "silent" });
    api = await createApi(new ScriptedService(), {
      host: "127.0.0.1",
      port: 0,
      log,
      timing: { closeGraceMs: 200 },
    });
    for (const answer of [
      await upload([file, purpose]),
      await get(api, "/v1/files"),
      await get(api, "/v1/files/x/content"),
      await get(api, "/v1/files/x", "DELETE"),
    ]) {
      expect(answer.status).toBe(501);
      expect(answer.headers.get("x-should-retry")).toBe("false");
      expect(answer.body.error).toMatchObject({
        code: "not_supported",
        message: expect.stringContaining("--data"),
      });
    }
  });
});

interface Slowness {
  chunked?: boolean;
  /** Written in so many pieces with pauses between them. */
  pieces?: number;
  pauseMs?: number;
  /** Nothing follows these bytes. */
  stopAfter?: number;
  declared?: number;
  /** So many bytes, and the others after this. */
  firstBytes?: number;
  rest?: Promise<void>;
}

/** A client that reads its answer when it has written all that it has to write. */
function slowUpload(
  body: Buffer,
  slowness: Slowness,
): Promise<{ status: number; headers: Json; body: Json }> {
  const { chunked = false, pieces = 1, pauseMs = 0, stopAfter, declared = body.length } = slowness;
  return new Promise((resolve, reject) => {
    const length = chunked ? {} : { "content-length": declared };
    const request = httpRequest(`${api.address}/v1/files`, {
      method: "POST",
      headers: { ...formHeaders, ...length },
    });
    request.on("response", (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("end", () => {
        request.destroy();
        resolve({ status: response.statusCode!, headers: response.headers, body: JSON.parse(text) });
      });
    });
    request.on("error", reject);
    if (slowness.firstBytes !== undefined) {
      request.write(body.subarray(0, slowness.firstBytes));
      void slowness.rest?.then(() => request.end(body.subarray(slowness.firstBytes)));
      return;
    }
    if (stopAfter !== undefined) {
      request.write(body.subarray(0, stopAfter));
      return;
    }
    const size = Math.ceil(body.length / pieces);
    const write = (at: number) => {
      if (at >= body.length) {
        if (declared === body.length) request.end();
        return;
      }
      request.write(body.subarray(at, at + size));
      setTimeout(() => write(at + size), pauseMs);
    };
    write(0);
  });
}

async function until(condition: () => boolean): Promise<void> {
  for (const startedMs = performance.now(); !condition(); ) {
    if (performance.now() - startedMs > 10_000)
      throw new Error(`it did not happen\n${JSON.stringify(lines)}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
