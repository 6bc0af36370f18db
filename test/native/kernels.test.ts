/**
 * Single kernels, checked by the C++ program kernel_check (its sources are in kernel_check/): every
 * variant against scalar with ==, the canon's functions against float64, and which variant runs.
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { engineInfo, Stage } from "../../native/index.js";
import { kernelChecks, nativeKernelCheck } from "../support/kernel-check.js";
import { randomModel, stageConfig, TINY, temporaryFolder, writeTensors } from "./support.js";

const { available } = engineInfo();

/** Runs a group of checks of this machine; returns how many there were. */
function checks(variant: string, group: string): number {
  return kernelChecks([nativeKernelCheck], variant, group).checks;
}

test("the checks were built with the engine", () => {
  expect(existsSync(nativeKernelCheck)).toBe(true);
  expect(available).toContain("scalar");
});

for (const variant of available.filter((name) => name !== "scalar")) {
  test(`${variant} matrix products equal scalar for 1 to 70 and 512 rows, odd shapes and every storage type`, () => {
    expect(checks(variant, "matmul")).toBeGreaterThan(1_000_000);
  }, 60_000);

  test(`${variant} rounds and multiplies like scalar for 1 to 70 and 512 rows, every group size and values that hurt`, () => {
    expect(checks(variant, "quant")).toBeGreaterThan(1_000_000);
  }, 60_000);

  test(`${variant} attention equals scalar at every tile edge and reads no hidden slot`, () => {
    expect(checks(variant, "attention")).toBeGreaterThan(100_000);
  });

  test(`${variant} norms, rotations, activations and softmax sums equal scalar at every size`, () => {
    expect(checks(variant, "elementwise")).toBeGreaterThan(100_000);
  });

  test(`${variant} converts all 65536 halves and bfloats and every rounding edge like scalar`, () => {
    expect(checks(variant, "conversions")).toBeGreaterThan(1_000_000);
  });
}

test("scalar rounds weights, activations, keys and values by the rule, and refuses what it cannot round", () => {
  expect(checks("scalar", "quant")).toBeGreaterThan(1_000_000);
}, 60_000);

for (const variant of available) {
  test(`exp and silu of ${variant}, and log, sin and cos, stay within their bounds of float64`, () => {
    expect(checks(variant, "math")).toBeGreaterThan(1_000_000);
  });
}

test("Philox4x32-10 gives the published known answers", () => {
  expect(checks("scalar", "philox")).toBeGreaterThan(10_000);
});

/** What /proc/cpuinfo must name for a variant. */
const needed = {
  avx2: ["avx2", "fma", "f16c"],
  "avx-vnni": ["avx2", "fma", "f16c", "avx_vnni"],
  "avx512-vnni": ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"],
  neon: ["asimddp"],
};

test.each(Object.entries(needed))("%s is among the variants where the CPU has it", (variant, flags) => {
  const own = new Set(
    /^(?:flags|Features)\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.split(" "),
  );
  expect(available.includes(variant)).toBe(flags.every((flag) => own.has(flag)));
});

test("the variants stand in the order of their speed", () => {
  const order = ["avx512-vnni", "avx-vnni", "avx2", "neon", "scalar"];
  expect(available).toEqual(order.filter((variant) => available.includes(variant)));
});

afterEach(() => {
  vi.unstubAllEnvs();
});

test("GLM_RELAY_KERNELS forces the variant that then runs", async () => {
  const folder = temporaryFolder();
  const model = writeTensors(join(folder.path, "model.bin"), randomModel(TINY, "float16", 1));
  for (const variant of available) {
    vi.stubEnv("GLM_RELAY_KERNELS", variant);
    expect(engineInfo().kernels).toBe(variant);
    const stage = await Stage.create(stageConfig(model, TINY, 0, TINY.layerCount));
    // The name comes from the table of functions that the stage calls.
    expect(stage.kernels).toBe(variant);
    await stage.close();
  }
  folder.remove();
});

test("without GLM_RELAY_KERNELS the best variant runs", () => {
  vi.stubEnv("GLM_RELAY_KERNELS", "");
  expect(engineInfo()).toEqual({ kernels: available[0], available, canonVersion: 1, backend: "cpu" });
});

test("an unknown name in GLM_RELAY_KERNELS is an error that lists the known ones", async () => {
  vi.stubEnv("GLM_RELAY_KERNELS", "avx1024");
  const message = `GLM_RELAY_KERNELS=avx1024: no such kernels here; available: ${available.join(", ")}`;
  expect(() => engineInfo()).toThrow(message);
  const folder = temporaryFolder();
  const model = writeTensors(join(folder.path, "model.bin"), randomModel(TINY, "float32", 1));
  await expect(Stage.create(stageConfig(model, TINY, 0, TINY.layerCount))).rejects.toThrow(message);
  folder.remove();
});
