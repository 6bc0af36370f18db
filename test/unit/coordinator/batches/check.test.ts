import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkInput, cutJobs } from "../../../../coordinator/batches/check.js";
import {
  jobLines,
  maxInputBytes,
  maxJobBytes,
  maxLineBytes,
  maxLines,
} from "../../../../coordinator/batches/limits.js";
import { type PreparedLine, preparedNames, readPrepared } from "../../../../coordinator/batches/prepared.js";
import { checkTask, requestLine, testFolder } from "./support.js";

const folder = testFolder();
const check = (content: string | Uint8Array) => checkInput(checkTask(folder(), content));
const codes = async (content: string | Uint8Array) =>
  (await check(content)).problems.map(({ code, line }) => [code, line]);

async function prepared(content: string | Uint8Array): Promise<PreparedLine[]> {
  const task = checkTask(folder(), content);
  const { jobs, problems } = await checkInput(task);
  expect(problems).toEqual([]);
  const lines: PreparedLine[] = [];
  for (const job of jobs) for await (const line of readPrepared(task.prepared, job)) lines.push(line);
  return lines;
}

/** Property tests work on many files. */
const runs = { numRuns: 150, seed: 20_261_125 };

describe("a good input", () => {
  const anyId = fc.string({ minLength: 1, maxLength: 40, unit: "binary" }).filter((id) => id.length <= 512);
  const anyBody = fc.dictionary(
    fc.string({ maxLength: 8 }).filter((name) => !["model", "stream", "__proto__"].includes(name)),
    fc.jsonValue(),
  );

  it("is prepared line by line, however it is spaced, marked or compressed", async () => {
    const line = fc.record({
      id: anyId,
      body: anyBody,
      blanks: fc.array(fc.constantFrom("", " ", "\t", " \t ")),
    });
    const input = fc.record({
      lines: fc.uniqueArray(line, { selector: ({ id }) => id, minLength: 1, maxLength: 60 }),
      end: fc.constantFrom("\n", "\r\n"),
      mark: fc.boolean(),
      lastEnd: fc.boolean(),
      gzip: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(input, async ({ lines, end, mark, lastEnd, gzip }) => {
        const rows = lines.flatMap(({ id, body, blanks }) => [...blanks, requestLine(id, { body })]);
        const text = (mark ? "\uFEFF" : "") + rows.join(end) + (lastEnd ? end : "");
        const found = await prepared(gzip ? gzipSync(text) : text);
        expect(found.map(({ customId }) => JSON.parse(customId))).toEqual(lines.map(({ id }) => id));
        expect(found.map(({ number }) => number)).toEqual([...lines.keys()]);
        const bodies = found.map(({ body }) => JSON.parse(Buffer.from(body).toString()));
        expect(bodies).toEqual(lines.map(({ body }) => JSON.parse(JSON.stringify(body))));
        const places = lines.map(({ id, body }) => rows.indexOf(requestLine(id, { body })) + 1);
        expect(found.map(({ inputLine }) => inputLine)).toEqual(places);
      }),
      runs,
    );
  });

  it("takes the served model, its default name, or none", async () => {
    const models = [{}, { model: "glm-test" }, { model: "default" }, { model: null }];
    const lines = models.map((fields, i) => requestLine(`${i}`, { body: { prompt: "a", ...fields } }));
    expect(await codes(lines.join("\n"))).toEqual([]);
  });

  it("may hold a million blank lines, and nothing but ends of lines as long as a file may be", async () => {
    const began = performance.now();
    const before = process.memoryUsage().rss;
    const found = await prepared("\n".repeat(1_000_000) + requestLine("a") + " \r\n".repeat(1_000_000));
    expect(found.map(({ inputLine }) => inputLine)).toEqual([1_000_001]);
    const ends = gzipSync(Buffer.alloc(maxInputBytes, 0x0a));
    expect(await codes(ends)).toEqual([["empty_file", null]]);
    // About a second and a few MB where nothing else runs.
    expect(performance.now() - began).toBeLessThan(20_000);
    expect(process.memoryUsage().rss - before).toBeLessThan(500 * 1024 * 1024);
  }, 60_000);
});

describe("a bad input", () => {
  it("names the line and what was expected", async () => {
    const lines = [
      requestLine("good"),
      "",
      "{",
      "[1]",
      '"text"',
      requestLine("a", { custom_id: undefined }),
      requestLine("a", { custom_id: 7 }),
      requestLine("a", { custom_id: "" }),
      requestLine("a", { custom_id: "x".repeat(513) }),
      requestLine("a", { method: "GET" }),
      requestLine("a", { url: undefined }),
      requestLine("a", { url: "/v1/chat/completions" }),
      requestLine("a", { body: undefined }),
      requestLine("a", { body: [] }),
      requestLine("a", { body: { model: "other" } }),
      requestLine("a", { body: { stream: true } }),
      requestLine("good"),
    ];
    const { problems, total, jobs } = await check(lines.join("\n"));
    expect(problems.map(({ code, line, param }) => [line, code, param])).toEqual([
      [3, "invalid_json_line", null],
      [4, "invalid_json_line", null],
      [5, "invalid_json_line", null],
      [6, "missing_required_parameter", "custom_id"],
      [7, "invalid_value", "custom_id"],
      [8, "invalid_value", "custom_id"],
      [9, "invalid_value", "custom_id"],
      [10, "invalid_value", "method"],
      [11, "missing_required_parameter", "url"],
      [12, "mismatched_endpoint", "url"],
      [13, "missing_required_parameter", "body"],
      [14, "invalid_value", "body"],
      [15, "mismatched_model", "body.model"],
      [16, "invalid_value", "body.stream"],
      [17, "duplicate_custom_id", "custom_id"],
    ]);
    expect(problems.at(-1)!.message).toBe(
      'custom_id: "good" stands in line 1 already, expected one of its own',
    );
    expect([total, jobs]).toEqual([0, []]);
  });

  it("is found wherever its last line is cut off", async () => {
    const whole = `${requestLine("a")}\n${requestLine("b", { body: { prompt: "日本" } })}`;
    const bytes = Buffer.from(whole);
    const first = Buffer.byteLength(requestLine("a")) + 1;
    for (let end = first + 1; end < bytes.length; end++) {
      const { problems } = await check(bytes.subarray(0, end));
      expect(problems, `${end} bytes`).toHaveLength(1);
      expect(problems[0]!.line).toBe(2);
      expect(["invalid_json_line", "invalid_encoding"]).toContain(problems[0]!.code);
    }
  });

  it("may hold any bytes: each line is good UTF-8 and a request, or is named", async () => {
    const anyLine = fc.oneof(
      fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes.filter((byte) => byte !== 0x0a))),
      fc.string({ minLength: 1, maxLength: 8 }).map((id) => Buffer.from(requestLine(id))),
      fc.constantFrom(0xff, 0xc0, 0xed, 0x80).map((byte) => {
        const line = Buffer.from(requestLine("broken byte"));
        line[20] = byte;
        return line;
      }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(anyLine, { minLength: 1, maxLength: 20 }), async (lines) => {
        const { problems, total } = await check(
          Buffer.concat(lines.flatMap((line) => [line, Buffer.from("\n")])),
        );
        const named = new Set(problems.map(({ line }) => line));
        const seen = new Set<string>();
        let good = 0;
        for (const [index, bytes] of lines.entries()) {
          const text = bytes.toString("utf8");
          const trimmed = text.replace(/\r$/, "");
          if (Buffer.from(text).equals(bytes) && /^[ \t\r]*$/.test(trimmed)) continue;
          let id: unknown;
          try {
            if (!Buffer.from(text).equals(bytes)) throw new Error("not UTF-8");
            const value = JSON.parse(trimmed);
            id = value?.custom_id;
          } catch {}
          const isGood = typeof id === "string" && id !== "" && !seen.has(id);
          if (typeof id === "string") seen.add(id);
          if (isGood) good++;
          expect(named.has(index + 1), `line ${index + 1}: ${text}`).toBe(!isGood);
        }
        const isClean = problems.length === 0;
        expect(total).toBe(isClean ? good : 0);
      }),
      runs,
    );
  });

  it("names the first bad byte", async () => {
    const line = Buffer.from(requestLine("abc"));
    const at = line.indexOf("abc") + 1;
    line[at] = 0xff;
    expect((await check(line)).problems).toEqual([
      { code: "invalid_encoding", line: 1, message: `byte ${at + 1} is 0xff, expected UTF-8`, param: null },
    ]);
  });

  it("is bounded in its lines, their length, their depth and its bytes", async () => {
    const long = requestLine("long", { body: { prompt: "x".repeat(maxLineBytes) } });
    const body = requestLine("body", { body: { prompt: "x".repeat(4 * 1024 * 1024) } });
    expect(await codes(`${long}\n${requestLine("a")}\n${body}`)).toEqual([
      ["line_too_long", 1],
      ["line_too_long", 3],
    ]);
    const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
    const nested = `{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"x":${deep}}}`;
    expect(await codes(nested)).toEqual([["invalid_value", 1]]);
    const many = Array.from({ length: maxLines + 2 }, (_, i) => requestLine(`${i}`)).join("\n");
    expect(await codes(many)).toEqual([["too_many_tasks", maxLines + 1]]);
    expect((await check(many.slice(0, many.lastIndexOf("\n", many.lastIndexOf("\n") - 1)))).total).toBe(
      maxLines,
    );
  }, 60_000);

  it("is told a hundred problems, and how many more there are", async () => {
    const { problems } = await check("{\n".repeat(1_234));
    expect(problems).toHaveLength(101);
    expect(problems[99]!.line).toBe(100);
    expect(problems[100]).toEqual({
      code: "invalid_json_line",
      line: null,
      message: "and 1134 more problems",
      param: null,
    });
  });

  it("that is empty says so", async () => {
    for (const content of ["", "\n", "\uFEFF", " \r\n\t\n", gzipSync("")]) {
      expect(await codes(content)).toEqual([["empty_file", null]]);
    }
  });

  it("that is broken gzip says so, and a bomb is not unpacked beyond the bound", async () => {
    const sound = gzipSync(`${requestLine("a")}\n${requestLine("b")}\n`);
    for (const end of [2, 3, 10, 11, sound.length - 9, sound.length - 1]) {
      const found = await check(sound.subarray(0, end));
      expect(found.problems, `${end} bytes`).toHaveLength(1);
      expect(found.problems[0]).toMatchObject({ code: "invalid_encoding", line: null });
    }
    const flipped = Buffer.from(sound);
    flipped[flipped.length - 6]! ^= 1;
    expect(await codes(flipped)).toEqual([["invalid_encoding", null]]);
    const bomb = gzipSync(Buffer.alloc(maxInputBytes + 1, 0x20));
    expect(bomb.length).toBeLessThan(1_000_000);
    const { problems } = await check(bomb);
    expect(problems).toEqual([
      expect.objectContaining({
        code: "invalid_value",
        line: null,
        message: expect.stringContaining("decompressed"),
      }),
    ]);
  }, 60_000);
});

