/**
 * How much may still be written: the disk is never filled to its end, so that ledgers of running batches and Redis,
 * which often share it, can go on when new files are refused.
 */
import { statfs } from "node:fs/promises";
import type { Clock } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";

/** Others write too: after so long the disk is asked again. */
const figureAgeMs = 1_000;
/** A full disk is cleaned by people, or by what runs once a minute. */
const retryAfterS = 60;

export class DiskGuard {
  readonly #directory: string;
  readonly #reserveBytes: number;
  readonly #clock: Clock;
  readonly #freeBytes: (directory: string) => Promise<number>;
  /** As the disk said when it was last asked, less what has been taken since. */
  #free = 0;
  #askedMs = Number.NEGATIVE_INFINITY;

  /**
   * @param directory On the disk in question.
   * @param reserveBytes Stay free.
   * @param freeBytes What the disk says, as it is for a process without privileges.
   */
  constructor(directory: string, reserveBytes: number, clock: Clock, freeBytes = freeBytesOf) {
    this.#directory = directory;
    this.#reserveBytes = reserveBytes;
    this.#clock = clock;
    this.#freeBytes = freeBytes;
  }

  /** @throws RelayError storage_full unless so many bytes can be written beside the reserve. */
  async requireRoom(bytes: number): Promise<void> {
    if (this.#clock.nowMs() - this.#askedMs >= figureAgeMs) {
      const free = await this.#freeBytes(this.#directory);
      this.#free = free;
      this.#askedMs = this.#clock.nowMs();
    }
    const room = Math.max(0, this.#free - this.#reserveBytes);
    if (bytes <= room) return;
    throw storageFull(
      `the coordinator's disk has room for ${room} bytes beside its reserve of ${this.#reserveBytes}, ` +
        `expected ${bytes}`,
    );
  }

  /** The same for bytes that are written at once: what the disk said last counts without them. */
  async take(bytes: number): Promise<void> {
    await this.requireRoom(bytes);
    this.#free -= bytes;
  }
}

export function storageFull(message: string, cause?: unknown): RelayError {
  return new RelayError("storage_full", message, { retryAfterS, cause });
}

/** Whether a write failed because there was no room, on the disk or in a quota. */
export function isDiskFull(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return code === "ENOSPC" || code === "EDQUOT";
}

/** What a write threw, as storage_full where that is what it means. */
export function asStorageFull(error: unknown): unknown {
  return isDiskFull(error) ? storageFull("the coordinator's disk is full", error) : error;
}

async function freeBytesOf(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}
