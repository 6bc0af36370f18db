/** Reads the ledgers of a batch, one per process that worked on it. Blocks: for threads only. */
import { closeSync, openSync, readSync } from "node:fs";
import { parseRecord, type ReadRecord } from "./ledger-record.js";
import { maxRecordBytes } from "./limits.js";

const chunkBytes = 1024 * 1024;
const newline = 0x0a;

/** A record that is torn or damaged: its line is answered again. */
export interface UnsoundRecord {
  file: string;
  offset: number;
}

/** A sound record, and where its output lies in its file. */
export type FoundRecord = ReadRecord & { outputOffset: number; outputBytes: number };

/**
 * @param take Called for each sound record, in the order of the file.
 * @param unsound Called for each other one; the last one may have been cut off.
 * @throws what the operating system says when the file cannot be read.
 */
export function readLedger(
  path: string,
  take: (record: FoundRecord) => void,
  unsound: (record: UnsoundRecord) => void,
): void {
  const file = openSync(path, "r");
  try {
    const chunk = Buffer.alloc(chunkBytes);
    let parts: Buffer[] = [];
    let length = 0;
    /** Of the record under way. */
    let offset = 0;
    const finish = (last: Buffer, ended: boolean) => {
      const bytes = length + last.length;
      const whole =
        bytes > maxRecordBytes ? null : parts.length === 0 ? last : Buffer.concat([...parts, last]);
      const record = whole === null || !ended ? null : parseRecord(whole);
      if (record === null) unsound({ file: path, offset });
      else {
        const { outputAt } = record;
        take({ ...record, outputOffset: offset + outputAt, outputBytes: bytes - outputAt });
      }
      offset += bytes + 1;
      parts = [];
      length = 0;
    };
    for (;;) {
      const read = readSync(file, chunk, 0, chunk.length, null);
      if (read === 0) break;
      const bytes = chunk.subarray(0, read);
      let begin = 0;
      for (let end = bytes.indexOf(newline); end >= 0; end = bytes.indexOf(newline, begin)) {
        finish(bytes.subarray(begin, end), true);
        begin = end + 1;
      }
      const rest = bytes.subarray(begin);
      length += rest.length;
      if (length <= maxRecordBytes && rest.length > 0) parts.push(Buffer.from(rest));
      else if (length > maxRecordBytes) parts = [];
    }
    if (length > 0) finish(Buffer.alloc(0), false);
  } finally {
    closeSync(file);
  }
}
