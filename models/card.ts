/**
 * What a model card holds: every fact about a GLM family, as data. Code elsewhere reads the card and
 * never asks for a model's name, so that a new family is a new card.
 */

import type { LayerForm } from "./shape.js";

export interface ModelCard {
  /** Short and stable; part of logs and of the checkpoint's fingerprint. */
  family: string;
  /** For people. */
  title: string;
  match: CardMatch;
  /** What config.json must say for the engine to compute this model rightly. */
  rules: ConfigRule[];
  /** Where config.json keeps the numbers of ModelShape. */
  config: {
    hiddenSize: string;
    layerCount: string;
    headCount: string;
    /** null: every query head has its own. */
    kvHeadCount: string | null;
    /** null: hidden size / heads. */
    headDim: string | null;
    ffnSize: string;
    vocabSize: string;
    maxPositions: string;
    normEps: string;
    dtype: string;
  };
  /** How layers compute; a scale of "sqrt(2 layers)" grows with the number of layers. */
  form: Omit<LayerForm, "residualScale"> & { residualScale: number | "sqrt(2 layers)" };
  attention: AttentionFacts;
  /**
   * Published sizes of the vocabulary, padded to `rows`, and how many ids of them are tokens: without a
   * tokenizer in the directory nothing else tells that the rest never was trained.
   */
  vocabularies?: readonly { rows: number; tokens: number }[];
  rope: RopeFacts;
  /** Of layers whose feed-forward part is chosen per token; absent: none. */
  experts?: ExpertFacts;
  /** Switches of config.json that decide whether tensors are there; absent: those that have a name are. */
  switches?: { qkvBias?: string; headNorms?: string };
  /** Counts layers behind the model's own that are in the file and not used. */
  extraLayersField?: string;
  tensors: TensorNames;
  tokenizer: TokenizerFacts;
  prompt: PromptFormat;
  /** What the authors' code replaces in a chat reply. */
  replyReplacement?: { text: string; by: string };
  /** Whitespace at the end of a chat reply is dropped too, not only that in front of it. */
  replyStripsEnd?: boolean;
  replyPunctuation?: PunctuationRule;
  sampling: { temperature: number; topP: number };
}

/**
 * Who sees whom. Causal: every row those before it. Prefix: the context, up to the token that starts the
 * reply, is read as a whole, in both directions.
 */
export type AttentionFacts =
  | { kind: "causal" }
  | {
      kind: "prefix";
      /** Masks whose position all of the reply takes; after others positions go on. */
      constantPositionMasks: string[];
      /** Also trained to read its context causally, for requests that ask for it. */
      causalMode: boolean;
    };

/** Fields of config.json. The first layers have no experts. */
export interface ExpertFacts {
  count: string;
  perToken: string;
  groups: string;
  groupsPerToken: string;
  ffnSize: string;
  /** Experts that every token passes through, as one that is so many times as wide. */
  sharedCount: string;
  normalizeWeights: string;
  scale: string;
  denseLayers: string;
}

/** In a chat reply these marks become others beside (before or after) a character of the range. */
export interface PunctuationRule {
  marks: Readonly<Record<string, string>>;
  /** First and last code point. */
  beside: readonly [number, number];
}

export interface RopeFacts {
  /** Rotated share of each head; 0 where positions are learned. */
  fraction: number;
  /** Unless config.json says. */
  base: number;
  /** The base itself. */
  baseField?: string;
  /** Multiplies the base, or divides every position; absent from config.json: 1. */
  ratioField?: string;
  ratioMeaning?: "base" | "positions";
  /** Published files known to contradict their authors' code: what they say, and what is right. */
  corrections?: readonly { maxPositions: number; written: number; base: number }[];
}

/** How the card of a model directory is found (models/index.ts). */
export interface CardMatch {
  /** Names of the code that computes the model; several families share them. */
  architectures: string[];
  modelType: string;
  /** Fields of config.json that no other family of these architectures has alike. */
  fields: ConfigRule[];
  /** The family's name within a published name or a path. */
  names: RegExp;
  /** Stands in tokenizer_config.json of this family alone, among those that `fields` leaves. */
  tokenizerMark?: string;
}

