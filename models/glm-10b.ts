/**
 * GLM-10B, English and Chinese: a prefix-LM with learned tables of positions in the text and within what is
 * generated, else a plain transformer with LayerNorm and GELU. The head is the embedding.
 */
import type { ModelCard } from "./card.js";
import {
  glm10bChinesePrompt,
  glm10bChineseTokenizer,
  glm10bEnglishPrompt,
  glm10bEnglishTokenizer,
} from "./glm-10b-tokenizer.js";
import { prefixConfig, prefixRules, prefixTensors } from "./prefix-layout.js";

const embedding = "word_embeddings.weight";
const match = { architectures: ["GLM10B"], modelType: "glm-10b", fields: [] };

const shared = {
  rules: prefixRules,
  config: prefixConfig,
  form: {
    norm: "layer",
    residual: "stream",
    residualScale: 1,
    ropePairs: "adjacent",
    ropeAxes: 1,
    ffn: "gelu",
  },
  attention: {
    kind: "prefix",
    constantPositionMasks: ["[MASK]", "[sMASK]", "[gMASK]"],
    causalMode: false,
  },
  rope: { fraction: 0, base: 10_000 },
  tensors: {
    ...prefixTensors,
    embedding,
    positionEmbedding: "transformer.position_embeddings.weight",
    blockPositionEmbedding: "transformer.block_position_embeddings.weight",
    head: embedding,
    layer: { ...prefixTensors.layer, qkvRows: "blocks" },
  },
  sampling: { temperature: 0.9, topP: 1 },
} satisfies Partial<ModelCard>;

export const glm10b: ModelCard = {
  ...shared,
  family: "glm-10b",
  title: "GLM-10B",
  match: { ...match, names: /glm[-_]?10b(?!.*chinese)/i },
  vocabularies: [{ rows: 50_304, tokens: 50_265 }],
  tokenizer: glm10bEnglishTokenizer,
  prompt: glm10bEnglishPrompt,
};

export const glm10bChinese: ModelCard = {
  ...shared,
  family: "glm-10b-chinese",
  title: "GLM-10B-Chinese",
  match: { ...match, names: /glm[-_]?10b.*chinese/i },
  vocabularies: [{ rows: 50_048, tokens: 50_010 }],
  tokenizer: glm10bChineseTokenizer,
  prompt: glm10bChinesePrompt,
};
