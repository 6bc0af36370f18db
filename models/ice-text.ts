/**
 * The tokenizer of ChatGLM-6B and GLM-130B: icetk's SentencePiece model `ice_text.model`, a unigram model
 * with an nmt_nfkc normaliser. ChatGLM-6B's file holds everything. GLM-130B's holds the 130,000 pieces of
 * text alone; its code adds the others in memory, in ChatGLM-6B's order, and counts 20,000 images first.
 */
import type {
  AddedPiece,
  FillFacts,
  PunctuationRule,
  RoundsPrompt,
  TokenizerFacts,
  WhitespaceMarks,
} from "./card.js";

const whitespace: WhitespaceMarks = {
  newline: "<n>",
  tab: "<|tab|>",
  spaces: { mark: "<|blank_{n}|>", longest: 80 },
};

/** Counted from the first piece. */
const firstSpecial = 130_000;
const images = 20_000;

/** The position of a reply is that of [gMASK] where there is one, else that of [MASK]. */
const chatglm6bFill: FillFacts = {
  masks: ["[gMASK]", "[MASK]"],
  order: "kind",
  append: "[gMASK]",
  endWhenNoMaskAtEnd: null,
  start: "<sop>",
  stripsBeforeMask: false,
  publishedIds: { masks: [firstSpecial + 1, firstSpecial], start: firstSpecial + 4 },
  configFields: { masks: ["gmask_token_id", "mask_token_id"], start: "bos_token_id" },
};

export const chatglm6bTokenizer: TokenizerFacts = {
  kind: "sentencepiece",
  file: "ice_text.model",
  specialTokens: [],
  stopTokens: ["<eop>"],
  whitespace,
  fill: chatglm6bFill,
};

/** A first question is encoded as it is; with a history all rounds are numbered from 0. */
export const chatglm6bPrompt: RoundsPrompt = {
  kind: "rounds",
  prefix: [],
  suffix: ["[gMASK]", "<sop>"],
  roles: { system: "system", developer: "system", user: "user", assistant: "assistant" },
  firstRound: 0,
  bareFirstQuestion: true,
  beforeQuestion: "[Round {n}]\n问：",
  beforeAnswer: "\n答：",
  afterAnswer: "\n",
};

/** What the authors' code does to a reply, in this order. */
export const chatglm6bReply = {
  replyStripsEnd: true,
  // The model was trained to write this where it would tell when it was trained.
  replyReplacement: { text: "[[训练时间]]", by: "2023年" },
  // The tokenizer's normaliser writes full-width marks as ASCII; this undoes it in Chinese text.
  replyPunctuation: {
    marks: { ",": "，", "!": "！", ":": "：", ";": "；", "?": "？" },
    beside: [0x4e00, 0x9fff],
  } satisfies PunctuationRule,
};

const control = ["[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"];
const tabAndSpaces = ["<|tab|>", ...Array.from({ length: 79 }, (_, index) => `<|blank_${index + 2}|>`)];
const bytes = Array.from(
  { length: 256 },
  (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
);

/** The file's 130,000 pieces are 20000 to 149999; these follow up to 150343. */
const addedPieces: AddedPiece[] = [
  ...control.map((text): AddedPiece => ({ text, type: "control" })),
  ...tabAndSpaces.map((text): AddedPiece => ({ text, type: "userDefined" })),
  ...bytes.map((text): AddedPiece => ({ text, type: "byte" })),
];

export const glm130bTokenizer: TokenizerFacts = {
  kind: "sentencepiece",
  file: "ice_text.model",
  firstPieceId: images,
  addedPieces,
  specialTokens: [],
  stopTokens: ["<eop>", "</s>"],
  whitespace,
  fill: {
    masks: ["[MASK]", "[sMASK]", "[gMASK]"],
    order: "kind",
    append: "[gMASK]",
    endWhenNoMaskAtEnd: "</s>",
    start: "<sop>",
    stripsBeforeMask: false,
    publishedIds: {
      masks: [0, 2, 1].map((place) => images + firstSpecial + place),
      start: images + firstSpecial + 4,
    },
    configFields: {
      masks: ["mask_token_id", "smask_token_id", "gmask_token_id"],
      start: "sop_token_id",
    },
  },
};

/**
 * The model was trained on texts, not on conversations: chat is answered as the text of its rounds, in
 * which the next answer is what is missing.
 */
export const glm130bPrompt: RoundsPrompt = {
  kind: "rounds",
  prefix: [],
  suffix: ["[gMASK]", "<sop>"],
  roles: { system: "system", developer: "system", user: "user", assistant: "assistant" },
  firstRound: 0,
  beforeQuestion: "问：",
  beforeAnswer: "\n答：",
  afterAnswer: "\n",
};
