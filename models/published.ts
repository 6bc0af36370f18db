/** The published models: what their config.json says, as far as a reader looks, and the card of each. */
import type { ModelCard } from "./card.js";
import { chatglm6b } from "./chatglm-6b.js";
import { chatglm2 } from "./chatglm2.js";
import { chatglm3 } from "./chatglm3.js";
import { glm10b } from "./glm-10b.js";
import { glm130b } from "./glm-130b.js";
import { glm4 } from "./glm4.js";
import { glm4_9b } from "./glm4-9b.js";
import { glm45 } from "./glm45.js";

/** Fields of a config.json. */
type Config = Record<string, unknown>;

export interface PublishedModel {
  title: string;
  card: ModelCard;
  config: Config;
}

/** The authors' shards have no config.json; theirs is what checkpoint/shard-config.ts would say. */
const glm10bConfig: Config = {
  architectures: ["GLM10B"],
  model_type: "glm-10b",
  hidden_size: 4_096,
  inner_hidden_size: 16_384,
  layernorm_epsilon: 1e-5,
  max_sequence_length: 1_024,
  num_attention_heads: 64,
  num_layers: 48,
  torch_dtype: "float16",
  vocab_size: 50_304,
};

const glm130bConfig: Config = {
  architectures: ["GLM130B"],
  model_type: "glm-130b",
  eos_token_id: [20_002, 150_005],
  hidden_size: 12_288,
  inner_hidden_size: 32_768,
  layernorm_epsilon: 1e-5,
  max_sequence_length: 2_048,
  num_attention_heads: 96,
  num_layers: 70,
  torch_dtype: "float16",
  vocab_size: 150_528,
};

const chatglm6bConfig: Config = {
  _name_or_path: "THUDM/chatglm-6b",
  architectures: ["ChatGLMModel"],
  model_type: "chatglm",
  bos_token_id: 130_004,
  eos_token_id: 130_005,
  gmask_token_id: 130_001,
  hidden_size: 4_096,
  inner_hidden_size: 16_384,
  layernorm_epsilon: 1e-5,
  mask_token_id: 130_000,
  max_sequence_length: 2_048,
  num_attention_heads: 32,
  num_layers: 28,
  pad_token_id: 3,
  position_encoding_2d: true,
  torch_dtype: "float16",
  vocab_size: 130_528,
};

/** The authors' code of ChatGLM2, ChatGLM3 and GLM-4-9B. */
const chatglm: Config = {
  architectures: ["ChatGLMModel"],
  model_type: "chatglm",
  add_bias_linear: false,
  add_qkv_bias: true,
  apply_residual_connection_post_layernorm: false,
  ffn_hidden_size: 13_696,
  hidden_size: 4_096,
  kv_channels: 128,
  multi_query_attention: true,
  multi_query_group_num: 2,
  num_attention_heads: 32,
  original_rope: true,
  post_layer_norm: true,
  rmsnorm: true,
  tie_word_embeddings: false,
};

const sixB: Config = {
  ...chatglm,
  eos_token_id: 2,
  layernorm_epsilon: 1e-5,
  num_layers: 28,
  padded_vocab_size: 65_024,
  torch_dtype: "float16",
};

const nineB: Config = {
  ...chatglm,
  eos_token_id: [151_329, 151_336, 151_338],
  layernorm_epsilon: 1.5625e-7,
  num_layers: 40,
  padded_vocab_size: 151_552,
  torch_dtype: "bfloat16",
};

/** The transformers package's layout. */
const transformers: Config = {
  eos_token_id: [151_329, 151_336, 151_338],
  head_dim: 128,
  hidden_act: "silu",
  partial_rotary_factor: 0.5,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  vocab_size: 151_552,
};

const glm4Nine: Config = {
  ...transformers,
  architectures: ["Glm4ForCausalLM"],
  model_type: "glm4",
  attention_bias: true,
  hidden_size: 4_096,
  intermediate_size: 13_696,
  max_position_embeddings: 32_768,
  num_attention_heads: 32,
  num_hidden_layers: 40,
  num_key_value_heads: 2,
  rope_theta: 10_000,
};