describe("jobs", () => {
  it("cover the input without gaps, within their bounds", () => {
    const lengths = fc.oneof(
      fc.array(fc.integer({ min: 5, max: 500 }), { minLength: 1, maxLength: 20_000 }),
      fc.array(fc.integer({ min: 5, max: 4_500_000 }), { minLength: 1, maxLength: 300 }),
    );
    fc.assert(
      fc.property(lengths, (all) => {
        let line = 0;
        let offset = 0;
        for (const job of cutJobs(all)) {
          expect([job.firstLine, job.offset]).toEqual([line, offset]);
          expect(job.lines).toBeGreaterThan(0);
          expect(job.lines).toBeLessThanOrEqual(jobLines.most);
          const bytes = all.slice(line, line + job.lines).reduce((sum, each) => sum + each, 0);
          expect(job.bytes).toBe(bytes);
          expect(job.lines === 1 || bytes <= maxJobBytes).toBe(true);
          line += job.lines;
          offset += bytes;
        }
        expect(line).toBe(all.length);
      }),
      { numRuns: 60, seed: 1 },
    );
  });

  it("have 32 to 256 lines of usual length", () => {
    const linesOf = (count: number) =>
      cutJobs(Array.from({ length: count }, () => 100)).map(({ lines }) => lines);
    expect(linesOf(1)).toEqual([1]);
    expect(linesOf(33)).toEqual([32, 1]);
    expect(linesOf(6_400)).toEqual(Array.from({ length: 64 }, () => 100));
    expect(Math.max(...linesOf(50_000))).toBe(256);
  });
});

it("the names of a prepared input are read in its order", async () => {
  const ids = Array.from({ length: 3_000 }, (_, i) => `${"é\t\n".repeat(i % 90)}${i}`);
  const task = checkTask(folder(), ids.map((id) => requestLine(id)).join("\n\n"));
  await checkInput(task);
  const names = [...preparedNames(task.prepared)];
  expect(names.map(({ customId }) => JSON.parse(customId))).toEqual(ids);
  expect(names.map(({ inputLine }) => inputLine)).toEqual(ids.map((_, i) => 2 * i + 1));
  expect(readFileSync(task.prepared).at(-1)).toBe(0x0a);
});
