/**
 * The tokenizers of GLM-10B. English: GPT-2's byte-level BPE, command tokens behind its vocabulary.
 * Chinese: the SentencePiece BPE model `cog-pretrain.model` of 50,000 pieces, in which `<n>` is a newline.
 * Both begin a context with [CLS] and take the whitespace in front of a mask away.
 */
import type { FillFacts, RoundsPrompt, TokenizerFacts } from "./card.js";

const start = "<|startofpiece|>";
const end = "<|endofpiece|>";
const endOfText = "<|endoftext|>";

/** Blanks are filled from left to right, whatever their kind. */
const fill: Omit<FillFacts, "publishedIds"> = {
  masks: ["[MASK]", "[sMASK]", "[gMASK]"],
  order: "place",
  append: "[gMASK]",
  endWhenNoMaskAtEnd: endOfText,
  start,
  stripsBeforeMask: true,
  configFields: {
    masks: ["mask_token_id", "smask_token_id", "gmask_token_id"],
    start: "sop_token_id",
  },
};

/** 50256 to 50264: the end of a text is the last token of GPT-2's own vocabulary. */
export const glm10bEnglishTokenizer: TokenizerFacts = {
  kind: "byteLevel",
  file: "vocab.json",
  mergesFile: "merges.txt",
  pattern: String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
  specialTokens: [endOfText, start, end, "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"],
  stopTokens: [end, endOfText],
  fill: { ...fill, publishedIds: { masks: [50_260, 50_264, 50_263], start: 50_257 } },
};

/** 50000 to 50007. No token has the id 50005. */
const chineseTokens = [endOfText, "[SEP]", "[CLS]", "[MASK]", "[UNK]", "<|unused_0|>", start, end];

const chinese = {
  kind: "sentencepiece",
  file: "cog-pretrain.model",
  whitespace: { newline: "<n>" },
  stopTokens: [end, endOfText],
} as const;

/**
 * The authors' default, with which their own configuration of GLM-10B-Chinese reads the checkpoint:
 * [gMASK] shares the id of the end of a piece. In a context it is the mask, in a reply the end.
 */
export const glm10bChineseTokenizer: TokenizerFacts = {
  ...chinese,
  stopTokens: [...chinese.stopTokens],
  specialTokens: [...chineseTokens, "[sMASK]"],
  aliases: { "[gMASK]": end },
  fill: { ...fill, publishedIds: { masks: [50_003, 50_008, 50_007], start: 50_006 } },
};

/** The authors' `fix_command_token`: [gMASK] has an id of its own. */
export const glm10bChineseFixedTokenizer: TokenizerFacts = {
  ...chinese,
  stopTokens: [...chinese.stopTokens],
  specialTokens: [...chineseTokens, "[sMASK]", "[gMASK]"],
  fill: { ...fill, publishedIds: { masks: [50_003, 50_008, 50_009], start: 50_006 } },
};

/** Trained on texts, not on conversations: chat is answered as the text of its rounds. */
const rounds = {
  kind: "rounds",
  prefix: ["[CLS]"],
  suffix: ["[gMASK]", start],
  roles: { system: "system", developer: "system", user: "user", assistant: "assistant" },
  firstRound: 0,
  afterAnswer: "\n",
} satisfies Partial<RoundsPrompt>;

export const glm10bEnglishPrompt: RoundsPrompt = {
  ...rounds,
  beforeQuestion: "Question: ",
  // No space at the end: the model writes it, as part of its first word.
  beforeAnswer: "\nAnswer:",
};

export const glm10bChinesePrompt: RoundsPrompt = {
  ...rounds,
  beforeQuestion: "问：",
  beforeAnswer: "\n答：",
};
