/** How large uploads may be, how many at once, and how slow. */
import { readdirSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { maxUploads } from "../../../../coordinator/api/limits.js";
import { get, rawExchange } from "../support.js";
import {
  api,
  directory,
  disk,
  file,
  formHeaders,
  leftovers,
  lines,
  multipart,
  type Part,
  purpose,
  restart,
  serveFiles,
  slowUpload,
  until,
  upload,
} from "./support.js";

serveFiles();

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
    disk.free = 3_000;
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
