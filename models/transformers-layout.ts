/** What the families in the layout of the transformers package have in common: queries, keys and values are tensors of their own. */
import type { ConfigRule, ModelCard } from "./card.js";

const layer = "model.layers.{i}";
const attention = `${layer}.self_attn`;

export const transformersRules: ConfigRule[] = [
  { field: "hidden_act", allowed: ["silu"], whenAbsent: "silu", meaning: "another activation" },
  {
    field: "partial_rotary_factor",
    allowed: [0.5],
    whenAbsent: 0.5,
    meaning: "another share of each head is rotated",
  },
  {
    field: "rope_scaling",
    allowed: [null],
    whenAbsent: null,
    meaning:
      "positions are scaled; --set rope_scaling=null serves the model without, for the positions it was trained on",
  },
  { field: "tie_word_embeddings", allowed: [false], whenAbsent: false, meaning: "no head of its own" },
  { field: "quantization_config", allowed: [null], whenAbsent: null, meaning: "the weights are quantized" },
];

export const transformersConfig: ModelCard["config"] = {
  hiddenSize: "hidden_size",
  layerCount: "num_hidden_layers",
  headCount: "num_attention_heads",
  kvHeadCount: "num_key_value_heads",
  headDim: "head_dim",
  ffnSize: "intermediate_size",
  vocabSize: "vocab_size",
  maxPositions: "max_position_embeddings",
  normEps: "rms_norm_eps",
  dtype: "torch_dtype",
};

export const transformersTensors: ModelCard["tensors"] = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm.weight",
  head: "lm_head.weight",
  layer: {
    attentionNorm: `${layer}.input_layernorm.weight`,
    qkvWeight: [`${attention}.q_proj.weight`, `${attention}.k_proj.weight`, `${attention}.v_proj.weight`],
    qkvBias: [`${attention}.q_proj.bias`, `${attention}.k_proj.bias`, `${attention}.v_proj.bias`],
    qkvRows: "blocks",
    attentionOut: `${attention}.o_proj.weight`,
    ffnNorm: `${layer}.post_attention_layernorm.weight`,
    ffnUp: [`${layer}.mlp.gate_up_proj.weight`],
    ffnDown: `${layer}.mlp.down_proj.weight`,
  },
};
