/**
 * GLM-4.5, GLM-4.5-Air and later ones of their kind (Glm4MoeForCausalLM): in all but the first layers the
 * feed-forward part is a mixture of experts, beside one that every token passes. Pairs (j, w / 2 + j) of the
 * first half of a head are rotated; the largest models norm every query and key head first.
 */
import type { ConfigRule, ModelCard } from "./card.js";
import { glm45Prompt, glm45Tokenizer } from "./glm45-prompt.js";
import { transformersConfig, transformersRules, transformersTensors } from "./transformers-layout.js";

const layer = "model.layers.{i}";
const attention = `${layer}.self_attn`;
const mlp = `${layer}.mlp`;

const rules: ConfigRule[] = [
  ...transformersRules,
  { field: "n_shared_experts", refused: [0], whenAbsent: 0, meaning: "no expert that every token passes" },
];

export const glm45: ModelCard = {
  family: "glm4-moe",
  title: "GLM-4.5",
  match: {
    architectures: ["Glm4MoeForCausalLM"],
    modelType: "glm4_moe",
    fields: [],
    names: /glm[-_]?4\.\d/i,
  },
  rules,
  config: transformersConfig,
  form: {
    norm: "rms",
    residual: "stream",
    residualScale: 1,
    ropePairs: "halves",
    ropeAxes: 1,
    ffn: "gatedSilu",
  },
  attention: { kind: "causal" },
  rope: { fraction: 0.5, base: 1_000_000, baseField: "rope_theta" },
  experts: {
    count: "n_routed_experts",
    perToken: "num_experts_per_tok",
    groups: "n_group",
    groupsPerToken: "topk_group",
    ffnSize: "moe_intermediate_size",
    sharedCount: "n_shared_experts",
    normalizeWeights: "norm_topk_prob",
    scale: "routed_scaling_factor",
    denseLayers: "first_k_dense_replace",
  },
  switches: { qkvBias: "attention_bias", headNorms: "use_qk_norm" },
  // A layer that guesses further tokens, which nothing here asks for.
  extraLayersField: "num_nextn_predict_layers",
  tensors: {
    ...transformersTensors,
    layer: {
      ...transformersTensors.layer,
      queryNorm: `${attention}.q_norm.weight`,
      keyNorm: `${attention}.k_norm.weight`,
      ffnUp: [`${mlp}.gate_proj.weight`, `${mlp}.up_proj.weight`],
      experts: {
        router: `${mlp}.gate.weight`,
        routerBias: `${mlp}.gate.e_score_correction_bias`,
        up: [`${mlp}.experts.{e}.gate_proj.weight`, `${mlp}.experts.{e}.up_proj.weight`],
        down: `${mlp}.experts.{e}.down_proj.weight`,
        sharedUp: [`${mlp}.shared_experts.gate_proj.weight`, `${mlp}.shared_experts.up_proj.weight`],
        sharedDown: `${mlp}.shared_experts.down_proj.weight`,
      },
    },
  },
  tokenizer: glm45Tokenizer,
  prompt: glm45Prompt,
  sampling: { temperature: 0.6, topP: 1 },
};
