/**
 * What the families with the authors' own "chatglm" code have in common: the fields of config.json, the
 * names of the tensors, and the switches of that code that the engine does not compute.
 */
import type { ConfigRule, ModelCard } from "./card.js";

const layer = "transformer.encoder.layers.{i}";

export const chatglmArchitectures = ["ChatGLMModel", "ChatGLMForConditionalGeneration"];

export const oneDimensional: ConfigRule = {
  field: "position_encoding_2d",
  allowed: [false],
  whenAbsent: false,
  meaning: "the first ChatGLM-6B is a prefix-LM with 2-D positions",
};

export const chatglmRules: ConfigRule[] = [
  {
    field: "multi_query_attention",
    allowed: [true],
    whenAbsent: false,
    meaning: "without it the rows of query_key_value are interleaved per head",
  },
  { field: "interleaved_qkv", allowed: [false], whenAbsent: false, meaning: "another row order" },
  {
    field: "apply_residual_connection_post_layernorm",
    allowed: [false],
    whenAbsent: false,
    meaning: "the residual would be the normalised tensor",
  },
  { field: "post_layer_norm", allowed: [true], whenAbsent: true, meaning: "there is no final norm" },
  { field: "rmsnorm", allowed: [true], whenAbsent: true, meaning: "LayerNorm instead of RMSNorm" },
  { field: "add_bias_linear", allowed: [false], whenAbsent: false, meaning: "biases on every linear" },
  {
    field: "original_rope",
    allowed: [true],
    whenAbsent: true,
    meaning: "pairs (j, j + r/2) instead of (2j, 2j+1) are rotated",
  },
  {
    field: "fp32_residual_connection",
    allowed: [false],
    whenAbsent: false,
    meaning: "the residual stream is kept in another type",
  },
  { field: "tie_word_embeddings", allowed: [false], whenAbsent: false, meaning: "no head of its own" },
  { field: "quantization_bit", allowed: [0], whenAbsent: 0, meaning: "the weights are quantized" },
  { field: "vision_config", allowed: [null], whenAbsent: null, meaning: "the model also reads images" },
];

export const chatglmConfig: ModelCard["config"] = {
  hiddenSize: "hidden_size",
  layerCount: "num_layers",
  headCount: "num_attention_heads",
  kvHeadCount: "multi_query_group_num",
  headDim: "kv_channels",
  ffnSize: "ffn_hidden_size",
  vocabSize: "padded_vocab_size",
  maxPositions: "seq_length",
  normEps: "layernorm_epsilon",
  dtype: "torch_dtype",
};

export const chatglmTensors: ModelCard["tensors"] = {
  embedding: "transformer.embedding.word_embeddings.weight",
  finalNorm: "transformer.encoder.final_layernorm.weight",
  head: "transformer.output_layer.weight",
  layer: {
    attentionNorm: `${layer}.input_layernorm.weight`,
    qkvWeight: [`${layer}.self_attention.query_key_value.weight`],
    qkvBias: [`${layer}.self_attention.query_key_value.bias`],
    qkvRows: "blocks",
    attentionOut: `${layer}.self_attention.dense.weight`,
    ffnNorm: `${layer}.post_attention_layernorm.weight`,
    ffnUp: [`${layer}.mlp.dense_h_to_4h.weight`],
    ffnDown: `${layer}.mlp.dense_4h_to_h.weight`,
  },
};
