/** The conversation format that ChatGLM3 and GLM-4 share; only the tokens in front of it differ. */
import type { RolesPrompt } from "./card.js";

/** @param prefix Special tokens in front of every input. */
export function rolesPrompt(...prefix: string[]): RolesPrompt {
  return {
    kind: "roles",
    prefix,
    roles: {
      system: "<|system|>",
      developer: "<|system|>",
      user: "<|user|>",
      assistant: "<|assistant|>",
      observation: "<|observation|>",
      tool: "<|observation|>",
      function: "<|observation|>",
    },
    firstOnlyRoles: ["system", "developer"],
    metadataLine: true,
    generation: "<|assistant|>",
  };
}
