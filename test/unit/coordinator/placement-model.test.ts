import { join } from "node:path";
import { expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { packageRoot } from "../../../common/package.js";
import { placementModel } from "../../../coordinator/placement/model.js";
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
