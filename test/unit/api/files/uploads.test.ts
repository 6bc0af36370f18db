/** What an upload may be, and what is kept of it. */
import { readdirSync, readlinkSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it, onTestFinished } from "vitest";
import { get, post, rawExchange } from "../support.js";
import {
  api,
  boundary,
  content,
  directory,
  file,
  formHeaders,
  leftovers,
  lines,
  multipart,
  type Part,
  purpose,
  serveFiles,
  slowUpload,
  store,
  until,
  upload,
} from "./support.js";

serveFiles();

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
