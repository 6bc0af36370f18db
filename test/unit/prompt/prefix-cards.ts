/** Cards for tests of the tokenizers that no card in models/ uses by itself: only their text side is real. */

import type { ModelCard, PromptFormat, TokenizerFacts } from "../../../models/card.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import {
  glm10bChineseFixedTokenizer,
  glm10bChinesePrompt,
  glm10bChineseTokenizer,
  glm10bEnglishPrompt,
  glm10bEnglishTokenizer,
} from "../../../models/glm-10b-tokenizer.js";
import {
  chatglm6bPrompt,
  chatglm6bReply,
  chatglm6bTokenizer,
  glm130bPrompt,
  glm130bTokenizer,
} from "../../../models/ice-text.js";

function cardWith(tokenizer: TokenizerFacts, prompt: PromptFormat): ModelCard {
  const { replyReplacement, ...card } = chatglm2;
  return { ...card, tokenizer, prompt };
}

export const chatglm6bCard: ModelCard = {
  ...cardWith(chatglm6bTokenizer, chatglm6bPrompt),
  ...chatglm6bReply,
};
export const glm130bCard = cardWith(glm130bTokenizer, glm130bPrompt);
export const glm10bEnglishCard = cardWith(glm10bEnglishTokenizer, glm10bEnglishPrompt);
export const glm10bChineseCard = cardWith(glm10bChineseTokenizer, glm10bChinesePrompt);
export const glm10bChineseFixedCard = cardWith(glm10bChineseFixedTokenizer, glm10bChinesePrompt);

/** Of a SentencePiece file without anything around it. */
export const plainCard = cardWith(
  { kind: "sentencepiece", file: "tokenizer.model", specialTokens: [], stopTokens: ["</s>"] },
  { ...chatglm2.prompt, prefix: [] },
);
