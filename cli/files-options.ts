/** How much of files and batches is kept under --data, and for how long. */
import type { Command } from "commander";
import { integer, size, sizeOrNone } from "./options.js";

/** Longer than anybody keeps what can be computed again. */
const filesDaysMax = 3_650;

export interface FilesFlags {
  diskReserve: number;
  filesDays: number;
  filesBytes?: number;
}

export function addFilesOptions(command: Command): Command {
  return command
    .option(
      "--disk-reserve <size>",
      "room on the disk of --data that files and new batches leave, like 256MiB, or 0",
      sizeOrNone,
      256 * 1024 * 1024,
    )
    .option(
      "--files-days <n>",
      "days after which uploaded files, batches and their answers are deleted",
      integer(1, filesDaysMax),
      30,
    )
    .option(
      "--files-bytes <size>",
      "all files together, like 100GiB; above it the oldest are deleted (default: no bound)",
      size,
    );
}
