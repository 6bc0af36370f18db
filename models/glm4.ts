/**
 * GLM-4 in the layout of the transformers package: GLM-4-9B (GlmForCausalLM) and GLM-4-0414, 9B and 32B
 * (Glm4ForCausalLM), which norms what attention and the feed-forward part give as well. Queries, keys and
 * values are tensors of their own; pairs (2j, 2j+1) of the first half of a head are rotated, as in ChatGLM3.
 */
import type { ModelCard, RolesPrompt } from "./card.js";
import { glm4_9b } from "./glm4-9b.js";
import { rolesPrompt } from "./roles.js";
import { plainForm } from "./shape.js";
import { transformersConfig, transformersRules, transformersTensors } from "./transformers-layout.js";

const layer = "model.layers.{i}";

const shared = {
  rules: transformersRules,
  config: transformersConfig,
  form: plainForm,
  attention: { kind: "causal" },
  switches: { qkvBias: "attention_bias" },
  vocabularies: glm4_9b.vocabularies,
  tokenizer: glm4_9b.tokenizer,
  prompt: glm4_9b.prompt,
  sampling: glm4_9b.sampling,
} satisfies Partial<ModelCard>;

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
  tensors: transformersTensors,
};

export const glm4: ModelCard = {
  ...shared,
  family: "glm4",
  title: "GLM-4-0414",
  prompt: glm4Prompt,
  match: { architectures: ["Glm4ForCausalLM"], modelType: "glm4", fields: [], names: /glm[-_]?4/i },
  rope: { fraction: 0.5, base: 10_000, baseField: "rope_theta" },
  tensors: {
    ...transformersTensors,
    layer: {
      ...transformersTensors.layer,
      attentionOutNorm: `${layer}.post_self_attn_layernorm.weight`,
      ffnOutNorm: `${layer}.post_mlp_layernorm.weight`,
    },
  },
};
