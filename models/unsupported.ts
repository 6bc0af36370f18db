/** GLM families and layouts that the engine does not compute yet, for an error that helps. */
export interface OtherLayout {
  architectures: string[];
  modelType: string;
  meaning: string;
}

export const otherLayouts: readonly OtherLayout[] = [
  {
    architectures: ["Glm4MoeForCausalLM"],
    modelType: "glm4_moe",
    meaning: "GLM-4.5 and later are mixtures of experts, which are not computed yet",
  },
];
