/**
 * One line of a ledger, an answer that is final:
 * `<crc32 of the rest> <line> <1: answered, 0: failed> <prompt> <cached> <completion> <reasoning tokens> <output>`,
 * the output being the JSON that will stand in the output or error file.
 */
import { crc32 } from "node:zlib";
import type { LineAnswer } from "./batch.js";

export type LineUsage = LineAnswer["usage"];

export interface LedgerRecord {
  /** Of the input, counted from 0. */
  line: number;
  ok: boolean;
  usage: LineUsage;
}

export interface ReadRecord extends LedgerRecord {
  /** Where its output begins, in bytes from the record's first. */
  outputAt: number;
}

const crcDigits = 8;
/** Line, verdict and four counts, each at most sixteen digits. */
const maxHeadBytes = crcDigits + 1 + 6 * 17;
const head = /^[0-9a-f]{8} (\d{1,9}) ([01]) (\d{1,15}) (\d{1,15}) (\d{1,15}) (\d{1,15}) /;

/** @param output JSON without a newline in it. */
export function formatRecord({ line, ok, usage }: LedgerRecord, output: string): Buffer {
  const { promptTokens, cachedTokens, completionTokens, reasoningTokens } = usage;
  const counts = `${promptTokens} ${cachedTokens} ${completionTokens} ${reasoningTokens}`;
  const record = Buffer.from(`${"0".repeat(crcDigits)} ${line} ${ok ? 1 : 0} ${counts} ${output}\n`);
  record.write(checksum(record.subarray(crcDigits + 1, -1)), "latin1");
  return record;
}

/** @param record Without its newline. @returns Null for one that is torn or damaged. */
export function parseRecord(record: Buffer): ReadRecord | null {
  const found = head.exec(record.toString("latin1", 0, maxHeadBytes));
  if (found === null) return null;
  if (record.toString("latin1", 0, crcDigits) !== checksum(record.subarray(crcDigits + 1))) return null;
  const [whole, line, ok, promptTokens, cachedTokens, completionTokens, reasoningTokens] = found;
  return {
    line: Number(line),
    ok: ok === "1",
    usage: {
      promptTokens: Number(promptTokens),
      cachedTokens: Number(cachedTokens),
      completionTokens: Number(completionTokens),
      reasoningTokens: Number(reasoningTokens),
    },
    outputAt: whole.length,
  };
}

const checksum = (bytes: Buffer): string => crc32(bytes).toString(16).padStart(crcDigits, "0");
