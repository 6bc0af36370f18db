/** The directory in which `up` keeps Redis data, logs and, where it was named, packed weights. */
import { copyFileSync, mkdirSync, mkdtempSync, realpathSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A log above this size starts anew; the previous contents stay beside it as NAME.log.1. */
const logBytesMax = 64 * 1024 * 1024;

export class DataDir {
  readonly path: string;
  /** A directory we made ourselves goes when all went well; one that was named belongs to its owner. */
  private readonly temporary: boolean;
  private readonly logFiles = new Set<string>();

  constructor(named?: string) {
    this.temporary = named === undefined;
    if (named === undefined) {
      this.path = realpathSync(mkdtempSync(join(tmpdir(), "glm-relay-")));
    } else {
      mkdirSync(named, { recursive: true, mode: 0o700 });
      this.path = realpathSync(named);
    }
  }

  folder(name: string): string {
    const path = join(this.path, name);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return path;
  }

  logFile(name: string): string {
    const file = join(this.folder("logs"), `${name}.log`);
    this.logFiles.add(file);
    return file;
  }

  /** Copies and truncates, because the children keep their logs open (for appending) all the time. */
  trimLogs(): void {
    for (const file of this.logFiles) {
      if ((statSync(file, { throwIfNoEntry: false })?.size ?? 0) <= logBytesMax) continue;
      copyFileSync(file, `${file}.1`);
      truncateSync(file);
    }
  }

  removeIfTemporary(): void {
    if (this.temporary) rmSync(this.path, { recursive: true, force: true });
  }
}
