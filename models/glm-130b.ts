/**
 * GLM-130B: a prefix-LM with one position, whose branches are added to their own normed input (DeepNorm) and
 * whose feed-forward part is gated by GELU. The head is the embedding.
 */
import type { ModelCard } from "./card.js";
import { glm130bPrompt, glm130bTokenizer } from "./ice-text.js";
import { prefixConfig, prefixRules, prefixTensors } from "./prefix-layout.js";

const embedding = "transformer.word_embeddings.weight";

export const glm130b: ModelCard = {
  family: "glm-130b",
  title: "GLM-130B",
  match: { architectures: ["GLM130B"], modelType: "glm-130b", fields: [], names: /glm[-_]?130b/i },
  rules: prefixRules,
  config: prefixConfig,
  vocabularies: [{ rows: 150_528, tokens: 150_344 }],
  form: {
    norm: "layer",
    residual: "normed",
    residualScale: "sqrt(2 layers)",
    ropePairs: "halves",
    ropeAxes: 1,
    ffn: "gatedGelu",
  },
  // [gMASK] stands where the text goes on, so positions go on as well.
  attention: { kind: "prefix", constantPositionMasks: ["[MASK]", "[sMASK]"], causalMode: true },
  rope: { fraction: 1, base: 10_000 },
  tensors: { ...prefixTensors, embedding, head: embedding },
  tokenizer: glm130bTokenizer,
  prompt: glm130bPrompt,
  sampling: { temperature: 1, topP: 0.7 },
};
