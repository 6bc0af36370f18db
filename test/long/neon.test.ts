/**
 * The kernels for 64-bit Arm on a machine that is none: kernel_check, built by a cross compiler and run by
 * qemu-aarch64. Every result is compared with scalar on the emulated CPU, and all of them together with what
 * this machine computes.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { engineInfo } from "../../native/index.js";
import { kernelChecks, kernelGroups, missingPrograms, nativeKernelCheck } from "../support/kernel-check.js";

const missing = missingPrograms("aarch64-linux-gnu-g++", "qemu-aarch64");
if (missing.length > 0) console.log(`skipped: kernels for Arm, because ${missing.join(" and ")} is missing`);

const program = join(packageRoot, "build", "native-aarch64", "kernel_check");
/** Armv8.2 with byte dot products and nothing that came later. */
const withDotProducts = ["qemu-aarch64", "-cpu", "cortex-a76", program];
/** Armv8.0. */
const without = ["qemu-aarch64", "-cpu", "cortex-a57", program];

beforeAll(() => {
  if (missing.length > 0) return;
  const { status, stderr } = spawnSync("sh", ["native/build.sh", "--aarch64"], {
    cwd: packageRoot,
    encoding: "utf8",
  });
  expect(status, stderr).toBe(0);
}, 900_000);

test.skipIf(missing.length > 0).each(Object.entries(kernelGroups))(
  "neon %s equals scalar, and gives the bits of this machine",
  (group, atLeast) => {
    const { checks, digest } = kernelChecks(withDotProducts, "neon", group);
    expect(checks).toBeGreaterThan(atLeast);
    expect({ checks, digest }).toEqual(kernelChecks([nativeKernelCheck], engineInfo().available[0]!, group));
  },
);

test.skipIf(missing.length > 0)("a CPU without byte dot products is offered scalar alone, which runs", () => {
  const [emulator, ...before] = without;
  const { status, stdout } = spawnSync(emulator!, [...before, "neon", "matmul"], { encoding: "utf8" });
  expect([status, stdout]).toEqual([2, "no kernels named neon on this CPU\n"]);
  expect(kernelChecks(without, "scalar", "elementwise").checks).toBeGreaterThan(kernelGroups.elementwise);
  expect(kernelChecks(without, "scalar", "philox").checks).toBeGreaterThan(10_000);
});
