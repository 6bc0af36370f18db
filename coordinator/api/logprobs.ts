/** Logprobs in the two shapes that OpenAI's endpoints have, and the names of tokens in them. */
import type { TokenIds, TokenLogprob } from "../inference.js";
import type { PromptService } from "../prompt/service.js";
import { Slices, sliced } from "./json-text.js";

/** JSON has no -Infinity; this is what OpenAI's and vLLM's servers write for an impossible token. */
const lowestLogprob = -9_999;

export const written = (logprob: number): number => Math.max(logprob, lowestLogprob);

export interface TokenNames {
  strings(tokens: TokenIds): string[];
  /** Null when the model has no tokenizer. */
  bytes(token: number): Uint8Array | null;
}

export function tokenNames(prompt: PromptService, asTokenIds: boolean): TokenNames {
  return {
    strings: (tokens) =>
      asTokenIds || !prompt.available
        ? Array.from(tokens, (token) => `token_id:${token}`)
        : prompt.tokenStrings(tokens),
    bytes: (token) => (prompt.available ? prompt.tokenBytes(token) : null),
  };
}

interface ChatToken {
  token: string;
  logprob: number;
  bytes: number[] | null;
}

interface ScoredToken extends ChatToken {
  top_logprobs: ChatToken[];
}

export function chatLogprobs(scores: TokenLogprob[], names: TokenNames): ScoredToken[] {
  const named = ({ token, logprob }: { token: number; logprob: number }): ChatToken => {
    const bytes = names.bytes(token);
    return {
      token: names.strings([token])[0] ?? "",
      logprob: written(logprob),
      bytes: bytes === null ? null : [...bytes],
    };
  };
  return scores.map((score) => ({ ...named(score), top_logprobs: score.top.map(named) }));
}

/** Tokens with their scores, null for one that nothing precedes or that sees what it would be scored by. */
export interface ScoredTokens {
  tokens: TokenIds;
  scores: readonly (TokenLogprob | null)[];
}

/** Cuts a long run up. */
export function* scoredSlices({ tokens, scores }: ScoredTokens): Generator<ScoredTokens> {
  const list = Array.from(tokens);
  yield* sliced(list, (begin, end) => ({
    tokens: list.slice(begin, end),
    scores: scores.slice(begin, end),
  }));
}

export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
}

/** Builds the lists of one choice piece by piece; offsets run on from piece to piece. */
export class CompletionLogprobsWriter {
  readonly #names: TokenNames;
  /** Characters (Unicode code points) of the choice's text before the next token. */
  #offset = 0;

  constructor(names: TokenNames) {
    this.#names = names;
  }

  write({ tokens, scores }: ScoredTokens): CompletionLogprobs {
    return {
      tokens: this.#names.strings(tokens),
      token_logprobs: tokenLogprobs(scores),
      top_logprobs: topLogprobs(scores, this.#names),
      text_offset: this.#offsets(tokens),
    };
  }

  /** The lists of a whole choice, made while they are written. @param pieces Its tokens in order, cut up. */
  writeAll(pieces: () => Iterable<ScoredTokens>): Record<keyof CompletionLogprobs, Slices> {
    const list = (make: (piece: ScoredTokens) => readonly unknown[]) => new Slices(mapped(pieces, make));
    return {
      tokens: list(({ tokens }) => this.#names.strings(tokens)),
      token_logprobs: list(({ scores }) => tokenLogprobs(scores)),
      top_logprobs: list(({ scores }) => topLogprobs(scores, this.#names)),
      text_offset: list(({ tokens }) => this.#offsets(tokens)),
    };
  }

  #offsets(tokens: TokenIds): number[] {
    return Array.from(tokens, (token) => {
      const offset = this.#offset;
      this.#offset += characterStarts(this.#names.bytes(token));
      return offset;
    });
  }
}

function* mapped<T, R>(pieces: () => Iterable<T>, make: (piece: T) => R): Generator<R> {
  for (const piece of pieces()) yield make(piece);
}

function tokenLogprobs(scores: ScoredTokens["scores"]): (number | null)[] {
  return scores.map((score) => (score === null ? null : written(score.logprob)));
}

/**
 * The best alternatives and the token itself, which need not be among them. Where two ids have the same
 * string the better one stays.
 */
function topLogprobs(scores: ScoredTokens["scores"], names: TokenNames): (Record<string, number> | null)[] {
  return scores.map((score) => {
    if (score === null) return null;
    const all = [...score.top, { token: score.token, logprob: score.logprob }];
    const strings = names.strings(all.map(({ token }) => token));
    const best = new Map<string, number>();
    for (const [i, { logprob }] of all.entries()) {
      const name = strings[i] ?? "";
      if (!best.has(name)) best.set(name, written(logprob));
    }
    // Not a plain literal: a token may well be called __proto__.
    return Object.fromEntries(best);
  });
}

/** Characters that begin within these bytes; one that is spread over tokens counts for its first. */
function characterStarts(bytes: Uint8Array | null): number {
  let starts = 0;
  for (const byte of bytes ?? []) if ((byte & 0xc0) !== 0x80) starts++;
  return starts;
}
