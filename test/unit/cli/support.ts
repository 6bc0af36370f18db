/** What the command's tests share: the built command, scratch folders, waiting. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { packageRoot } from "../../../common/package.js";

export const mainScript = join(packageRoot, "dist/cli/main.js");
export const fixture = (name: string) => join(packageRoot, "test/unit/cli/fixtures", name);

export interface CommandResult {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `glm-relay` as a user would; `input` becomes its standard input. */
export function glmRelay(
  args: string[],
  options: { env?: NodeJS.ProcessEnv; input?: string } = {},
): Promise<CommandResult> {
  return new Promise((resolve) => {
    const { REDIS_URL: _, ...clean } = process.env;
    const child = execFile(
      process.execPath,
      [mainScript, ...args],
      { env: { ...clean, ...options.env }, timeout: 15_000 },
      (error, stdout, stderr) => {
        resolve({ status: error ? ((error.code as unknown as number) ?? null) : 0, stdout, stderr });
      },
    );
    child.stdin?.end(options.input ?? "");
  });
}

/** A folder that is gone after the test. */
export function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-test-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Polls until `condition` holds. */
export async function eventually(
  condition: () => boolean | Promise<boolean>,
  limitMs = 5_000,
): Promise<void> {
  const endMs = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`not within ${limitMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** True while the process runs; one that ended but was not yet collected does not. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  return !/^\d+ \(.*\) Z/.test(readStat(pid));
}

function readStat(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return "0 () Z";
  }
}

/** A file that is gone after the test. */
export function scratchFile(name: string, text: string): string {
  const file = join(scratch(), name);
  writeFileSync(file, text);
  return file;
}
