/**
 * ChatGLM-6B: a prefix-LM whose heads turn by two positions, that of the text and that within the reply, and
 * whose branches are added to their own normed input. Positions of a reply are that of its mask.
 */
import type { ModelCard } from "./card.js";
import { chatglm6bPrompt, chatglm6bReply, chatglm6bTokenizer } from "./ice-text.js";
import { prefixConfig, prefixRules, prefixTensors } from "./prefix-layout.js";

const embedding = "transformer.word_embeddings.weight";

export const chatglm6b: ModelCard = {
  family: "chatglm-6b",
  title: "ChatGLM-6B",
  match: {
    architectures: ["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    modelType: "chatglm",
    fields: [
      {
        field: "position_encoding_2d",
        allowed: [true],
        whenAbsent: false,
        meaning: "later families have one position",
      },
    ],
    names: /chatglm[-_]?6b/i,
  },
  rules: [
    ...prefixRules,
    {
      field: "vocab_size",
      refused: [150_528],
      meaning: "the first release, whose ids are 20,000 higher than those of the current one",
    },
  ],
  config: prefixConfig,
  vocabularies: [{ rows: 130_528, tokens: 130_344 }],
  form: {
    norm: "layer",
    residual: "normed",
    // sqrt(2 * 28), the authors' constant, whatever the number of layers.
    residualScale: Math.sqrt(56),
    ropePairs: "halves",
    ropeAxes: 2,
    ffn: "gelu",
  },
  attention: { kind: "prefix", constantPositionMasks: ["[gMASK]", "[MASK]"], causalMode: false },
  rope: { fraction: 1, base: 10_000 },
  // Converted files leave the head out, whose values are those of the embedding.
  tensors: { ...prefixTensors, embedding, head: "lm_head.weight", headFallback: embedding },
  tokenizer: chatglm6bTokenizer,
  prompt: chatglm6bPrompt,
  ...chatglm6bReply,
  sampling: { temperature: 0.95, topP: 0.7 },
};
