/** The directory of `--data`: files and batches lie below it, and one coordinator alone works on it. */
import { mkdir, realpath } from "node:fs/promises";
import type { Server } from "node:net";
import { join } from "node:path";
import { RelayError } from "../../common/errors.js";
import { lockName, tryLock } from "../../common/lock.js";

export class DataDirectory {
  /** Without symbolic links. */
  readonly path: string;
  readonly #lock: Server;

  private constructor(path: string, lock: Server) {
    this.path = path;
    this.#lock = lock;
  }

  /**
   * Makes it where it is missing, and locks it for as long as this process lives or until `close`.
   * @throws RelayError invalid_configuration when it cannot be used, or another coordinator has it.
   */
  static async open(named: string): Promise<DataDirectory> {
    let path: string;
    try {
      await mkdir(named, { recursive: true, mode: 0o700 });
      path = await realpath(named);
    } catch (cause) {
      throw unusable(named, (cause as Error).message, cause);
    }
    const lock = await tryLock(lockName(path));
    if (lock === null) {
      throw unusable(
        path,
        "another coordinator works on this directory, expected one coordinator per directory",
      );
    }
    return new DataDirectory(path, lock);
  }

  /** Path of a folder of this name, which is there then. */
  async folder(name: string): Promise<string> {
    const path = join(this.path, name);
    try {
      await mkdir(path, { recursive: true, mode: 0o700 });
    } catch (cause) {
      throw unusable(this.path, (cause as Error).message, cause);
    }
    return path;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => this.#lock.close(() => resolve()));
  }
}

/** Of a directory that cannot be read or written as it should be. */
export function unusable(path: string, reason: string, cause?: unknown): RelayError {
  return new RelayError("invalid_configuration", `--data ${path}: ${reason}`, { cause });
}
