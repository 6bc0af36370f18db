/** The conversation format that ChatGLM3 and GLM-4 share; the tokens in front of it and the tools differ. */
import type { RolesPrompt } from "./card.js";

/** @param facts Special tokens in front of every input, and how tools are described and called. */
export function rolesPrompt(facts: Pick<RolesPrompt, "prefix" | "tools" | "calls">): RolesPrompt {
  return {
    kind: "roles",
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
    metadataLine: "apart",
    generation: "<|assistant|>",
    ...facts,
  };
}
