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
  /**
   * Not among the file's own tokens: numbered in this order after them, unless a tokenizer.json lists them
   * with ids of its own.
   */
  specialTokens: string[];
  /** Those of them that are part of a reply's text, like the tags around a thought. */
  visibleTokens?: string[];
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

export type PromptFormat = RolesPrompt | RoundsPrompt | TurnsPrompt;

/** Every message begins with the special token of its role. */
export interface RolesPrompt {
  kind: "roles";
  /** Special tokens in front of every input. */
  prefix: string[];
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
  /** What each role of the API is here. A system message may only be the first. */
  roles: Record<string, "system" | "user" | "assistant">;
  firstRound: number;
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
