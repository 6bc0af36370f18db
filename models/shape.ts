/** The shape of a model and what follows from it by arithmetic alone. */

/** Storage type of float tensors, of the residual stream and of the KV cache. */
export type DType = "float32" | "float16" | "bfloat16";

/** How the layers of a family compute. */
export interface LayerForm {
  /** RMSNorm, or LayerNorm with bias. */
  norm: "rms" | "layer";
  /**
   * What attention or the feed-forward part gives is added to the residual stream, or to its own, normed
   * input times residualScale.
   */
  residual: "stream" | "normed";
  residualScale: number;
  /** Which dimensions of the rotated width w are a pair: (2j, 2j + 1), or (j, w / 2 + j). */
  ropePairs: "adjacent" | "halves";
  /** 2: one half of the rotated dimensions turns with the position, the other with the block position. */
  ropeAxes: 1 | 2;
  /** silu(first half) * second half; gelu (tanh); first half * gelu(second half) (erf). */
  ffn: "gatedSilu" | "gelu" | "gatedGelu";
}

/** The mixture of experts of those layers that have one. */
export interface ExpertShape {
  count: number;
  perToken: number;
  /** Experts are chosen within the best `groupsPerToken` of `groups` equal groups. */
  groups: number;
  groupsPerToken: number;
  ffnSize: number;
  /** Of the expert that every row passes through. */
  sharedFfnSize: number;
  /** The chosen experts' weights are divided by their sum. */
  normalizeWeights: boolean;
  /** Factor of all weights. */
  scale: number;
}

/** Of most families: a stream of residuals, RMSNorm in front of each branch, SwiGLU, adjacent pairs rotated. */
export const plainForm: LayerForm = {
  norm: "rms",
  residual: "stream",
  residualScale: 1,
  ropePairs: "adjacent",
  ropeAxes: 1,
  ffn: "gatedSilu",
};

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
  /** Rotated dimensions of each head, a multiple of 2 per axis; the rest passes unchanged. 0: none. */
  ropeDim: number;
  ropeBase: number;
  /** Positions are divided by it before they are rotated; 1 for most models. */
  ropePositionDivisor: number;
  normEps: number;
  maxPositions: number;
  form: LayerForm;
  /** null: no layer has experts. */
  experts: ExpertShape | null;
}

export function dtypeBytes(dtype: DType): number {
  return dtype === "float32" ? 4 : 2;
}

/** Rows of the fused query, key and value projection. */
export function qkvRows(shape: ModelShape): number {
  return (shape.headCount + 2 * shape.kvHeadCount) * shape.headDim;
}

/** Rows of the matrix in front of the activation, per column behind it. */
export function ffnInputs(form: LayerForm): 1 | 2 {
  return form.ffn === "gelu" ? 1 : 2;
}
