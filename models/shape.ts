/** The shape of a model and what follows from it by arithmetic alone. */

/** Storage type of float tensors, of the residual stream and of the KV cache. */
export type DType = "float32" | "float16" | "bfloat16";

/** Structurally the engine's ModelShape: models may not import native, so the fields are repeated. */
export interface ModelShape {
  hiddenSize: number;
  layerCount: number;
  headCount: number;
  /** Key/value heads; query head h reads KV head floor(h / (headCount / kvHeadCount)). */
  kvHeadCount: number;
  headDim: number;
  ffnSize: number;
  /** Rows of embedding and head. */
  vocabSize: number;
  /** Token ids >= tokenCount do not exist: their logits are masked before sampling and logprobs. */
  tokenCount: number;
  /** Rotated dimensions of each head (even); the rest passes unchanged. Pairs are (2j, 2j+1). */
  ropeDim: number;
  ropeBase: number;
  /** Positions are divided by it before they are rotated; 1 for most models. */
  ropePositionDivisor: number;
  normEps: number;
  maxPositions: number;
}

export function dtypeBytes(dtype: DType): number {
  return dtype === "float32" ? 4 : 2;
}

/** Rows of the fused query, key and value projection. */
export function qkvRows(shape: ModelShape): number {
  return (shape.headCount + 2 * shape.kvHeadCount) * shape.headDim;
}
