/** Where nvcc is there: the CUDA library is compiled, its kernels spill no registers, and it can be opened. */
import { spawnSync } from "node:child_process";
import { expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { loadAddon } from "../../native/addon-loader.js";
import { testLibrary } from "../support/test-gpu.js";

test("make cuda compiles for every GPU, and reports registers and spills", async (context) => {
  const { stdout, stderr, status } = spawnSync("sh", ["native/cuda/build.sh", "--report"], {
    cwd: packageRoot,
    encoding: "utf8",
    // What is not there yet is not fetched by a test.
    env: { ...process.env, GLM_RELAY_FETCH_NVCC: "0" },
  });
  expect(status, stdout + stderr).toBe(0);
  const skipped = /^CUDA backend: not built: (.*)$/m.exec(stdout);
  context.skip(skipped !== null, skipped?.[1]);
  const kernels = [...stdout.matchAll(/^(sm_\d+) +\d+ registers, (\d+) bytes spilled/gm)];
  expect(new Set(kernels.map(([, gpu]) => gpu))).toEqual(
    new Set(["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"]),
  );
  for (const [line, , spilled] of kernels) expect(Number(spilled), line).toBe(0);
  const library = testLibrary.replace("native/libglm_relay_cuda_emulated", "cuda/libglm_relay_cuda");
  try {
    expect(loadAddon().cudaDevices(library)).toEqual(expect.any(Array));
  } catch (error) {
    // Without a GPU the library itself must have been opened, and found no driver.
    expect((error as Error).message).toContain("the GPU failed while being looked for");
  }
}, 900_000);
