import { join } from "node:path";
import { expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { paperModel } from "../../../checkpoint/paper-model.js";
import { packageRoot } from "../../../common/package.js";
import { placementModel } from "../../../coordinator/placement/model.js";
import { published } from "../../../models/published.js";
import type { Precision } from "../../../models/quantization.js";

const asStored: Precision = { dtype: "float32", kvType: "float32", weights: null, head: null };
const planOf = async (directory: string) =>
  placementModel(await openModel(join(packageRoot, directory)), asStored, 16);

it("a step reads 3 of the 8 experts of a sparse layer, and all of a dense one", async () => {
  const { layerBytes, layerReadBytes } = await planOf("test/golden/fixtures/glm45-tiny");
  // Gate, up and down of an expert are 32 x 32 float32s each.
  const unread = 5 * 3 * 32 * 32 * 4;
  expect(layerBytes.map((bytes, layer) => bytes - layerReadBytes![layer]!)).toEqual([
    0,
    unread,
    unread,
    unread,
  ]);
});

it("a step reads a model without experts whole", async () => {
  const { layerBytes, layerReadBytes } = await planOf("models/demo");
  expect(layerReadBytes).toEqual(layerBytes);
});

it("on GPUs allocations are rounded up by less than 2 MiB a layer, however many experts it has", () => {
  const model = paperModel(published["glm-4.5-air"]);
  const weights = { type: "int4", groupSize: 32, scales: "absmax" } as const;
  const precision: Precision = { dtype: model.dtype, kvType: "int8", weights, head: null };
  const { gpu, layerBytes } = placementModel(model, precision, 512);
  expect(gpu!.layerBytes.length).toBe(layerBytes.length);
  for (const bytes of gpu!.layerRoundingBytes!) {
    expect(bytes).toBeGreaterThanOrEqual(0);
    // Pages, and what begins at a multiple of 256 bytes.
    expect(bytes).toBeLessThan(2 * 2 ** 20 + 2 * 128 * 2 * 256);
  }
  // Blocks of 8 rows and 128 columns in place of strips of 32 rows, and a number for each output row.
  for (const [layer, bytes] of gpu!.layerBytes.entries())
    expect(Math.abs(bytes / layerBytes[layer]! - 1)).toBeLessThan(0.01);
});
