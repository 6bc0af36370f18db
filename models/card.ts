/**
 * What a model card holds: every fact about a GLM family, as data. Code elsewhere reads the card and
 * never asks for a model's name, so that a new family is a new card.
 */

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
    kvHeadCount: string;
    headDim: string;
    ffnSize: string;
    vocabSize: string;
    maxPositions: string;
    normEps: string;
    dtype: string;
  };
  /**
   * Published sizes of the vocabulary, padded to `rows`, and how many ids of them are tokens: without a
   * tokenizer in the directory nothing else tells that the rest never was trained.
   */
  vocabularies?: readonly { rows: number; tokens: number }[];
  rope: RopeFacts;
  /** True in config.json: the fused query, key and value projection has a bias. */
  qkvBiasField: string;
  tensors: TensorNames;
  tokenizer: TokenizerFacts;
  prompt: PromptFormat;
  /** What the authors' code replaces in a chat reply. */
  replyReplacement?: { text: string; by: string };
  sampling: { temperature: number; topP: number };
}

export interface RopeFacts {
  /** Rotated share of each head. */
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
  /** Not in the file: numbered in this order after its tokens. */
  specialTokens: string[];
  /** Names of tokens that end a reply. */
  stopTokens: string[];
} & (
  | { kind: "sentencepiece" }
  /**
   * Lines of a token's bytes in base64 and its rank, or the same as byte-level BPE in `jsonFile`. `pattern`
   * is the authors' regex, which splits a text.
   */
  | { kind: "tiktoken"; jsonFile: string; pattern: string }
);

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

/** Names in the checkpoint; {i} stands for the layer. */
export interface TensorNames {
  embedding: string;
  finalNorm: string;
  head: string;
  layer: {
    attentionNorm: string;
    /** One tensor with the rows q | k | v, or one for each. */
    qkvWeight: readonly [string] | readonly [string, string, string];
    qkvBias: readonly [string] | readonly [string, string, string];
    attentionOut: string;
    /** Norm of what attention gives, before it is added to the residual stream; absent: none. */
    attentionOutNorm?: string;
    /** Norm in front of the feed-forward part. */
    ffnNorm: string;
    /** One tensor with the rows gate | up, or one for each. */
    ffnGateUp: readonly [string] | readonly [string, string];
    ffnDown: string;
    /** Norm of what the feed-forward part gives; absent: none. */
    ffnOutNorm?: string;
  };
}

export type PromptFormat = RolesPrompt | RoundsPrompt;

/** Every message begins with the special token of its role. */
export interface RolesPrompt {
  kind: "roles";
  /** Special tokens in front of every input. */
  prefix: string[];
  /** Role of a message -> special token that opens it. Several roles may share one. */
  roles: Record<string, string>;
  /** Roles that may only open a conversation. */
  firstOnlyRoles: string[];
  /** After the role token comes the metadata (often empty) and a newline, encoded on its own. */
  metadataLine: boolean;
  /** Token that asks the model to reply. */
  generation: string;
}

/** One text, encoded at once: numbered rounds of a question and its answer, the last one open. */
export interface RoundsPrompt {
  kind: "rounds";
  /** Special tokens in front of every input. */
  prefix: string[];
  /** What each role of the API is here. A system message may only be the first. */
  roles: Record<string, "system" | "user" | "assistant">;
  firstRound: number;
  /** Texts around question and answer; {n} is the round. */
  beforeQuestion: string;
  beforeAnswer: string;
  afterAnswer: string;
}
