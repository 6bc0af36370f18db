import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Earlier, resume } from "../../../../cli/batch/resume.js";
import { scratch } from "../support.js";
import { jsonl, outputLine, requestLine } from "./support.js";

const ids = Array.from({ length: 20 }, (_, index) => `id-${index}`);
const lineOf = new Map(ids.map((id, index) => [id, index + 1]));
const settles = (status: number) =>
  status === 200 || (status >= 400 && status < 500 && ![408, 409, 429].includes(status));

function fileOf(contents: string | Uint8Array): string {
  const file = join(scratch(), "out.jsonl");
  writeFileSync(file, contents);
  return file;
}

const take = (file: string): Promise<Earlier> => resume(file, "in.jsonl", lineOf);

describe("the output of an earlier run", () => {
  it("is nothing when there is no file or an empty one", async () => {
    const nothing = {
      settled: new Set(),
      done: 0,
      failed: 0,
      usage: { promptTokens: 0, completionTokens: 0 },
    };
    const missing = join(scratch(), "out.jsonl");
    expect(await take(missing)).toEqual(nothing);
    expect(existsSync(missing)).toBe(false);
    expect(await take(fileOf(""))).toEqual(nothing);
  });

  it("keeps answers and final refusals, drops what failed for a passing reason, and leaves nothing else behind", async () => {
    const statuses = [200, 400, 404, 413, 408, 409, 429, 500, 503, 302, 0];
    const lines = statuses.map((status, index) => outputLine(ids[index]!, status));
    const file = fileOf(jsonl(lines));
    const earlier = await take(file);
    expect([...earlier.settled]).toEqual(ids.slice(0, 4));
    expect(earlier).toMatchObject({ done: 1, failed: 3, usage: { promptTokens: 2, completionTokens: 3 } });
    expect(readFileSync(file, "utf8")).toBe(jsonl(lines.slice(0, 4)));
    expect(readdirSync(dirname(file))).toEqual(["out.jsonl"]);
  });

  it("is not touched when all of it stays", async () => {
    const file = fileOf(jsonl(ids.map((id) => outputLine(id))));
    const before = statSync(file);
    expect((await take(file)).done).toBe(ids.length);
    expect(statSync(file)).toMatchObject({ ino: before.ino, mtimeMs: before.mtimeMs });
  });

  it("is whole again wherever the last line was cut, with each id once and what was settled kept", async () => {
    const row = fc.tuple(fc.constantFrom(...ids), fc.constantFrom(200, 200, 400, 429, 503, 0));
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 15 }), fc.nat(), async (rows, cut) => {
        const lines = rows.map(([id, status]) => Buffer.from(jsonl([outputLine(id, status)])));
        const last = lines.at(-1)!;
        // From all of the line to none of it; without its newline only, it is whole.
        const kept = last.length - (cut % (last.length + 1));
        const file = fileOf(Buffer.concat([...lines.slice(0, -1), last.subarray(0, kept)]));
        const whole = kept >= last.length - 1 ? rows : rows.slice(0, -1);
        const expected = new Map<string, number>();
        for (const [id, status] of whole) if (settles(status) && !expected.has(id)) expected.set(id, status);

        const earlier = await take(file);
        expect([...earlier.settled]).toEqual([...expected.keys()]);
        expect(earlier.done).toBe([...expected.values()].filter((status) => status === 200).length);
        expect(earlier.done + earlier.failed).toBe(expected.size);
        expect(readFileSync(file, "utf8")).toBe(
          jsonl([...expected].map(([id, status]) => outputLine(id, status))),
        );
        // A second look changes nothing.
        expect(await take(file)).toEqual(earlier);
      }),
      { numRuns: 60 },
    );
  });

  it.each([
    [
      "a line of another batch",
      jsonl([outputLine("id-1"), outputLine("stranger")]),
      /:2: custom_id "stranger" is not in in\.jsonl: the file belongs to another batch/,
    ],
    [
      "another batch's last line without newline",
      jsonl([outputLine("stranger")]).trimEnd(),
      /:1: custom_id "stranger"/,
    ],
    [
      "a broken line in the middle",
      `${jsonl([outputLine("id-1")])}{"id":\n${jsonl([outputLine("id-2")])}`,
      /:2: not a line of a batch's output/,
    ],
    ["the input file", jsonl([requestLine("id-1")]), /:1: not a line of a batch's output/],
    ["any text", "hello\n", /:1: not a line of a batch's output/],
  ])("is refused with nothing changed: %s", async (_, contents, message) => {
    const torn = `${contents}${contents.endsWith("\n") ? '{"id":"batch_re' : ""}`;
    const file = fileOf(torn);
    await expect(take(file)).rejects.toThrow(message);
    await expect(take(file)).rejects.toThrow(/nothing was changed$/);
    expect(readFileSync(file, "utf8")).toBe(torn);
  });
});
