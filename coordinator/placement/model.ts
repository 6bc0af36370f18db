/** What placement needs to know of a model, from its checkpoint and shape. */
import type { Model } from "../../checkpoint/index.js";
import { type DType, layerKvBytesPerToken, qkvRows } from "../../models/shape.js";
import type { PlacementModel } from "./placement.js";

/** Rows whose logits a step may need at once: sampled ones and scored ones, in the engine's tiles. */
const logitRows = 64;
const float32Bytes = 4;

/**
 * @param maxRows Rows of one step.
 * @see pipeline theory: input and output rows, q, k and v, and the MLP's two halves, in float32.
 */
export function placementModel(model: Model, dtype: DType, maxRows: number): PlacementModel {
  const { shape } = model;
  const perRow = 2 * shape.hiddenSize + qkvRows(shape) + 2 * shape.ffnSize;
  return {
    layerBytes: model.layerBytes,
    embeddingBytes: model.embeddingBytes,
    headBytes: model.headBytes,
    layerKvBytesPerToken: layerKvBytesPerToken(shape, dtype),
    workspaceBytes: maxRows * perRow * float32Bytes,
    logitsBytes: logitRows * shape.vocabSize * float32Bytes,
  };
}
