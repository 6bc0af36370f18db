/**
 * The CUDA backend by emulation, as if it were a GPU of this machine (docs/cuda.md). GLM_RELAY_TEST_DEVICE=cuda:N lets
 * the same tests run on a real one, with the library that `make cuda` has built.
 */

import { join } from "node:path";
import { packageRoot } from "../../common/package.js";
import { chooseDevice, type Gpu } from "../../native/index.js";

const realDevice = process.env.GLM_RELAY_TEST_DEVICE ?? "";
export const emulated = realDevice === "";
export const testDevice = realDevice === "" ? "cuda:0" : realDevice;
/** Built beside the engine; never part of a release. */
export const emulatedLibrary = join(packageRoot, "build", "native", "libglm_relay_cuda_emulated.so");
const realLibrary = join(packageRoot, "build", "cuda", "libglm_relay_cuda.so");
export const testLibrary = realDevice === "" ? emulatedLibrary : realLibrary;

/** @param path Which instructions: those of sm_80, or those that sm_75 has too. */
export function testGpu(path: "" | "turing" = ""): Gpu {
  const before = { library: process.env.GLM_RELAY_CUDA_LIBRARY, path: process.env.GLM_RELAY_CUDA_PATH };
  process.env.GLM_RELAY_CUDA_LIBRARY = testLibrary;
  process.env.GLM_RELAY_CUDA_PATH = path;
  try {
    return chooseDevice(testDevice)!;
  } finally {
    restore("GLM_RELAY_CUDA_LIBRARY", before.library);
    restore("GLM_RELAY_CUDA_PATH", before.path);
  }
}

function restore(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}
