import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decode, type Line, readLines } from "../../../../cli/batch/lines.js";
import { scratch } from "../support.js";

async function linesOf(contents: Uint8Array | string, lineBytesMax = 1_000): Promise<Line[]> {
  const file = join(scratch(), "lines");
  writeFileSync(file, contents);
  const lines: Line[] = [];
  for await (const line of readLines(file, lineBytesMax)) lines.push(line);
  return lines;
}

const texts = (lines: Line[]) => lines.map((line) => line.bytes?.toString() ?? null);

describe("the reader of lines", () => {
  it("skips a byte order mark, CR and blank lines, counts every line, and tells a last one without newline", async () => {
    const lines = await linesOf("\ufeffa\r\n\r\n \t\nb\n\nc");
    expect(lines.map(({ number, bytes, ended }) => [number, bytes?.toString(), ended])).toEqual([
      [1, "a", true],
      [4, "b", true],
      [6, "c", false],
    ]);
    expect(await linesOf("")).toEqual([]);
    expect(await linesOf("\n")).toEqual([]);
    expect(await linesOf("\ufeff")).toEqual([]);
  });

  it("gives back any lines it was written from, wherever the file is cut into chunks", async () => {
    const word = fc.string({ unit: "grapheme", minLength: 1, maxLength: 200 });
    // One word repeated so often that lines lie across chunks.
    const line = fc.tuple(word, fc.integer({ min: 1, max: 2_000 })).map(([text, n]) => text.repeat(n));
    const plain = line.filter((text) => !/[\r\n\ufeff]/.test(text) && text.trim() !== "");
    await fc.assert(
      fc.asyncProperty(fc.array(plain, { maxLength: 8 }), fc.constantFrom("\n", "\r\n"), async (all, end) => {
        expect(texts(await linesOf(all.map((text) => text + end).join(""), 1e7))).toEqual(all);
      }),
      { numRuns: 50 },
    );
  });

  it("yields a line above the bound without its bytes, and the next one whole", async () => {
    const long = "x".repeat(700_000);
    expect(texts(await linesOf(`${"y".repeat(10)}\n${long}\nshort\n${long}`, 10))).toEqual([
      "yyyyyyyyyy",
      null,
      "short",
      null,
    ]);
  });

  it("names a file that cannot be read", async () => {
    const read = async () => {
      for await (const _ of readLines("/nonexistent/in.jsonl", 10)) throw new Error("a line?");
    };
    await expect(read()).rejects.toThrow("cannot read /nonexistent/in.jsonl: ENOENT");
  });

  it("decodes UTF-8, and finds the first byte that is none", () => {
    expect(decode(Buffer.from("熊猫 \ufffd"))).toEqual({ text: "熊猫 \ufffd" });
    expect(decode(Buffer.from([0x61, 0xff, 0x62]))).toEqual({ badByteAt: 1 });
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), fc.constantFrom(0x80, 0xc0, 0xf8, 0xff), (text, bad) => {
        const good = Buffer.from(text);
        const bytes = Buffer.concat([good, Buffer.from([bad]), good]);
        expect(decode(bytes)).toEqual({ badByteAt: good.length });
      }),
    );
  });
});
