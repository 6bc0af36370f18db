/**
 * From the ledgers of a batch to its output and error file, both in the order of the input. The same ledgers give the
 * same files, however often this is begun anew. Blocks: for threads only (work.ts).
 */
import { closeSync, openSync, readSync } from "node:fs";
import { FileWriter } from "./file-writer.js";
import { type FoundRecord, readLedger, type UnsoundRecord } from "./ledger-reader.js";
import type { LineUsage } from "./ledger-record.js";
import { unansweredLine } from "./output-line.js";
import { type LineName, preparedNames } from "./prepared.js";

/** Unsound records that are told. */
const maxUnsound = 16;

export interface CountTask {
  /** In the order in which they were begun. */
  ledgers: string[];
  /** Lines of the input. */
  total: number;
}

/** What stands in the ledgers, each line once. */
export interface CountResult {
  /** By line: one of lineState. */
  states: Uint8Array;
  completed: number;
  failed: number;
  usage: LineUsage;
  unsound: UnsoundRecord[];
}

export const lineState = { open: 0, completed: 1, failed: 2 } as const;

export interface MergeTask extends CountTask {
  batchId: string;
  prepared: string;
  /** Paths of what is written; earlier files are replaced. */
  output: string;
  error: string;
  /** Why lines that stand in no ledger have no answer. */
  unanswered: { code: string; message: string };
}

export interface MergeResult extends Omit<CountResult, "states"> {
  outputLines: number;
  errorLines: number;
}

export function countLines({ ledgers, total }: CountTask): CountResult {
  const { states, ...counted } = indexLedgers(ledgers, total);
  return { states, ...counted.sums };
}

export function mergeLedgers(task: MergeTask): MergeResult {
  const { total, ledgers } = task;
  const index = indexLedgers(ledgers, total);
  const files = ledgers.map((path) => openSync(path, "r"));
  const output = new FileWriter(task.output);
  const error = new FileWriter(task.error);
  const names = index.sums.completed + index.sums.failed < total ? preparedNames(task.prepared) : null;
  const result: MergeResult = { ...index.sums, outputLines: 0, errorLines: 0 };
  try {
    for (let line = 0; line < total; line++) {
      const name = names?.next().value as LineName | undefined;
      const state = index.states[line];
      if (state === lineState.open) {
        error.write(unansweredLine(task.batchId, name!, task.unanswered));
        result.errorLines++;
        continue;
      }
      // The newline behind it is the record's own.
      const bytes = Buffer.allocUnsafe(index.bytes[line]! + 1);
      readWhole(files[index.ledger[line]!]!, bytes, index.offset[line]!);
      if (state === lineState.completed) {
        output.write(bytes);
        result.outputLines++;
      } else {
        error.write(bytes);
        result.errorLines++;
      }
    }
    output.finish();
    error.finish();
    return result;
  } finally {
    names?.return(undefined);
    output.close();
    error.close();
    for (const file of files) closeSync(file);
  }
}

/** Where the answer to each line lies: some bytes for each. */
function indexLedgers(ledgers: readonly string[], total: number) {
  const states = new Uint8Array(total);
  const ledger = new Uint16Array(total);
  const offset = new Float64Array(total);
  const bytes = new Uint32Array(total);
  const usage: LineUsage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0, reasoningTokens: 0 };
  const sums = { completed: 0, failed: 0, usage, unsound: [] as UnsoundRecord[] };
  const unsound = (record: UnsoundRecord) => {
    if (sums.unsound.length < maxUnsound) sums.unsound.push(record);
  };
  for (const [which, path] of ledgers.entries()) {
    const take = (record: FoundRecord) => {
      const { line } = record;
      if (line >= total) {
        unsound({ file: path, offset: record.outputOffset - record.outputAt });
        return;
      }
      // Two processes may have answered it: what was told first stays.
      if (states[line] !== lineState.open) return;
      states[line] = record.ok ? lineState.completed : lineState.failed;
      ledger[line] = which;
      offset[line] = record.outputOffset;
      bytes[line] = record.outputBytes;
      if (record.ok) sums.completed++;
      else sums.failed++;
      addUsage(usage, record.usage);
    };
    readLedger(path, take, unsound);
  }
  return { states, ledger, offset, bytes, sums };
}

export function addUsage(sum: LineUsage, more: LineUsage): void {
  sum.promptTokens += more.promptTokens;
  sum.cachedTokens += more.cachedTokens;
  sum.completionTokens += more.completionTokens;
  sum.reasoningTokens += more.reasoningTokens;
}

function readWhole(file: number, bytes: Buffer, offset: number): void {
  for (let at = 0; at < bytes.length; ) {
    const read = readSync(file, bytes, at, bytes.length - at, offset + at);
    if (read === 0) throw new Error(`a ledger ends ${bytes.length - at} bytes too early`);
    at += read;
  }
}
