/**
 * The native engine under the address and undefined-behaviour sanitizers: every check of single kernels,
 * and the tests of stages and of every family inside Node. The first mistake ends the program that makes it.
 */
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { engineInfo } from "../../native/index.js";
import { preloaded, runProgram } from "../support/sanitizers.js";

const build = join(packageRoot, "build", "native-sanitized");
const checkGroups = ["matmul", "quant", "attention", "elementwise", "conversions", "math", "philox"];

beforeAll(() => {
  const { status, stderr } = runProgram("sh", ["native/build.sh", "--sanitize"]);
  expect(status, stderr).toBe(0);
}, 600_000);

test("the sanitizers see a read behind the end of an array, and a shift that is none", () => {
  for (const [group, report] of [
    ["planted-read", /AddressSanitizer: heap-buffer-overflow/],
    ["planted-shift", /runtime error: shift exponent/],
  ] as const) {
    const { status, stderr } = runProgram(join(build, "kernel_check"), ["scalar", group]);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(report);
  }
});

for (const variant of engineInfo().available) {
  test.each(checkGroups)(`${variant} %s runs clean`, (group) => {
    const { status, stdout, stderr } = runProgram(join(build, "kernel_check"), [variant, group]);
    expect(status, stdout + stderr).toBe(0);
    expect(stdout).toMatch(/[1-9]\d* checks, 0 failed/);
  });
}

test("stages of every family run clean inside Node, whatever they are asked", () => {
  const { status, stdout, stderr } = runProgram(
    "node_modules/.bin/vitest",
    ["run", "test/native", "test/golden", "--exclude", "**/kernels.test.ts"],
    {
      GLM_RELAY_ADDON: join(build, "glm_relay.node"),
      ...preloaded("libasan.so", "libubsan.so"),
      // Node itself keeps memory until the process ends.
      ASAN_OPTIONS: "detect_leaks=0",
    },
  );
  expect(status, stdout + stderr).toBe(0);
  expect(stdout).toMatch(/Tests .*\d+ passed/);
  expect(stdout + stderr).not.toMatch(/AddressSanitizer|runtime error/);
});
