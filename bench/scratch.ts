/** Temporary directories that end with the process, also when a signal or an error ends it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const directories = new Set<string>();
process.once("exit", () => directories.forEach(removeScratch));

export function makeScratch(): string {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-bench-"));
  directories.add(directory);
  return directory;
}

export function removeScratch(directory: string): void {
  rmSync(directory, { recursive: true, force: true });
  directories.delete(directory);
}
