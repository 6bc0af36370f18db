/** The output file of a batch while it grows: locked, appended to line by line, synced at short intervals. */
import { type FileHandle, open, realpath, stat } from "node:fs/promises";
import type { Server } from "node:net";
import { basename, dirname, join } from "node:path";
import { CommandError } from "../errors.js";
import { lockName, tryLock } from "../../common/lock.js";
import { syncFolder } from "./resume.js";

/** A power failure costs at most the lines of so long; a killed process costs none. */
const syncDelayMs = 1_000;

/** A file's true path, so that it has one lock under all its names, and a rename replaces it and no link. */
export async function outputPath(named: string): Promise<string> {
  try {
    const found = await stat(named).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return null;
      throw error;
    });
    if (found === null) return join(await realpath(dirname(named)), basename(named));
    if (!found.isFile()) throw new Error(`${named} is not a regular file`);
    return await realpath(named);
  } catch (error) {
    throw new CommandError(`cannot write ${named}: ${(error as Error).message}`);
  }
}

/** @throws CommandError when another run holds it. The lock ends with the process at the latest. */
export async function lockOutput(file: string): Promise<Server> {
  const lock = await tryLock(lockName(file));
  if (lock !== null) return lock;
  throw new CommandError(`another run writes ${file}: wait for its end, or choose another output file`);
}

export class OutputFile {
  /** What was asked last; everything is done in the order in which it was asked. */
  #tail: Promise<void> = Promise.resolve();
  #syncTimer: NodeJS.Timeout | null = null;
  /** After a failure the last line may be torn, so nothing may follow it. */
  #failure: CommandError | null = null;

  private constructor(
    private readonly file: string,
    private readonly handle: FileHandle,
  ) {}

  static async open(file: string): Promise<OutputFile> {
    try {
      const handle = await open(file, "a");
      await syncFolder(file);
      return new OutputFile(file, handle);
    } catch (error) {
      throw new CommandError(`cannot write ${file}: ${(error as Error).message}`);
    }
  }

  /**
   * Resolves when the system has the line, which then outlives this process.
   * @throws CommandError when it could not be written, and for every line after that.
   */
  append(line: string): Promise<void> {
    return this.#next(async () => {
      await this.handle.appendFile(line);
      this.#syncTimer ??= setTimeout(() => {
        this.#syncTimer = null;
        // The next line, or the end, tells of the failure.
        this.#next(() => this.handle.datasync()).catch(() => undefined);
      }, syncDelayMs);
    });
  }

  /** Resolves when all lines are on disk. @throws CommandError when a line or the end failed. */
  async close(): Promise<void> {
    if (this.#syncTimer) clearTimeout(this.#syncTimer);
    try {
      await this.#next(() => this.handle.sync());
    } finally {
      await this.handle.close();
    }
  }

  #next(action: () => Promise<void>): Promise<void> {
    const result = this.#tail.then(async () => {
      if (this.#failure) throw this.#failure;
      try {
        await action();
      } catch (error) {
        this.#failure = new CommandError(`cannot write ${this.file}: ${(error as Error).message}`);
        throw this.#failure;
      }
    });
    this.#tail = result.catch(() => undefined);
    return result;
  }
}
