/**
 * What the prefix-LM families (ChatGLM-6B, GLM-130B, GLM-10B) have in common: LayerNorm, biases everywhere,
 * as many key and value heads as query heads, one matrix in front of the activation, and their tensors' names.
 */
import type { ConfigRule, ModelCard, TensorNames } from "./card.js";

const layer = "transformer.layers.{i}";

export const prefixConfig: ModelCard["config"] = {
  hiddenSize: "hidden_size",
  layerCount: "num_layers",
  headCount: "num_attention_heads",
  kvHeadCount: null,
  headDim: null,
  ffnSize: "inner_hidden_size",
  vocabSize: "vocab_size",
  maxPositions: "max_sequence_length",
  normEps: "layernorm_epsilon",
  dtype: "torch_dtype",
};

export const prefixRules: ConfigRule[] = [
  { field: "quantization_bit", allowed: [0], whenAbsent: 0, meaning: "the weights are quantized" },
];

const finalNorm = "transformer.final_layernorm";

/** Beside the embedding and the head. */
export const prefixTensors: Omit<TensorNames, "embedding" | "head"> = {
  finalNorm: `${finalNorm}.weight`,
  finalNormBias: `${finalNorm}.bias`,
  layer: {
    attentionNorm: `${layer}.input_layernorm.weight`,
    attentionNormBias: `${layer}.input_layernorm.bias`,
    qkvWeight: [`${layer}.attention.query_key_value.weight`],
    qkvBias: [`${layer}.attention.query_key_value.bias`],
    qkvRows: "heads",
    attentionOut: `${layer}.attention.dense.weight`,
    attentionOutBias: `${layer}.attention.dense.bias`,
    ffnNorm: `${layer}.post_attention_layernorm.weight`,
    ffnNormBias: `${layer}.post_attention_layernorm.bias`,
    ffnUp: [`${layer}.mlp.dense_h_to_4h.weight`],
    ffnUpBias: [`${layer}.mlp.dense_h_to_4h.bias`],
    ffnDown: `${layer}.mlp.dense_4h_to_h.weight`,
    ffnDownBias: `${layer}.mlp.dense_4h_to_h.bias`,
  },
};
