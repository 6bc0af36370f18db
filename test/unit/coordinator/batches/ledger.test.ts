import { appendFileSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type FoundRecord,
  readLedger,
  type UnsoundRecord,
} from "../../../../coordinator/batches/ledger-reader.js";
import {
  formatRecord,
  type LedgerRecord,
  parseRecord,
} from "../../../../coordinator/batches/ledger-record.js";
import { LedgerWriter } from "../../../../coordinator/batches/ledger-writer.js";
import {
  countLines,
  lineState,
  type MergeTask,
  mergeLedgers,
} from "../../../../coordinator/batches/merge.js";
import { preparedLine } from "../../../../coordinator/batches/prepared.js";
import { testFolder } from "./support.js";

const folder = testFolder();
const noUsage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0, reasoningTokens: 0 };
const usage = { promptTokens: 11, cachedTokens: 3, completionTokens: 7, reasoningTokens: 2 };
const output = (line: number, text = "answer") => JSON.stringify({ custom_id: `c${line}`, text });
const record = (line: number, ok = true, text = "answer") =>
  formatRecord({ line, ok, usage }, output(line, text));

function read(bytes: Buffer): { found: FoundRecord[]; unsound: UnsoundRecord[]; outputs: string[] } {
  const path = join(folder(), "ledger");
  writeFileSync(path, bytes);
  const found: FoundRecord[] = [];
  const unsound: UnsoundRecord[] = [];
  readLedger(
    path,
    (each) => found.push(each),
    (each) => unsound.push(each),
  );
  const outputs = found.map(({ outputOffset, outputBytes }) =>
    bytes.toString("utf8", outputOffset, outputOffset + outputBytes),
  );
  return { found, unsound, outputs };
}

describe("a record", () => {
  it("comes back as it was written", () => {
    const count = fc.integer({ min: 0, max: 999_999_999_999 });
    const anyUsage = fc.record({
      promptTokens: count,
      cachedTokens: count,
      completionTokens: count,
      reasoningTokens: count,
    });
    const any = fc.record({ line: fc.integer({ min: 0, max: 49_999 }), ok: fc.boolean(), usage: anyUsage });
    fc.assert(
      fc.property(any, fc.jsonValue(), (written: LedgerRecord, value) => {
        const text = JSON.stringify(value);
        const bytes = formatRecord(written, text);
        expect(bytes.indexOf(0x0a)).toBe(bytes.length - 1);
        const { outputAt, ...parsed } = parseRecord(bytes.subarray(0, -1))!;
        expect(parsed).toEqual(written);
        expect(bytes.toString("utf8", outputAt, bytes.length - 1)).toBe(text);
      }),
      { numRuns: 500, seed: 3 },
    );
  });

  it("is refused when it is cut off anywhere or a bit of it has flipped", () => {
    const bytes = record(12, true, "日本語 \\n");
    for (let end = 0; end < bytes.length - 1; end++) expect(parseRecord(bytes.subarray(0, end))).toBeNull();
    for (let at = 0; at < bytes.length - 1; at++) {
      for (let bit = 0; bit < 8; bit++) {
        const flipped = Buffer.from(bytes);
        flipped[at]! ^= 1 << bit;
        expect(parseRecord(flipped.subarray(0, -1)), `byte ${at}, bit ${bit}`).toBeNull();
      }
    }
  });
});

describe("a ledger", () => {
  it("that is torn at any byte of its last record keeps all before it", () => {
    const sound = Buffer.concat([record(0), record(1, false)]);
    const last = record(2);
    for (let length = 0; length <= last.length; length++) {
      const { found, unsound } = read(Buffer.concat([sound, last.subarray(0, length)]));
      const isWhole = length === last.length;
      expect(found.map(({ line, ok }) => [line, ok])).toEqual(
        isWhole
          ? [
              [0, true],
              [1, false],
              [2, true],
            ]
          : [
              [0, true],
              [1, false],
            ],
      );
      const isTorn = length > 0 && !isWhole;
      expect(unsound.map(({ offset }) => offset)).toEqual(isTorn ? [sound.length] : []);
    }
  });

  it("loses the damaged record alone", () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 0, max: 7 }), (place, bit) => {
        const records = [0, 1, 2, 3, 4].map((line) => record(line));
        const bytes = Buffer.concat(records);
        const at = place % bytes.length;
        bytes[at]! ^= 1 << bit;
        const { found, outputs } = read(bytes);
        let hit = 0;
        for (let end = records[0]!.length; at >= end; end += records[hit]!.length) hit++;
        // A newline that is lost, or that comes to be, costs its neighbour too.
        const others = [0, 1, 2, 3, 4].filter((line) => line !== hit);
        const kept = found.map(({ line }) => line);
        for (const line of others) if (!kept.includes(line)) expect(line).toBe(hit + 1);
        expect(kept).not.toContain(hit);
        expect(outputs).toEqual(kept.map((line) => output(line)));
      }),
      { numRuns: 400, seed: 5 },
    );
  });

  it("is read in pieces of any size: records of a megabyte and more", () => {
    const texts = [10, 1_500_000, 3, 1_048_576, 900_000].map((length) => "x".repeat(length));
    const { found, outputs, unsound } = read(
      Buffer.concat(texts.map((text, line) => record(line, true, text))),
    );
    expect(found.map(({ line }) => line)).toEqual([0, 1, 2, 3, 4]);
    expect(outputs).toEqual(texts.map((text, line) => output(line, text)));
    expect(unsound).toEqual([]);
  });

  it("is written in groups, in order, and each record is there when it counts", async () => {
    const path = join(folder(), "ledger-1.jsonl");
    const writer = await LedgerWriter.open(path, () => undefined);
    const records = Array.from({ length: 500 }, (_, line) => record(line));
    let counted = 0;
    const appends = records.map(async (each, line) => {
      await writer.append(each);
      expect(statSync(path).size).toBeGreaterThanOrEqual(Buffer.concat(records.slice(0, line + 1)).length);
      counted++;
    });
    await Promise.all(appends);
    expect(counted).toBe(500);
    // One after the other, each as soon as the one before counts.
    for (let line = 500; line < 520; line++) await writer.append(record(line));
    await writer.close();
    expect(readFileSync(path)).toEqual(
      Buffer.concat([...records, ...Array.from({ length: 20 }, (_, i) => record(500 + i))]),
    );
    await expect(LedgerWriter.open(path, () => undefined)).rejects.toMatchObject({ code: "EEXIST" });
  });
});

