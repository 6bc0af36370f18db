/** The CUDA backend by emulation, as if it were a GPU of this machine (docs/cuda.md). */

import { join } from "node:path";
import { packageRoot } from "../../common/package.js";
import { chooseDevice, type Gpu } from "../../native/index.js";

/** Built beside the engine; never part of a release. */
export const emulatedLibrary = join(packageRoot, "build", "native", "libglm_relay_cuda_emulated.so");

/** @param path Which instructions: those of sm_80, or those that sm_75 has too. */
export function emulatedGpu(path: "" | "turing" = ""): Gpu {
  const before = { library: process.env.GLM_RELAY_CUDA_LIBRARY, path: process.env.GLM_RELAY_CUDA_PATH };
  process.env.GLM_RELAY_CUDA_LIBRARY = emulatedLibrary;
  process.env.GLM_RELAY_CUDA_PATH = path;
  try {
    return chooseDevice("cuda:0")!;
  } finally {
    restore("GLM_RELAY_CUDA_LIBRARY", before.library);
    restore("GLM_RELAY_CUDA_PATH", before.path);
  }
}

function restore(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}