const air: Config = {
  ...transformers,
  architectures: ["Glm4MoeForCausalLM"],
  model_type: "glm4_moe",
  attention_bias: true,
  first_k_dense_replace: 1,
  hidden_size: 4_096,
  intermediate_size: 10_944,
  max_position_embeddings: 131_072,
  moe_intermediate_size: 1_408,
  n_group: 1,
  n_routed_experts: 128,
  n_shared_experts: 1,
  norm_topk_prob: true,
  num_attention_heads: 96,
  num_experts_per_tok: 8,
  num_hidden_layers: 46,
  num_key_value_heads: 8,
  num_nextn_predict_layers: 1,
  rope_theta: 1_000_000,
  routed_scaling_factor: 1,
  topk_group: 1,
  use_qk_norm: false,
};

const large: Config = {
  ...air,
  first_k_dense_replace: 3,
  hidden_size: 5_120,
  intermediate_size: 12_288,
  moe_intermediate_size: 1_536,
  n_routed_experts: 160,
  num_hidden_layers: 92,
  routed_scaling_factor: 2.5,
  use_qk_norm: true,
};

const named = (name: string, config: Config): Config => ({ ...config, _name_or_path: name });

/** By the name that options give them. */
export const published = {
  "glm-10b": { title: "GLM-10B", card: glm10b, config: glm10bConfig },
  "glm-130b": { title: "GLM-130B", card: glm130b, config: glm130bConfig },
  "chatglm-6b": { title: "ChatGLM-6B", card: chatglm6b, config: chatglm6bConfig },
  "chatglm2-6b": {
    title: "ChatGLM2-6B",
    card: chatglm2,
    config: named("THUDM/chatglm2-6b", { ...sixB, seq_length: 32_768 }),
  },
  "chatglm3-6b": {
    title: "ChatGLM3-6B",
    card: chatglm3,
    config: named("THUDM/chatglm3-6b", { ...sixB, seq_length: 8_192 }),
  },
  "glm-4-9b": {
    title: "GLM-4-9B",
    card: glm4_9b,
    config: named("THUDM/glm-4-9b", { ...nineB, seq_length: 8_192 }),
  },
  "glm-4-9b-chat": {
    title: "GLM-4-9B-chat",
    card: glm4_9b,
    config: named("THUDM/glm-4-9b-chat", { ...nineB, rope_ratio: 500, seq_length: 131_072 }),
  },
  "glm-4-9b-chat-1m": {
    title: "GLM-4-9B-chat-1M",
    card: glm4_9b,
    config: named("THUDM/glm-4-9b-chat-1m", {
      ...nineB,
      multi_query_group_num: 4,
      rope_ratio: 10_000,
      seq_length: 1_048_576,
    }),
  },
  "glm-4-9b-0414": { title: "GLM-4-9B-0414", card: glm4, config: glm4Nine },
  "glm-4-32b-0414": {
    title: "GLM-4-32B-0414",
    card: glm4,
    config: {
      ...glm4Nine,
      attention_bias: false,
      hidden_size: 6_144,
      intermediate_size: 23_040,
      num_attention_heads: 48,
      num_hidden_layers: 61,
    },
  },
  "glm-4.5-air": { title: "GLM-4.5-Air", card: glm45, config: air },
  "glm-4.5": { title: "GLM-4.5", card: glm45, config: large },
} as const satisfies Record<string, PublishedModel>;

export type PublishedName = keyof typeof published;
export const publishedNames = Object.keys(published) as PublishedName[];

export interface SizeChanges {
  layers?: number;
  context?: number;
  /** Layers without experts, of families that have experts. */
  dense?: number;
}

/** The model with fewer layers, or made for a shorter context. */
export function resized(model: PublishedModel, { layers, context, dense }: SizeChanges): PublishedModel {
  const { card, config } = model;
  const changed = { ...config };
  if (layers !== undefined) changed[card.config.layerCount] = layers;
  if (context !== undefined) changed[card.config.maxPositions] = context;
  if (dense !== undefined && card.experts) changed[card.experts.denseLayers] = dense;
  return { ...model, config: changed };
}
