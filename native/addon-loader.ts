/** Finds and loads the compiled engine, and picks the kernel variant. */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Gpu } from "./device.js";
import type {
  BlockCopy,
  LoadProgress,
  SliceInput,
  StageConfig,
  StepInput,
  StepOutput,
  WeightCacheOptions,
  WeightCacheReport,
} from "./index.js";

/** The addon's side of a stage: addon/stage_object.h. */
export interface AddonStage {
  load(): Promise<void>;
  step(
    input: Omit<StepInput, "copies" | "slice"> & { copies: readonly BlockCopy[]; slice: SliceInput | null },
  ): Promise<StepOutput>;
  close(): Promise<void>;
  progress(): bigint;
  memory(): { weightBytes: number; kvBytes: number; workspaceBytes: number };
  loading(): LoadProgress;
  roundings(): { tensor: string; squaredError: number; squaredWeight: number }[];
  cacheReport(): WeightCacheReport;
  cacheWritten(): Promise<void>;
  kernels(): string;
}

export interface Addon {
  /** Kernel variants that this CPU can run, best first. */
  availableKernels: string[];
  /** The GPUs that the CUDA library in this file finds. Throws where it cannot be opened, or finds no driver. */
  cudaDevices(library: string): { name: string; computeCapability: string; bytes: number }[];
  cudaFreeBytes(library: string, index: number): number;
  /** Bytes outside its heap that V8 has been told of. */
  externalBytes(): number;
  Stage: new (
    config: StageConfig,
    kernels: string,
    cache: WeightCacheOptions | null,
    device: Gpu | null,
  ) => AddonStage;
}

let loaded: Addon | null = null;

/**
 * GLM_RELAY_ADDON names another build of the engine, such as the one with sanitizers.
 * @throws Error naming the missing file when the engine has not been built.
 */
export function loadAddon(): Addon {
  if (loaded === null) {
    const file = process.env.GLM_RELAY_ADDON ?? join(packageRoot(), "build", "native", "glm_relay.node");
    if (!existsSync(file)) {
      throw new Error(`native engine not found at ${file}: run "npm run build:native"`);
    }
    loaded = createRequire(import.meta.url)(file) as Addon;
  }
  return loaded;
}

/**
 * The kernel variant to use: the best one, or what GLM_RELAY_KERNELS says.
 * @throws Error for a name that this CPU or this build does not have.
 */
export function chosenKernels(addon: Addon): string {
  const available = addon.availableKernels;
  const wanted = process.env.GLM_RELAY_KERNELS;
  if (wanted === undefined || wanted === "") return available[0] ?? "scalar";
  if (!available.includes(wanted)) {
    throw new Error(`GLM_RELAY_KERNELS=${wanted}: no such kernels here; available: ${available.join(", ")}`);
  }
  return wanted;
}

/** The CUDA library that `make cuda` builds; GLM_RELAY_CUDA_LIBRARY names another one. */
export function cudaLibraryFile(): string {
  return process.env.GLM_RELAY_CUDA_LIBRARY ?? join(packageRoot(), "build", "cuda", "libglm_relay_cuda.so");
}

/** This file runs from native/ and from dist/native/, so the root is searched for, not counted. */
function packageRoot(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const manifest = join(folder, "package.json");
    if (existsSync(manifest)) {
      const { name } = JSON.parse(readFileSync(manifest, "utf8")) as { name?: string };
      if (name === "glm-relay") return folder;
    }
    if (folder === dirname(folder)) throw new Error("native engine: no package.json of glm-relay above it");
  }
}
