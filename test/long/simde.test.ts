/**
 * The x86 variants on a machine that may lack their instructions: the same sources, with SIMDe's portable
 * code in place of AVX2, AVX-VNNI and AVX-512 VNNI, against scalar.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { kernelChecks, kernelGroups, nativeKernelCheck } from "../support/kernel-check.js";

const compiler = process.env.CXX ?? "g++";
const header = "simde/x86/avx512.h";
const { status: notFound } = spawnSync(compiler, ["-E", "-x", "c++", "-"], {
  input: `#if !__has_include(<${header}>)\n#error\n#endif\n`,
});
const missing = notFound !== 0;
if (missing) console.log(`skipped: x86 kernels by SIMDe, because ${compiler} finds no <${header}>`);

const program = join(packageRoot, "build", "native-simde", "kernel_check");

beforeAll(() => {
  if (missing) return;
  const { status, stderr } = spawnSync("sh", ["native/build.sh", "--simde"], {
    cwd: packageRoot,
    encoding: "utf8",
  });
  expect(status, stderr).toBe(0);
}, 900_000);

describe.skipIf(missing).each(["avx512-vnni", "avx-vnni", "avx2"])("%s through SIMDe", (variant) => {
  test.each(Object.entries(kernelGroups))("%s equals scalar", (group, atLeast) => {
    const { checks, digest } = kernelChecks([program], variant, group);
    expect(checks).toBeGreaterThan(atLeast);
    expect({ checks, digest }).toEqual(kernelChecks([nativeKernelCheck], "scalar", group));
  });
});

test.skipIf(missing)("the program has no instruction of AVX", () => {
  const { status, stdout } = spawnSync("objdump", ["-d", "--no-show-raw-insn", program], {
    encoding: "utf8",
    maxBuffer: 1024 * 1024 * 1024,
  });
  expect(status).toBe(0);
  expect(stdout).toMatch(/%xmm|%rax|\bv\d+\./);
  expect(stdout).not.toMatch(/%[yz]mm\d/);
});
