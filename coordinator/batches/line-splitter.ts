/**
 * Lines of a JSONL file, cut out of its bytes as they come: neither file nor line is held beyond a bound. A byte
 * order mark in front of the first line, carriage returns and blank lines are not part of what is given on.
 */

const newline = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;
const tab = 0x09;
const byteOrderMark = [0xef, 0xbb, 0xbf] as const;

export interface Line {
  /** From 1, blank lines counted. */
  number: number;
  /** Without its end; null when it is too long. Only good until the call returns. */
  bytes: Buffer | null;
}

export class LineSplitter {
  readonly #maxBytes: number;
  readonly #take: (line: Line) => void;
  /** Of a line whose end is not there yet, copies: the caller may use its buffer again. */
  #parts: Buffer[] = [];
  #length = 0;
  #number = 0;

  /**
   * @param maxBytes A longer line is read to its end, thrown away and given on without its bytes.
   * @param take Called for each line that is not blank.
   */
  constructor(maxBytes: number, take: (line: Line) => void) {
    this.#maxBytes = maxBytes;
    this.#take = take;
  }

  push(chunk: Buffer): void {
    let begin = this.#skipEmpty(chunk, 0);
    for (let end = chunk.indexOf(newline, begin); end >= 0; end = chunk.indexOf(newline, begin)) {
      this.#finish(chunk.subarray(begin, end));
      begin = this.#skipEmpty(chunk, end + 1);
    }
    if (begin < chunk.length) this.#keep(chunk.subarray(begin));
  }

  /** The last line need not have an end. */
  end(): void {
    if (this.#length > 0) this.#finish(Buffer.alloc(0));
  }

  /** A file may be nothing but ends of lines, of which 200 MB take less than a second this way. */
  #skipEmpty(chunk: Buffer, from: number): number {
    let at = from;
    while (this.#length === 0 && chunk[at] === newline) at++;
    this.#number += at - from;
    return at;
  }

  #keep(part: Buffer): void {
    this.#length += part.length;
    if (this.#length <= this.#maxBytes) this.#parts.push(Buffer.from(part));
    else this.#parts = [];
  }

  #finish(last: Buffer): void {
    this.#number++;
    const length = this.#length + last.length;
    const bytes = length > this.#maxBytes ? null : this.#length === 0 ? last : this.#whole(last);
    this.#parts = [];
    this.#length = 0;
    if (bytes === null) {
      this.#take({ number: this.#number, bytes });
      return;
    }
    const trimmed = trim(bytes, this.#number === 1);
    if (!isBlank(trimmed)) this.#take({ number: this.#number, bytes: trimmed });
  }

  #whole(last: Buffer): Buffer {
    return Buffer.concat([...this.#parts, last]);
  }
}

function trim(line: Buffer, first: boolean): Buffer {
  const isMarked = first && byteOrderMark.every((byte, at) => line[at] === byte);
  const end = line.at(-1) === carriageReturn ? line.length - 1 : line.length;
  return line.subarray(isMarked ? byteOrderMark.length : 0, end);
}

/** Nothing but spaces, tabs and carriage returns. */
function isBlank(bytes: Buffer): boolean {
  for (const byte of bytes) if (byte !== space && byte !== tab && byte !== carriageReturn) return false;
  return true;
}
