/**
 * The native engine under the thread sanitizer, inside Node: stages that load, compute and close, alone and many at
 * once, with thread pools, weight caches and drivers. Only code that is built with it is watched, which is ours.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { preloaded, runProgram } from "../support/sanitizers.js";

const build = join(packageRoot, "build", "native-threads");

let reports: string;
beforeEach(() => {
  reports = mkdtempSync(join(tmpdir(), "glm-relay-races-"));
});
afterEach(() => rmSync(reports, { recursive: true, force: true }));

/** Runs a program; what the sanitizer says, in it and in its children, is in `races`. */
function watched(command: string, args: string[]) {
  const { status, stdout, stderr } = runProgram(command, args, {
    ...preloaded("libtsan.so"),
    GLM_RELAY_ADDON: join(build, "glm_relay.node"),
    TSAN_OPTIONS: `ignore_noninstrumented_modules=1 log_path=${join(reports, "race")}`,
  });
  const races = readdirSync(reports).map((name) => readFileSync(join(reports, name), "utf8"));
  return { status, output: stdout + stderr, races: races.join("\n") };
}

beforeAll(() => {
  const { status, stderr } = runProgram("sh", ["native/build.sh", "--sanitize-threads"]);
  expect(status, stderr).toBe(0);
}, 600_000);

test("the sanitizer sees two tasks of a thread pool that write the same number", () => {
  const module = JSON.stringify(join(build, "planted_race.node"));
  const { races, output } = watched(process.execPath, ["-e", `require(${module}).plantedRace()`]);
  expect(races, output).toMatch(/data race/);
  expect(races).toMatch(/plantedRace/);
});

test("and sees nothing where stages of every kind work", () => {
  const { status, output, races } = watched("node_modules/.bin/vitest", [
    "run",
    "test/native",
    // Single kernels know no threads.
    "--exclude",
    "**/kernels.test.ts",
    // The library of the emulated GPU is not built with it: what orders its accesses would not be seen.
    ...["cuda", "cuda-rows", "device", "gpu-memory"].flatMap((name) => ["--exclude", `**/${name}.test.ts`]),
    // Minutes of the scalar kernels; what they are spread over is the same as elsewhere.
    "--exclude",
    "**/rows.test.ts",
    // The sanitizer's own file does not fit into the limit on files that this test sets.
    "--testNamePattern",
    "^(?!.*a file that the system does not let grow)",
  ]);
  expect(races).toBe("");
  expect(status, output).toBe(0);
  expect(output).toMatch(/Tests .*\d+ passed/);
});
