/** The file that a command writes: its true name, and the lock that keeps two from writing it. */
import { realpath, stat } from "node:fs/promises";
import type { Server } from "node:net";
import { basename, dirname, join } from "node:path";
import { lockName, tryLock } from "../../common/lock.js";
import { CommandError } from "../errors.js";

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

/** @throws CommandError when another command holds it. The lock ends with the process at the latest. */
export async function lockOutput(file: string): Promise<Server> {
  const lock = await tryLock(lockName(file));
  if (lock !== null) return lock;
  throw new CommandError(`another run writes ${file}: wait for its end, or choose another output file`);
}