export type TokenizerFacts = {
  /** Absent from the directory: the model is served by token ids alone. */
  file: string;
  /**
   * Not among the file's own tokens: numbered in this order after them, unless a tokenizer.json lists them
   * with ids of its own.
   */
  specialTokens: string[];
  /** Second names of tokens: where two tokens share one id. */
  aliases?: Readonly<Record<string, string>>;
  /** Those of them that are part of a reply's text, like the tags around a thought. */
  visibleTokens?: string[];
  /** Names of tokens that end a reply. */
  stopTokens: string[];
  /** A model that fills blanks; absent: it only goes on. */
  fill?: FillFacts;
} & (SentencePieceFacts | TiktokenFacts | ByteLevelFacts);

export interface SentencePieceFacts {
  kind: "sentencepiece";
  /** Id of the file's first piece; those below stand for no text (icetk: images). Absent: 0. */
  firstPieceId?: number;
  /** Pieces that the authors' code adds in memory, after the file's own; bytes switch byte fallback on. */
  addedPieces?: readonly AddedPiece[];
  /** Whitespace that the file's normaliser would lose, written as user-defined pieces. */
  whitespace?: WhitespaceMarks;
}

export interface AddedPiece {
  text: string;
  type: "control" | "userDefined" | "byte";
}

/** What the authors' code writes for whitespace before encoding, and turns back after decoding. */
export interface WhitespaceMarks {
  newline: string;
  tab?: string;
  /** Runs of two spaces and more; {n} is their number. A longer run is cut, the longest parts first. */
  spaces?: { mark: string; longest: number };
}

/**
 * Lines of a token's bytes in base64 and its rank, or the same as byte-level BPE in `jsonFile`. `pattern`
 * is the authors' regex, which splits a text.
 */
export interface TiktokenFacts {
  kind: "tiktoken";
  jsonFile: string;
  pattern: string;
}

/** GPT-2's two files: `file` gives each token its id, `mergesFile` says what is merged, best first. */
export interface ByteLevelFacts {
  kind: "byteLevel";
  mergesFile: string;
  pattern: string;
}

/**
 * How a text with blanks becomes a prompt. The names of the masks are the only special tokens that a
 * client may write within a text, and only in a completion.
 */
export interface FillFacts {
  /** Names of the masks, in order of preference. */
  masks: readonly string[];
  /** Which one is filled: the leftmost of the preferred kind that is there, or the leftmost of all. */
  order: "kind" | "place";
  /** The mask that ends a text without any. */
  append: string;
  /** Token that ends a text with a mask elsewhere than at its end; null: none. */
  endWhenNoMaskAtEnd: string | null;
  /** Token behind the prompt: the first one that the model does not see from everywhere. */
  start: string;
  /** Whitespace directly in front of a mask is dropped. */
  stripsBeforeMask: boolean;
  /** Ids of masks and start in the published vocabulary, for a directory without the tokenizer. */
  publishedIds: { masks: readonly number[]; start: number };
  /** Fields of config.json that may say otherwise, in a directory without the tokenizer. */
  configFields?: { masks: readonly string[]; start: string };
}

/**
 * One demand on a field of config.json. The value, or `whenAbsent` for a missing or null field, must
 * be one of `allowed` and none of `refused`. What families mean by an absent field is their
 * own code's default.
 */
export interface ConfigRule {
  field: string;
  allowed?: readonly unknown[];
  whenAbsent?: unknown;
  refused?: readonly unknown[];
  /** What a violation means, for the person who reads the error. */
  meaning: string;
}

/** Names in the checkpoint; {i} stands for the layer, {e} for the expert. Absent: the family has no such tensor. */
export interface TensorNames {
  embedding: string;
  /** Learned positions, of the text and within what is generated. */
  positionEmbedding?: string;
  blockPositionEmbedding?: string;
  finalNorm: string;
  finalNormBias?: string;
  /** The same as `embedding` where they are tied. */
  head: string;
  /** Stands for a head that is not in the file. */
  headFallback?: string;
  layer: {
    attentionNorm: string;
    attentionNormBias?: string;
    /** One tensor, or one for each of q, k and v. */
    qkvWeight: readonly [string] | readonly [string, string, string];
    qkvBias?: readonly [string] | readonly [string, string, string];
    /** Rows of one tensor: all of q, then k, then v; or these three for each head in turn. */
    qkvRows: "blocks" | "heads";
    queryNorm?: string;
    keyNorm?: string;
    attentionOut: string;
    attentionOutBias?: string;
    /** Norm of what attention gives, before it is added to the residual stream. */
    attentionOutNorm?: string;
    /** Norm in front of the feed-forward part. */
    ffnNorm: string;
    ffnNormBias?: string;
    /** One tensor with all rows in front of the activation, or one for each half. */
    ffnUp: readonly [string] | readonly [string, string];
    ffnUpBias?: readonly [string];
    ffnDown: string;
    ffnDownBias?: string;
    /** Norm of what the feed-forward part gives. */
    ffnOutNorm?: string;
    experts?: {
      router: string;
      routerBias: string;
      up: readonly [string, string];
      down: string;
      /** In place of ffnUp and ffnDown. */
      sharedUp: readonly [string, string];
      sharedDown: string;
    };
  };
}

