/** Writes a file from its first byte on, in large pieces, and waits for the disk. Blocks: for threads only. */
import { closeSync, fdatasyncSync, openSync, rmSync, writeSync } from "node:fs";

const bufferBytes = 256 * 1024;

export class FileWriter {
  readonly #path: string;
  readonly #file: number;
  #open = true;
  #parts: Buffer[] = [];
  #buffered = 0;

  /** An earlier file of that name is emptied. @throws what the operating system says, as do all others. */
  constructor(path: string) {
    this.#path = path;
    this.#file = openSync(path, "w");
  }

  /** @param bytes Kept until it is written: not to be changed. */
  write(bytes: Buffer): void {
    this.#parts.push(bytes);
    this.#buffered += bytes.length;
    if (this.#buffered >= bufferBytes) this.#flush();
  }

  /** What was written is safe from a power failure once this returns, but for the name of the file. */
  finish(): void {
    this.#flush();
    fdatasyncSync(this.#file);
    this.#open = false;
    closeSync(this.#file);
  }

  /** Removes what was not finished: it would hold the last bytes of a full disk. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#file);
    rmSync(this.#path, { force: true });
  }

  #flush(): void {
    const bytes = Buffer.concat(this.#parts);
    this.#parts = [];
    this.#buffered = 0;
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#file, bytes, at);
  }
}
