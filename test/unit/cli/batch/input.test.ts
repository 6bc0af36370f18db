import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type CheckedInput,
  checkInput,
  problemsShownMax,
  readRequests,
  requestsMax,
} from "../../../../cli/batch/input.js";
import { customIdCharsMax, inputLineBytesMax } from "../../../../cli/batch/request-line.js";
import { scratch } from "../support.js";
import { jsonl, requestLine } from "./support.js";

function fileOf(contents: string | Uint8Array): string {
  const file = join(scratch(), "in.jsonl");
  writeFileSync(file, contents);
  return file;
}

async function check(contents: string | Uint8Array): Promise<CheckedInput & { file: string }> {
  const file = fileOf(contents);
  return { ...(await checkInput(file)), file };
}

/** The first problem without the file's name. */
async function problemOf(contents: string | Uint8Array): Promise<string | undefined> {
  const { problems, file } = await check(contents);
  return problems[0]?.replace(`${file}:`, "");
}

const line = (changes: Record<string, unknown>) => jsonl([{ ...requestLine("a"), ...changes }]);

describe("the input of a batch", () => {
  it("takes what editors and other systems make of such a file", async () => {
    const text = `\ufeff${JSON.stringify(requestLine("a"))}\r\n\r\n${JSON.stringify({ ...requestLine("b"), extra: 1 })}`;
    const { lineOf, problemCount } = await check(text);
    expect(problemCount).toBe(0);
    expect([...lineOf]).toEqual([
      ["a", 1],
      ["b", 3],
    ]);
  });

  it.each([
    ["{", /^1: not JSON \(.+\), expected one object$/],
    ["[1]\n", /^1: the line: \[\.\.\.\], expected an object \{"custom_id"/],
    [line({ custom_id: undefined }), /^1: custom_id: missing, expected a string of 1 to 512 characters$/],
    [line({ custom_id: 7 }), /^1: custom_id: 7, expected a string/],
    [line({ custom_id: "" }), /^1: custom_id: "", expected a string/],
    [line({ custom_id: "x".repeat(customIdCharsMax + 1) }), /^1: custom_id: "x{60}"\.\.\., expected/],
    [line({ method: "GET" }), /^1: method: "GET", expected "POST"$/],
    [line({ method: undefined }), /^1: method: missing, expected "POST"$/],
    [
      line({ url: "/v1/embeddings" }),
      /^1: url: "\/v1\/embeddings", expected "\/v1\/chat\/completions" or "\/v1\/completions"$/,
    ],
    [line({ body: "{}" }), /^1: body: "\{\}", expected an object/],
    [line({ body: { stream: true } }), /^1: body\.stream: true, expected false or none/],
    [line({ body: { stream: "yes" } }), /^1: body\.stream: "yes", expected false or none/],
    [`\n${jsonl([requestLine("a"), requestLine("a")])}`, /^3: custom_id: "a" stands in line 2 already/],
    [
      `{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"x":${"[".repeat(1e5)}${"]".repeat(1e5)}}}`,
      /^1: body: nested too deeply/,
    ],
    [
      `${" ".repeat(inputLineBytesMax + 1)}\n`,
      new RegExp(`^1: the line is too long, expected at most ${inputLineBytesMax}`),
    ],
  ])("refuses line %# and names line, field, value and what was expected", async (contents, message) => {
    expect(await problemOf(contents)).toMatch(message);
  });

  it("takes stream: false and null, which ask for nothing", async () => {
    const lines = [requestLine("a", { stream: false }), requestLine("b", { stream: null })];
    expect((await check(jsonl(lines))).problemCount).toBe(0);
  });

  it("refuses a file without requests, and one with too many before it reads on", async () => {
    await expect(check("\n \r\n")).rejects.toThrow(/in\.jsonl holds no requests$/);
    const many = Array.from({ length: requestsMax + 1 }, (_, index) => requestLine(String(index)));
    await expect(check(jsonl(many))).rejects.toThrow(/holds more than 50,000 requests: cut it/);
    expect((await check(jsonl(many.slice(1)))).lineOf.size).toBe(requestsMax);
  });

  it("lists so many problems and counts the others", async () => {
    const { problems, problemCount } = await check("x\n".repeat(problemsShownMax + 5));
    expect(problems).toHaveLength(problemsShownMax);
    expect(problemCount).toBe(problemsShownMax + 5);
  });

  it("finds every broken line among good ones, and only those", async () => {
    const good = { break: (text: Buffer) => text, bad: false };
    const kinds = [
      good,
      good,
      { break: (text: Buffer, at: number) => text.subarray(0, 1 + (at % (text.length - 1))), bad: true },
      {
        break: (text: Buffer, at: number) => {
          const bytes = Buffer.from(text);
          bytes[at % bytes.length] = 0xff;
          return bytes;
        },
        bad: true,
      },
      { break: () => Buffer.alloc(inputLineBytesMax + 1, "x"), bad: true },
      { break: () => Buffer.from(JSON.stringify(requestLine("the same"))), bad: true },
    ];
    const first = Buffer.from(JSON.stringify(requestLine("the same")));
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.constantFrom(...kinds), fc.nat()), { maxLength: 12 }),
        fc.boolean(),
        async (rows, ended) => {
          const lines = rows.map(([kind, at], index) =>
            kind.break(Buffer.from(JSON.stringify(requestLine(`熊-${index}`))), at),
          );
          const newline = Buffer.from("\n");
          const all = [first, ...lines].flatMap((each) => [each, newline]);
          const { lineOf, problemCount, problems } = await check(
            Buffer.concat(ended ? all : all.slice(0, -1)),
          );
          const bad = rows.flatMap(([kind], index) => (kind.bad ? [index + 2] : []));
          expect(problems.map((problem) => Number(/\.jsonl:(\d+): /.exec(problem)![1]))).toEqual(bad);
          expect(problemCount).toBe(bad.length);
          expect(lineOf.size).toBe(rows.length - bad.length + 1);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("gives the bodies as they were, and notices a file that changes in between", async () => {
    const body = { prompt: "熊\ud83d", n: 1.5e300, nested: { a: [null, true] } };
    const file = fileOf(jsonl([requestLine("a", body), requestLine("b")]));
    const { lineOf } = await checkInput(file);
    const read = async () => {
      const requests = [];
      for await (const request of readRequests(file, lineOf)) requests.push(request);
      return requests;
    };
    const [request] = await read();
    expect(request).toMatchObject({ customId: "a", url: "/v1/completions" });
    expect(JSON.parse(request!.body)).toEqual(requestLine("a", body).body);
    appendFileSync(file, jsonl([requestLine("c")]));
    await expect(read()).rejects.toThrow(/in\.jsonl was changed while it was being sent/);
    writeFileSync(file, jsonl([requestLine("a")]));
    await expect(read()).rejects.toThrow(/was changed/);
  });
});
