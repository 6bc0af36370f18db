/**
 * GLM-4-9B, -chat and -chat-1M of June 2024 in the authors' own layout: ChatGLM3's network with more
 * layers, a tokenizer of byte ranks, and role tokens of its own. The ratio multiplies the RoPE base.
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

export const glm4_9b: ModelCard = {
  family: "glm4-9b",
  title: "GLM-4-9B",
  match: {
    architectures: chatglmArchitectures,
    modelType: "chatglm",
    fields: [
      oneDimensional,
      {
        field: "eos_token_id",
        refused: [2],
        whenAbsent: 2,
        meaning: "2 ends a reply of ChatGLM2 and ChatGLM3",
      },
    ],
    names: /glm[-_]?4(?!\d)/i,
  },
  rules: chatglmRules,
  config: chatglmConfig,
  vocabularies: [{ rows: 151_552, tokens: 151_343 }],
  rope: { fraction: 0.5, base: 10_000, ratioField: "rope_ratio", ratioMeaning: "base" },
  form: plainForm,
  attention: { kind: "causal" },
  switches: { qkvBias: "add_qkv_bias" },
  tensors: chatglmTensors,
  tokenizer: {
    kind: "tiktoken",
    file: "tokenizer.model",
    jsonFile: "tokenizer.json",
    pattern: String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    specialTokens: [
      "<|endoftext|>",
      "[MASK]",
      "[gMASK]",
      "[sMASK]",
      "<sop>",
      "<eop>",
      "<|system|>",
      "<|user|>",
      "<|assistant|>",
      "<|observation|>",
      "<|begin_of_image|>",
      "<|end_of_image|>",
      "<|begin_of_video|>",
      "<|end_of_video|>",
    ],
    stopTokens: ["<|endoftext|>", "<|user|>", "<|observation|>"],
  },
  prompt: rolesPrompt({
    prefix: ["[gMASK]", "<sop>"],
    tools: {
      before:
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，" +
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具",
      each: "\n\n## {{name}}\n\n{{function}}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
      after: "",
      indent: 4,
    },
    calls: { kind: "json" },
  }),
  sampling: { temperature: 0.8, topP: 0.8 },
};
