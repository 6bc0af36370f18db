/**
 * The CUDA backend by emulation: kernels against float64 references, and what its barriers are for. Sources of
 * the checks are in cuda_check/, the emulation is in cuda_emulation/ (docs/cuda.md).
 */

import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";

/** Runs a group; returns how many checks there were. */
function checks(group: string): number {
  const program = join(packageRoot, "build", "native", "cuda_check");
  const { status, stdout, stderr } = spawnSync(program, [group], { encoding: "utf8" });
  expect(stdout).not.toContain("FAILED");
  expect(status, stdout + stderr).toBe(0);
  const found = new RegExp(`^${group}: (\\d+) checks, 0 failed$`, "m").exec(stdout);
  expect(found, stdout).not.toBeNull();
  return Number(found![1]);
}

test("norms, activations, sums and conversions are those of float64, rounded", () => {
  expect(checks("elementwise")).toBeGreaterThan(60);
});

test("products of every weight format are within 2e-3 of float64, whatever the sizes, and the same in every tile", () => {
  expect(checks("products")).toBeGreaterThan(1_500);
});

test("experts: choices are those of the CPU, and grouped products the same bits as one by one", () => {
  expect(checks("experts")).toBeGreaterThan(1_000);
});

test("attention over a paged cache is that of float64, and the same in every task, part and company", () => {
  expect(checks("attention")).toBeGreaterThan(3_000);
});

test("every barrier, and every wait for copies, is missed when it is taken away", () => {
  expect(checks("barriers")).toBeGreaterThan(55);
});
