/** Runs kernel_check (sources: test/native/kernel_check), which compares a kernel variant with scalar by ==. */

import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect } from "vitest";
import { packageRoot } from "../../common/package.js";

/** The kernel_check that was built with the engine. */
export const nativeKernelCheck = join(packageRoot, "build", "native", "kernel_check");

/** Groups of checks that a variant must pass, and how many checks each has at least. */
export const kernelGroups = {
  matmul: 1_000_000,
  quant: 1_000_000,
  attention: 100_000,
  elementwise: 100_000,
  conversions: 1_000_000,
  math: 1_000_000,
} as const;

export interface KernelChecks {
  checks: number;
  /** Of all bits that the variant computed, NaNs made equal. */
  digest: string;
}

/**
 * Runs one group. Fails with the program's own words, and when another variant than the named one has run.
 * @param command The program, with whatever must stand in front of it.
 */
export function kernelChecks(command: readonly string[], variant: string, group: string): KernelChecks {
  const [program, ...before] = command;
  const { status, stdout, stderr } = spawnSync(program!, [...before, variant, group], { encoding: "utf8" });
  expect(stdout, `${command.join(" ")} ${variant} ${group}`).not.toContain("FAILED");
  expect(status, stdout + stderr).toBe(0);
  // The name comes from the table of functions that was checked.
  const found = new RegExp(`^${variant} ${group}: (\\d+) checks, 0 failed, digest ([0-9a-f]{16})$`, "m").exec(
    stdout,
  );
  expect(found, stdout).not.toBeNull();
  return { checks: Number(found![1]), digest: found![2]! };
}

/** Those of the programs that are not on the PATH. */
export function missingPrograms(...names: string[]): string[] {
  return names.filter((name) => spawnSync("sh", ["-c", `command -v ${name}`]).status !== 0);
}