export type PromptFormat = RolesPrompt | RoundsPrompt | TurnsPrompt;

/** Every message begins with the special token of its role. */
export interface RolesPrompt {
  kind: "roles";
  /** Special tokens in front of every input. */
  prefix: string[];
  /** Special tokens behind every input; absent: none. */
  suffix?: string[];
  /** Role of a message -> special token that opens it. Several roles may share one. */
  roles: Record<string, string>;
  /** Roles that may only open a conversation. */
  firstOnlyRoles: string[];
  /**
   * After the role token comes the metadata (often empty) and a newline, encoded on its own ("apart") or as
   * one text with the content ("joined"), as the authors' code does.
   */
  metadataLine: "apart" | "joined";
  /** Token that asks the model to reply, and that begins each part of a reply. */
  generation: string;
  /** A system turn in front of all others that describes the tools. */
  tools: ToolsText;
  calls: PythonCalls | JsonCalls;
  /** Present: the checkpoint's own chat template is used where there is one. */
  ownTemplate?: OwnTemplate;
}

/** One text, encoded at once: numbered rounds of a question and its answer, the last one open. */
export interface RoundsPrompt {
  kind: "rounds";
  /** Special tokens in front of every input. */
  prefix: string[];
  /** Special tokens behind every input; absent: none. */
  suffix?: string[];
  /** What each role of the API is here. A system message may only be the first. */
  roles: Record<string, "system" | "user" | "assistant">;
  firstRound: number;
  /** A question without a history is encoded as it is, without the texts around it. */
  bareFirstQuestion?: boolean;
  /** Texts around question and answer; {n} is the round. */
  beforeQuestion: string;
  beforeAnswer: string;
  afterAnswer: string;
}

/**
 * Turns with tags of their own for thoughts, calls and results. Names of special tokens in these texts are
 * the tokens; what stands between two of them is encoded as one text.
 */
export interface TurnsPrompt {
  kind: "turns";
  /** Special tokens in front of every input. */
  prefix: string[];
  roles: Record<string, "system" | "user" | "assistant" | "tool">;
  /** What opens a turn; results in a row share one. */
  open: Record<"system" | "user" | "assistant" | "tool", string>;
  /** In front of a system message's, a question's and an answer's text. */
  beforeContent: string;
  /** Around each result. */
  beforeResult: string;
  afterResult: string;
  thinking: ThinkingTags;
  tools: ToolsText;
  calls: TaggedCalls;
  ownTemplate?: OwnTemplate;
}

export interface ThinkingTags {
  begin: string;
  end: string;
  /** In front of `begin` in the turns of the assistant. */
  before: string;
  /** At the end of a question: no thought is wanted. */
  off: string;
}

/** Slots: {{functions}} in `before` (all of them as JSON); {{name}}, {{function}}, {{tool}} in `each`. */
export interface ToolsText {
  before: string;
  each: string;
  after: string;
  /** Spaces of the JSON; 0: on one line. */
  indent: number;
}

/** The tool's name on the metadata line, then a fenced block of Python with one call of `callee`. */
export interface PythonCalls {
  kind: "python";
  callee: string;
  /** A tool that takes the block itself, as this argument. */
  code: { tool: string; argument: string };
}

/** The tool's name on the metadata line, then the arguments as JSON. */
export interface JsonCalls {
  kind: "json";
}

/** Tags around the call, around each argument's name and around its value. */
export interface TaggedCalls {
  kind: "tags";
  call: readonly [string, string];
  name: readonly [string, string];
  value: readonly [string, string];
}

export interface OwnTemplate {
  /** Role of the API -> role that the template knows; one that is missing stays as it is. */
  roles: Record<string, string>;
  /** Of a format without thoughts: what stands around them where a model's template has them. */
  thinking?: { begin: string; end: string };
}
