/**
 * The input of a batch as it is run: of each line where it stood in the input, its custom_id as JSON and the body of
 * its request as JSON, with tabs between them and a newline behind. So nothing has to be parsed to find either, and no tab or newline stands in JSON that we have written.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { open } from "node:fs/promises";

/** A part of a prepared input: the work of one job. */
export interface JobCut {
  offset: number;
  bytes: number;
  /** Counted from 0. */
  firstLine: number;
  lines: number;
}

/** Of a line that is run. */
export interface LineName {
  /** Of the client's file, from 1, blank lines counted. */
  inputLine: number;
  /** As JSON. */
  customId: string;
}

export interface PreparedLine extends LineName {
  /** Counted from 0, blank lines not counted. */
  number: number;
  /** JSON; an array of its own, which may move to a thread. */
  body: Uint8Array<ArrayBuffer>;
}

const tab = 0x09;
const newline = 0x0a;
const chunkBytes = 256 * 1024;

export function preparedLine(inputLine: number, customId: string, body: string): Buffer {
  return Buffer.from(`${inputLine}\t${JSON.stringify(customId)}\t${body}\n`);
}

/**
 * The lines of a job, read as they are taken.
 * @throws what the operating system says when the file cannot be read; Error when it has been cut off.
 */
export async function* readPrepared(
  path: string,
  { offset, bytes, firstLine }: JobCut,
): AsyncGenerator<PreparedLine> {
  const file = await open(path, "r");
  try {
    let rest = Buffer.alloc(0);
    let number = firstLine;
    const end = offset + bytes;
    for (let at = offset; at < end; ) {
      const chunk = Buffer.alloc(Math.min(chunkBytes, end - at));
      const { bytesRead } = await file.read(chunk, 0, chunk.length, at);
      if (bytesRead === 0) throw new Error(`${path} ends after ${at} of ${end} bytes`);
      at += bytesRead;
      rest =
        rest.length === 0
          ? chunk.subarray(0, bytesRead)
          : Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
      let begin = 0;
      for (let stop = rest.indexOf(newline); stop >= 0; stop = rest.indexOf(newline, begin)) {
        yield split(rest.subarray(begin, stop), number++);
        begin = stop + 1;
      }
      rest = rest.subarray(begin);
    }
  } finally {
    await file.close();
  }
}

/** The names of all lines of a prepared input in its order. Blocks: for threads only. */
export function* preparedNames(path: string): Generator<LineName> {
  const file = openSync(path, "r");
  try {
    const chunk = Buffer.alloc(chunkBytes);
    let parts: Buffer[] = [];
    /** Of the line: 0 and 1 are its name, 2 is its body. */
    let field = 0;
    for (;;) {
      const length = readSync(file, chunk, 0, chunk.length, null);
      if (length === 0) return;
      const bytes = chunk.subarray(0, length);
      for (let at = 0; at < length; ) {
        const stop = bytes.indexOf(field === 2 ? newline : tab, at);
        const end = stop < 0 ? length : stop + 1;
        if (field < 2) parts.push(Buffer.from(bytes.subarray(at, end)));
        at = end;
        if (stop < 0) break;
        if (field === 1) {
          yield nameOf(Buffer.concat(parts).toString());
          parts = [];
        }
        field = (field + 1) % 3;
      }
    }
  } finally {
    closeSync(file);
  }
}

function split(line: Buffer, number: number): PreparedLine {
  const at = line.indexOf(tab, line.indexOf(tab) + 1);
  return { ...nameOf(line.toString("utf8", 0, at)), number, body: new Uint8Array(line.subarray(at + 1)) };
}

function nameOf(text: string): LineName {
  const [inputLine, customId] = text.split("\t");
  return { inputLine: Number(inputLine), customId: customId! };
}
