import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BatchClient } from "../../../../cli/batch/client.js";
import { mergeLines, splitLines, writeResults } from "../../../../cli/batch/results.js";
import { Patience } from "../../../../cli/batch/retry.js";
import { lineId } from "../../../../coordinator/batches/line-id.js";
import { scratch } from "../support.js";
import { answerLine, emptyBatch, FakeCoordinator, jsonl, requestLine } from "./support.js";

async function* chunked(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let begin = 0; begin < bytes.length; begin += size) yield bytes.subarray(begin, begin + size);
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}

const patient = () =>
  new Patience(
    new AbortController().signal,
    () => {},
    10_000,
    async () => {},
  );

describe("lines of results", () => {
  it("are cut at newlines, in whatever chunks they come", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.string({ maxLength: 20 }).map((text) => text.replaceAll("\n", " "))),
        fc.integer({ min: 1, max: 40 }),
        fc.boolean(),
        async (texts, size, ended) => {
          const lines = texts.filter((text) => text !== "").map((text) => `${text}\n`);
          const text = lines.join("");
          const bytes = Buffer.from(ended ? text : text.slice(0, -1));
          const found = await all(splitLines(chunked(bytes, size)));
          expect(found.map(String)).toEqual(lines);
        },
      ),
    );
  });

  it("stand in the order of the input, whichever of the two files they are in, blank lines between", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.constantFrom("output", "error", "blank"), { maxLength: 60 }),
        fc.integer({ min: 1, max: 500 }),
        async (kinds, size) => {
          const lines = kinds.map((kind, index) => ({
            kind,
            text: answerLine("batch_0", index + 1, `${index}`),
          }));
          const file = (wanted: string) =>
            chunked(
              Buffer.from(jsonl(lines.filter(({ kind }) => kind === wanted).map(({ text }) => text))),
              size,
            );
          const merged = await all(mergeLines("batch_0", file("output"), file("error")));
          const expected = lines.filter(({ kind }) => kind !== "blank");
          expect(merged.map(({ bytes }) => JSON.parse(String(bytes)))).toEqual(
            expected.map(({ text }) => text),
          );
          expect(merged.map(({ failed }) => failed)).toEqual(expected.map(({ kind }) => kind === "error"));
        },
      ),
    );
  });

  it("that are no line of a batch are refused", async () => {
    const file = chunked(Buffer.from('{"custom_id":"a"}\n'), 100);
    await expect(all(mergeLines("batch_0", file, null))).rejects.toThrow(
      /does not begin with \{"id":"batch_req_/,
    );
  });

  it("have ids of their own", () => {
    const ids = new Set<string>();
    for (const batch of ["batch_0", "batch_00", "batch_1"]) {
      for (let line = 1; line <= 200; line++) ids.add(lineId(batch, line));
    }
    expect(ids.size).toBe(600);
    for (const id of ids) expect(id).toMatch(/^batch_req_[0-9a-f]{32}$/);
  });
});

describe("a file of results", () => {
  async function finished(failing: string[] = []) {
    const fake = await FakeCoordinator.start();
    const batch = emptyBatch("batch_0");
    const ids = Array.from({ length: 200 }, (_, index) => `line ${index}`);
    fake.files.set("file-0", Buffer.from(jsonl(ids.map((id) => requestLine(id)))));
    fake.batches.push(batch);
    fake.finish(batch, failing);
    return { fake, batch, ids, client: new BatchClient(fake.url), file: join(scratch(), "out.jsonl") };
  }
  const idsOf = (file: string) =>
    readFileSync(file, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);

  it("is there whole, with the failures counted by code", async () => {
    const { batch, ids, client, file } = await finished(["line 3", "line 77"]);
    const { lines, failures } = await writeResults(client, batch, file, patient());
    expect(lines).toBe(200);
    expect([...failures]).toEqual([
      ["invalid_value", { count: 2, customId: "line 3", message: "line 3 is bad" }],
    ]);
    expect(idsOf(file)).toEqual(ids);
    expect(readdirSync(dirname(file))).toEqual(["out.jsonl"]);
  });

  it("is fetched on from where the connection broke", async () => {
    const { fake, batch, ids, client, file } = await finished(["line 0", "line 199"]);
    let broken = 0;
    const starts: string[] = [];
    fake.fault = (request, response) => {
      if (!request.url!.endsWith("/out-batch_0/content")) return false;
      starts.push(request.headers.range ?? "all");
      if (broken === 3) return false;
      broken += 1;
      const bytes = fake.files.get("out-batch_0")!;
      const from = Number(/\d+/.exec(request.headers.range ?? "0")![0]);
      response.writeHead(from === 0 ? 200 : 206, { "content-length": bytes.length - from });
      // Flushed first, so that the client has it when the connection breaks.
      response.write(bytes.subarray(from, from + 5_000), () => setTimeout(() => response.destroy(), 50));
      return true;
    };
    await writeResults(client, batch, file, patient());
    expect(broken).toBe(3);
    expect(starts).toEqual(["all", "bytes=5000-", "bytes=10000-", "bytes=15000-"]);
    expect(idsOf(file)).toEqual(ids);
  });

  it("is as it was when the answers cannot be had", async () => {
    const { fake, batch, client, file } = await finished();
    writeFileSync(file, "earlier\n");
    fake.files.delete("out-batch_0");
    await expect(writeResults(client, batch, file, patient())).rejects.toThrow("no file out-batch_0");
    expect(readFileSync(file, "utf8")).toBe("earlier\n");
    fake.files.set("out-batch_0", Buffer.from(jsonl([answerLine("batch_0", 1, "line 0")])));
    await expect(writeResults(client, batch, file, patient())).rejects.toThrow(
      /holds 1 answers of batch_0, expected 200/,
    );
    expect(readFileSync(file, "utf8")).toBe("earlier\n");
    expect(readdirSync(dirname(file))).toEqual(["out.jsonl"]);
  });
});
