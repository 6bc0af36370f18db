/**
 * ChatGLM2-6B and ChatGLM2-6B-32K: ChatGLM3's network and SentencePiece file, but without tokens for
 * roles, with numbered rounds as the prompt, and with a RoPE ratio that divides the positions.
 */
import type { ModelCard } from "./card.js";
import {
  chatglmArchitectures,
  chatglmConfig,
  chatglmRules,
  chatglmTensors,
  oneDimensional,
} from "./chatglm-layout.js";
import { plainForm } from "./shape.js";

export const chatglm2: ModelCard = {
  family: "chatglm2",
  title: "ChatGLM2",
  match: {
    architectures: chatglmArchitectures,
    modelType: "chatglm",
    fields: [
      oneDimensional,
      { field: "eos_token_id", allowed: [2], whenAbsent: 2, meaning: "GLM-4 ends at other tokens" },
    ],
    names: /chatglm[-_]?2(?!\d)/i,
  },
  rules: chatglmRules,
  config: chatglmConfig,
  vocabularies: [{ rows: 65_024, tokens: 64_794 }],
  rope: { fraction: 0.5, base: 10_000, ratioField: "rope_ratio", ratioMeaning: "positions" },
  form: plainForm,
  attention: { kind: "causal" },
  switches: { qkvBias: "add_qkv_bias" },
  tensors: chatglmTensors,
  tokenizer: {
    kind: "sentencepiece",
    file: "tokenizer.model",
    specialTokens: ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"],
    stopTokens: ["</s>"],
  },
  prompt: {
    kind: "rounds",
    prefix: ["[gMASK]", "sop"],
    roles: { system: "system", developer: "system", user: "user", assistant: "assistant" },
    firstRound: 1,
    beforeQuestion: "[Round {n}]\n\n问：",
    beforeAnswer: "\n\n答：",
    afterAnswer: "\n\n",
  },
  // The model was trained to write this where it would tell when it was trained.
  replyReplacement: { text: "[[训练时间]]", by: "2023年" },
  sampling: { temperature: 0.8, topP: 0.8 },
};
