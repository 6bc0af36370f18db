/**
 * What a model card holds: every fact about a GLM family, as data. Code elsewhere reads the card and
 * never asks for a model's name, so that a new family is a new card.
 */

export interface ModelCard {
  /** Short and stable; part of logs and of the checkpoint's fingerprint. */
  family: string;
  /** For people. */
  title: string;
  match: { architectures: string[]; modelType: string };
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
  rope: RopeFacts;
  /** True in config.json: the fused query, key and value projection has a bias. */
  qkvBiasField: string;
  tensors: TensorNames;
  tokenizer: {
    /** Absent from the directory: the model is served by token ids alone. */
    file: string;
    /** Not in the file: numbered in this order after its pieces. */
    specialTokens: string[];
    /** Names of pieces or special tokens that end a reply. */
    stopTokens: string[];
  };
  prompt: PromptFormat;
  sampling: { temperature: number; topP: number };
}

export interface RopeFacts {
  /** Rotated share of each head. */
  fraction: number;
  /** Unless config.json says. */
  base: number;
  /** The base itself. */
  baseField?: string;
  /** The base is multiplied with this. */
  ratioField?: string;
  /** Published files known to contradict their authors' code: what they say, and what is right. */
  corrections?: readonly { maxPositions: number; written: number; base: number }[];
}

/**
 * One demand on a field of config.json. The value, or `whenAbsent` for a missing or null field, must
 * be one of `allowed` and must not match `refused`. What families mean by an absent field is their
 * own code's default.
 */
export interface ConfigRule {
  field: string;
  allowed?: readonly unknown[];
  whenAbsent?: unknown;
  refused?: RegExp;
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

export interface PromptFormat {
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