describe("merging", () => {
  const total = 40;
  const ids = Array.from({ length: total }, (_, line) => `c${line}`);

  function task(ledgers: Buffer[]): MergeTask {
    const paths = ledgers.map((bytes, index) => {
      const path = join(folder(), `ledger-${index}.jsonl`);
      writeFileSync(path, bytes);
      return path;
    });
    const prepared = join(folder(), "input");
    writeFileSync(
      prepared,
      Buffer.concat(ids.map((id, line) => preparedLine(line + 1, id, '{"prompt":[1]}'))),
    );
    return {
      batchId: "batch_x",
      total,
      ledgers: paths,
      prepared,
      output: join(folder(), "output.jsonl"),
      error: join(folder(), "error.jsonl"),
      unanswered: { code: "batch_expired", message: "too late" },
    };
  }
  const linesOf = (path: string) =>
    readFileSync(path, "utf8")
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line));

  it("gives each custom_id one line over both files, in the order of the input, the first answer of each", () => {
    const answer = fc.record({ line: fc.nat({ max: total + 2 }), ok: fc.boolean() });
    fc.assert(
      fc.property(
        fc.array(fc.array(answer, { maxLength: 40 }), { maxLength: 4 }),
        fc.nat({ max: 60 }),
        (terms, torn) => {
          const ledgers = terms.map((answers, term) => {
            const bytes = Buffer.concat(answers.map(({ line, ok }, at) => record(line, ok, `${term}.${at}`)));
            // A process that was killed in the middle of a write.
            return Buffer.concat([bytes, record(1, true, "x".repeat(100)).subarray(0, torn)]);
          });
          const first = new Map<number, { ok: boolean; text: string }>();
          for (const [term, answers] of terms.entries()) {
            for (const [at, { line, ok }] of answers.entries()) {
              if (line < total && !first.has(line)) first.set(line, { ok, text: `${term}.${at}` });
            }
          }
          const merge = task(ledgers);
          const result = mergeLedgers(merge);
          const [output, errors] = [linesOf(merge.output), linesOf(merge.error)];
          const done = [...first].filter(([, { ok }]) => ok).sort(([a], [b]) => a - b);
          expect(output.map(({ custom_id, text }) => [custom_id, text])).toEqual(
            done.map(([line, { text }]) => [`c${line}`, text]),
          );
          expect(errors.map(({ custom_id }) => custom_id)).toEqual(
            ids.filter((_, line) => first.get(line)?.ok !== true),
          );
          const failed = first.size - done.length;
          expect(result).toMatchObject({
            completed: done.length,
            failed,
            outputLines: done.length,
            errorLines: total - done.length,
          });
          expect(result.usage.promptTokens).toBe(11 * first.size);
          for (const { custom_id, error } of errors) {
            if (!first.has(Number(custom_id.slice(1))))
              expect(error).toEqual({ code: "batch_expired", message: "too late" });
          }
          const counted = countLines(merge);
          expect([counted.completed, counted.failed]).toEqual([done.length, failed]);
          for (let line = 0; line < total; line++) {
            const ok = first.get(line)?.ok;
            const state = ok === undefined ? lineState.open : ok ? lineState.completed : lineState.failed;
            expect(counted.states[line]).toBe(state);
          }
        },
      ),
      { numRuns: 150, seed: 11 },
    );
  });

  it("gives the same files when it is begun again, whatever the first time has left", () => {
    const merge = task([Buffer.concat([record(3), record(1, false)]), record(0)]);
    mergeLedgers(merge);
    const files = [readFileSync(merge.output), readFileSync(merge.error)];
    for (const cut of [0, 1, 50, files[1]!.length - 1]) {
      writeFileSync(merge.output, files[0]!.subarray(0, cut));
      writeFileSync(merge.error, Buffer.concat([files[1]!.subarray(0, cut), Buffer.from("rubbish")]));
      mergeLedgers(merge);
      expect([readFileSync(merge.output), readFileSync(merge.error)]).toEqual(files);
    }
  });

  it("needs the input for lines without an answer alone", () => {
    const merge = {
      ...task([Buffer.concat(ids.map((_, line) => record(line)))]),
      prepared: join(folder(), "gone"),
    };
    expect(existsSync(merge.prepared)).toBe(false);
    expect(mergeLedgers(merge)).toMatchObject({ outputLines: total, errorLines: 0 });
    appendFileSync(merge.ledgers[0]!, "torn");
    expect(mergeLedgers(merge).unsound).toHaveLength(1);
  });
});

it("usage of nothing is nothing", () => {
  expect(countLines({ ledgers: [], total: 3 })).toEqual({
    states: new Uint8Array(3),
    completed: 0,
    failed: 0,
    usage: noUsage,
    unsound: [],
  });
});
