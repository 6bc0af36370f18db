/** Lines of a JSONL file as bytes, one at a time: neither file nor line is held beyond a bound. */
import { createReadStream } from "node:fs";
import { CommandError } from "../errors.js";

const chunkBytes = 256 * 1024;
const newline = 0x0a;
const carriageReturn = 0x0d;
const byteOrderMark = Buffer.from([0xef, 0xbb, 0xbf]);

export interface Line {
  /** From 1. */
  number: number;
  /** Without the line's end, and without a byte order mark in front of the first; null when too long. */
  bytes: Buffer | null;
  /** False for a last line without a newline: what wrote it may have been cut off. */
  ended: boolean;
}

/**
 * Yields every line but blank ones; lines end in LF or CRLF.
 * @param lineBytesMax A longer line is read to its end, thrown away and yielded without its bytes.
 * @throws CommandError when the file cannot be read.
 */
export async function* readLines(file: string, lineBytesMax: number): AsyncGenerator<Line> {
  let parts: Buffer[] = [];
  let length = 0;
  let number = 1;
  const take = (part: Buffer) => {
    length += part.length;
    if (length <= lineBytesMax) parts.push(part);
    else parts = [];
  };
  const finish = (ended: boolean): Line | null => {
    const bytes = length <= lineBytesMax ? trim(Buffer.concat(parts), number === 1) : null;
    const line = { number, bytes, ended };
    parts = [];
    length = 0;
    number += 1;
    return bytes !== null && isBlank(bytes) ? null : line;
  };
  for await (const chunk of chunksOf(file)) {
    let begin = 0;
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, begin)) {
      take(chunk.subarray(begin, end));
      begin = end + 1;
      const line = finish(true);
      if (line !== null) yield line;
    }
    take(chunk.subarray(begin));
  }
  if (length === 0) return;
  const last = finish(false);
  if (last !== null) yield last;
}

async function* chunksOf(file: string): AsyncGenerator<Buffer> {
  try {
    yield* createReadStream(file, { highWaterMark: chunkBytes }) as AsyncIterable<Buffer>;
  } catch (error) {
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
}

function trim(line: Buffer, first: boolean): Buffer {
  const begin = first && line.subarray(0, 3).equals(byteOrderMark) ? 3 : 0;
  const end = line.at(-1) === carriageReturn ? line.length - 1 : line.length;
  return line.subarray(begin, end);
}

/** Nothing but spaces and tabs. */
function isBlank(bytes: Buffer): boolean {
  return bytes.every((byte) => byte === 0x20 || byte === 0x09);
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of these bytes; a position when they are not UTF-8. */
export function decode(bytes: Buffer): { text: string } | { badByteAt: number } {
  try {
    return { text: decoder.decode(bytes) };
  } catch {
    // Replacing what is bad and encoding again gives other bytes from the first bad one on.
    const again = Buffer.from(bytes.toString("utf8"));
    let at = 0;
    while (at < bytes.length && bytes[at] === again[at]) at += 1;
    return { badByteAt: at };
  }
}
