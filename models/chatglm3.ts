/**
 * ChatGLM3-6B (also -base, -32K and -128K, whose ratio multiplies the RoPE base) and models of its
 * architecture; the demo model is one.
 */
import type { ModelCard } from "./card.js";
import {
  chatglmArchitectures,
  chatglmConfig,
  chatglmRules,
  chatglmTensors,
  oneDimensional,
} from "./chatglm-layout.js";
import { rolesPrompt } from "./roles.js";
import { plainForm } from "./shape.js";

export const chatglm3: ModelCard = {
  family: "chatglm3",
  title: "ChatGLM3",
  match: {
    architectures: chatglmArchitectures,
    modelType: "chatglm",
    fields: [
      oneDimensional,
      { field: "eos_token_id", allowed: [2], whenAbsent: 2, meaning: "GLM-4 ends at other tokens" },
    ],
    names: /chatglm[-_]?3(?!\d)/i,
    tokenizerMark: "<|assistant|>",
  },
  rules: chatglmRules,
  config: chatglmConfig,
  vocabularies: [{ rows: 65_024, tokens: 64_798 }],
  rope: { fraction: 0.5, base: 10_000, ratioField: "rope_ratio", ratioMeaning: "base" },
  form: plainForm,
  attention: { kind: "causal" },
  switches: { qkvBias: "add_qkv_bias" },
  tensors: chatglmTensors,
  tokenizer: {
    kind: "sentencepiece",
    file: "tokenizer.model",
    specialTokens: [
      "[MASK]",
      "[gMASK]",
      "[sMASK]",
      "sop",
      "eop",
      "<|system|>",
      "<|user|>",
      "<|assistant|>",
      "<|observation|>",
    ],
    stopTokens: ["</s>", "<|user|>", "<|observation|>"],
  },
  prompt: rolesPrompt({
    prefix: ["[gMASK]", "sop"],
    tools: {
      before:
        "Answer the following questions as best as you can. You have access to the following tools:\n{{functions}}",
      each: "",
      after: "",
      indent: 4,
    },
    calls: { kind: "python", callee: "tool_call", code: { tool: "interpreter", argument: "code" } },
  }),
  sampling: { temperature: 0.8, topP: 0.8 },
};
