/**
 * GLM-4 in the layout of the transformers package: GLM-4-9B (GlmForCausalLM) and GLM-4-0414, 9B and 32B
 * (Glm4ForCausalLM), which norms what attention and the feed-forward part give as well. Queries, keys and
 * values are tensors of their own; pairs (2j, 2j+1) of the first half of a head are rotated, as in ChatGLM3.
 */
import type { ConfigRule, ModelCard, RolesPrompt } from "./card.js";
import { glm4_9b } from "./glm4-9b.js";
import { rolesPrompt } from "./roles.js";

const layer = "model.layers.{i}";
const attention = `${layer}.self_attn`;

const rules: ConfigRule[] = [
  { field: "hidden_act", allowed: ["silu"], whenAbsent: "silu", meaning: "another activation" },
  {
    field: "partial_rotary_factor",
    allowed: [0.5],
    whenAbsent: 0.5,
    meaning: "another share of each head is rotated",
  },
  { field: "rope_scaling", allowed: [null], whenAbsent: null, meaning: "positions are scaled" },
  { field: "tie_word_embeddings", allowed: [false], whenAbsent: false, meaning: "no head of its own" },
  { field: "quantization_config", allowed: [null], whenAbsent: null, meaning: "the weights are quantized" },
];

const shared = {
  rules,
  config: {
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
  },
  qkvBiasField: "attention_bias",
  tokenizer: glm4_9b.tokenizer,
  prompt: glm4_9b.prompt,
  sampling: glm4_9b.sampling,
} satisfies Partial<ModelCard>;

const tensors: ModelCard["tensors"] = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm.weight",
  head: "lm_head.weight",
  layer: {
    attentionNorm: `${layer}.input_layernorm.weight`,
    qkvWeight: [`${attention}.q_proj.weight`, `${attention}.k_proj.weight`, `${attention}.v_proj.weight`],
    qkvBias: [`${attention}.q_proj.bias`, `${attention}.k_proj.bias`, `${attention}.v_proj.bias`],
    attentionOut: `${attention}.o_proj.weight`,
    ffnNorm: `${layer}.post_attention_layernorm.weight`,
    ffnGateUp: [`${layer}.mlp.gate_up_proj.weight`],
    ffnDown: `${layer}.mlp.down_proj.weight`,
  },
};

/**
 * The format is that of the checkpoint's template, which is one text; where there is none, this is the same
 * without what the template may add.
 */
const glm4Prompt: RolesPrompt = {
  ...rolesPrompt({
    prefix: ["[gMASK]", "<sop>"],
    tools: {
      before: "# 可用工具",
      each: "\n\n## {{name}}\n\n{{function}}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
      after: "",
      indent: 4,
    },
    calls: { kind: "json" },
  }),
  firstOnlyRoles: [],
  metadataLine: "joined",
  // GLM-Z1, which thinks before it answers, is a GLM-4-0414 with another template.
  ownTemplate: {
    roles: { developer: "system", function: "tool" },
    thinking: { begin: "<think>", end: "</think>" },
  },
};

/** GLM-4-9B as the "-hf" repositories publish it. */
export const glm: ModelCard = {
  ...shared,
  family: "glm",
  title: "GLM-4-9B (transformers layout)",
  match: { architectures: ["GlmForCausalLM"], modelType: "glm", fields: [], names: /glm[-_]?4/i },
  rope: {
    fraction: 0.5,
    base: 10_000,
    baseField: "rope_theta",
    // The converter of these repositories did not find the ratio of the authors' config and wrote 10,000.
    corrections: [
      { maxPositions: 131_072, written: 10_000, base: 5_000_000 },
      { maxPositions: 1_048_576, written: 10_000, base: 100_000_000 },
    ],
  },
  tensors,
};

export const glm4: ModelCard = {
  ...shared,
  family: "glm4",
  title: "GLM-4-0414",
  prompt: glm4Prompt,
  match: { architectures: ["Glm4ForCausalLM"], modelType: "glm4", fields: [], names: /glm[-_]?4/i },
  rope: { fraction: 0.5, base: 10_000, baseField: "rope_theta" },
  tensors: {
    ...tensors,
    layer: {
      ...tensors.layer,
      attentionOutNorm: `${layer}.post_self_attn_layernorm.weight`,
      ffnOutNorm: `${layer}.post_mlp_layernorm.weight`,
    },
  },
};
