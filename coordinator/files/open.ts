/** What a coordinator with `--data` has: the locked directory, room on its disk, the files, and what cleans up. */
import { systemTimers } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import { DataDirectory, unusable } from "./data-directory.js";
import { DiskGuard } from "./disk.js";
import { Retention } from "./retention.js";
import { FileStore } from "./store.js";

/** Room for ledgers and for Redis, which often lies on the same disk. */
export const defaultDiskReserveBytes = 256 * 1024 * 1024;
export const defaultFilesDays = 30;

const dayMs = 24 * 60 * 60 * 1_000;

export interface DataOptions {
  /** Directory; made where it is missing. */
  data: string;
  /** Bytes of its disk that stay free; default defaultDiskReserveBytes. */
  diskReserve?: number;
  /** Days after which every file goes; default defaultFilesDays. */
  filesDays?: number;
  /** Bytes of all files together, above which the oldest go; default: no bound. */
  filesBytes?: number;
}

export interface OpenData {
  directory: DataDirectory;
  guard: DiskGuard;
  files: FileStore;
  /** Gives the directory free for another process. */
  close(): Promise<void>;
}

/** @throws RelayError invalid_configuration when the directory cannot be used, or another coordinator has it. */
export async function openData(options: DataOptions, log: Logger): Promise<OpenData> {
  const { diskReserve = defaultDiskReserveBytes, filesDays = defaultFilesDays, filesBytes = null } = options;
  const directory = await DataDirectory.open(options.data);
  try {
    const guard = new DiskGuard(directory.path, diskReserve, systemTimers);
    const files = await FileStore.open(directory.path, { guard, timers: systemTimers, log, filesBytes });
    const retention = new Retention(files, filesDays * dayMs, systemTimers, log);
    return {
      directory,
      guard,
      files,
      close: async () => {
        await retention.close();
        await directory.close();
      },
    };
  } catch (error) {
    await directory.close();
    throw error instanceof RelayError ? error : unusable(directory.path, (error as Error).message, error);
  }
}
