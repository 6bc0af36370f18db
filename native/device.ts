/** What a stage computes on: the CPU, or a GPU through the CUDA library (docs/cuda.md). */

import { existsSync } from "node:fs";
import { cudaLibraryFile, loadAddon } from "./addon-loader.js";

export interface Gpu {
  /** The CUDA library that drives it. */
  library: string;
  /** As CUDA counts. */
  index: number;
  /** Compute with the instructions of sm_75, whatever the GPU has; GLM_RELAY_CUDA_PATH=turing says so. */
  turing: boolean;
  name: string;
  /** "8.6" */
  computeCapability: string;
  bytes: number;
}

/**
 * The device that "auto", "cpu" or "cuda:N" means here; null is the CPU, which "auto" takes where there is no CUDA
 * library, no driver or no GPU.
 * @throws Error for another text, and for a GPU that is not there.
 */
export function chooseDevice(wanted: string): Gpu | null {
  if (wanted === "cpu") return null;
  const found = /^cuda:(\d{1,3})$/.exec(wanted);
  if (found === null && wanted !== "auto") {
    throw new Error(`device ${wanted}: expected auto, cpu or cuda:N`);
  }
  if (found === null) return firstGpu();
  const library = cudaLibraryFile();
  if (!existsSync(library)) throw new Error(`device ${wanted}: ${noLibrary(library)}`);
  const index = Number(found[1]);
  const gpus = gpusOf(library);
  const gpu = gpus[index];
  if (gpu === undefined) throw new Error(`device ${wanted}: there are ${gpus.length} GPUs here`);
  return gpu;
}

/**
 * All GPUs that are here, in CUDA's order.
 * @throws Error where there is no CUDA library or no driver.
 */
export function availableGpus(): Gpu[] {
  const library = cudaLibraryFile();
  if (!existsSync(library)) throw new Error(noLibrary(library));
  return gpusOf(library);
}

/**
 * Bytes of its memory that are free. The process begins to use it by this.
 * @throws Error when the GPU does not answer.
 */
export function freeGpuBytes({ library, index }: Gpu): number {
  return loadAddon().cudaFreeBytes(library, index);
}

/** Part of the numerics id: GPUs of other names may compute other bits. */
export function backendName(gpu: Gpu): string {
  return `cuda-sm_${gpu.computeCapability.replace(".", "")}${gpu.turing ? "-turing" : ""}`;
}

function noLibrary(library: string): string {
  return `no CUDA library at ${library}: run "make cuda"`;
}

function firstGpu(): Gpu | null {
  try {
    return availableGpus()[0] ?? null;
  } catch {
    return null;
  }
}

function gpusOf(library: string): Gpu[] {
  const path = process.env.GLM_RELAY_CUDA_PATH ?? "";
  if (path !== "" && path !== "turing") {
    throw new Error(`GLM_RELAY_CUDA_PATH=${path}: expected turing or nothing`);
  }
  return loadAddon()
    .cudaDevices(library)
    .map((device, index) => ({ library, index, turing: path === "turing", ...device }));
}
