/**
 * The end of a ledger that grows: one write and one wait for the disk for all records that have come meanwhile. A
 * record counts when its `append` has resolved. While the disk takes nothing (it is full) nothing counts and nothing
 * is lost: the file's end is put right and the same is tried again.
 */
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { RelayError } from "../../common/errors.js";
import { syncFolder } from "../files/durable.js";
import { diskRetryMs } from "./limits.js";

/** A write waits for others to come: hundreds of lines are under way, and none of them is in a hurry. */
const gatherMs = 4;
/** Bytes of one write, beside its first record. */
const maxGroupBytes = 4 * 1024 * 1024;

interface Waiting {
  record: Buffer;
  resolve: () => void;
  reject: (error: RelayError) => void;
}

export class LedgerWriter {
  readonly #file: FileHandle;
  readonly #trouble: (error: Error | null) => void;
  readonly #retryMs: number;
  /** In order; bounded by the window of lines that are being answered. */
  #waiting: Waiting[] = [];
  /** Where the next record goes: everything before is safe. */
  #end = 0;
  /** Whoever comes meanwhile is written too. */
  #isWriting = false;
  #writing: Promise<void> = Promise.resolve();
  #closed = false;
  #endPause: (() => void) | null = null;

  /**
   * @param path Of a file that is not there yet.
   * @param trouble Told why the disk takes nothing, once, and null when it does again.
   * @throws what the operating system says.
   */
  static async open(
    path: string,
    trouble: (error: Error | null) => void,
    retryMs = diskRetryMs,
  ): Promise<LedgerWriter> {
    const file = await open(path, "wx");
    await syncFolder(dirname(path));
    return new LedgerWriter(file, trouble, retryMs);
  }

  private constructor(file: FileHandle, trouble: (error: Error | null) => void, retryMs: number) {
    this.#file = file;
    this.#trouble = trouble;
    this.#retryMs = retryMs;
  }

  /**
   * @param record With its newline.
   * @returns Resolves when it is safe from a power failure.
   * @throws RelayError draining when the ledger was closed before it was.
   */
  append(record: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ record, resolve, reject });
      if (this.#isWriting) return;
      this.#isWriting = true;
      this.#writing = this.#write();
    });
  }

  /** What waits is written if the disk takes it now, and rejected otherwise. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#endPause?.();
    await this.#writing;
    await this.#file.close();
  }

  async #write(): Promise<void> {
    let troubled = false;
    while (this.#waiting.length > 0) {
      if (!this.#closed) await this.#pause(gatherMs);
      const count = this.#groupSize();
      const group = Buffer.concat(this.#waiting.slice(0, count).map(({ record }) => record));
      try {
        await this.#writeAll(group);
        await this.#file.datasync();
      } catch (error) {
        if (!troubled) this.#trouble(error as Error);
        troubled = true;
        await this.#repair(error as Error);
        continue;
      }
      if (troubled) this.#trouble(null);
      troubled = false;
      this.#end += group.length;
      for (const { resolve } of this.#waiting.splice(0, count)) resolve();
    }
    // Not a turn later: whoever was just told may come with the next record at once.
    this.#isWriting = false;
  }

  #groupSize(): number {
    let bytes = 0;
    let count = 0;
    for (const { record } of this.#waiting) {
      bytes += record.length;
      if (count > 0 && bytes > maxGroupBytes) break;
      count++;
    }
    return count;
  }

  async #writeAll(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const { bytesWritten } = await this.#file.write(bytes, at, bytes.length - at, this.#end + at);
      at += bytesWritten;
    }
  }

  /** What was written in part is no record. */
  async #repair(error: Error): Promise<void> {
    await this.#file.truncate(this.#end).catch(() => undefined);
    if (this.#closed) {
      const closed = new RelayError("draining", "the ledger was closed before its disk took the answer", {
        cause: error,
      });
      for (const { reject } of this.#waiting.splice(0)) reject(closed);
      return;
    }
    await this.#pause(this.#retryMs);
  }

  /** Ends early when the ledger is closed. */
  async #pause(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#endPause = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#endPause = null;
  }
}
