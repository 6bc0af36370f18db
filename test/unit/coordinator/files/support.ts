/** Stores over real directories, and a clock that is set. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { onTestFinished } from "vitest";
import type { Clock } from "../../../../common/clock.js";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import type { NewFile } from "../../../../coordinator/files/file.js";
import { FileStore } from "../../../../coordinator/files/store.js";

export const log = pino({ level: "silent" });

export function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-files-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Time of day that a test sets. */
export class WallClock {
  ms = Date.UTC(2026, 0, 1);
  timeOfDayMs = (): number => this.ms;
  passS(seconds: number): void {
    this.ms += seconds * 1_000;
  }
}

export const stillClock: Clock = { nowMs: () => 0 };

/** A disk with room for all that a test writes. */
export const largeDisk = new DiskGuard("/", 0, stillClock, async () => 1e12);

export interface StoreSettings {
  guard?: DiskGuard;
  clock?: WallClock;
  filesBytes?: number;
}

export function openStore(directory: string, settings: StoreSettings = {}): Promise<FileStore> {
  const { guard = largeDisk, clock = new WallClock(), filesBytes = null } = settings;
  return FileStore.open(directory, { guard, timers: clock, log, filesBytes });
}

export const about = (rest: Partial<NewFile> = {}): NewFile => ({
  filename: "in.jsonl",
  purpose: "batch",
  tenant: "default",
  expiresAfterS: null,
  ...rest,
});

export async function* chunks(...texts: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) yield typeof text === "string" ? Buffer.from(text) : text;
}

export const everything = { after: null, limit: 1_000, order: "asc", purpose: null } as const;
