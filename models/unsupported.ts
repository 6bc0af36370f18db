/** GLM families and layouts that the engine does not compute yet, for an error that helps. */
export interface OtherLayout {
  architectures: string[];
  modelType: string;
  meaning: string;
}

export const otherLayouts: readonly OtherLayout[] = [
  {
    architectures: ["GlmForCausalLM"],
    modelType: "glm",
    meaning:
      "this is GLM-4-9B in the layout of transformers, with tensors of other names and q, k and v apart: " +
      "expected the authors' own layout (glm-4-9b-chat rather than glm-4-9b-chat-hf)",
  },
  {
    architectures: ["Glm4ForCausalLM"],
    modelType: "glm4",
    meaning: "GLM-4-0414 has norms behind attention and MLP, which are not computed yet",
  },
  {
    architectures: ["Glm4MoeForCausalLM"],
    modelType: "glm4_moe",
    meaning: "GLM-4.5 and later are mixtures of experts, which are not computed yet",
  },
];
