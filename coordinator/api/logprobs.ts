/** Logprobs in the two shapes that OpenAI's endpoints have, and the names of tokens in them. */
import type { TokenLogprob } from "../inference.js";
import type { PromptService } from "../prompt/service.js";

/** JSON has no -Infinity; this is what OpenAI's and vLLM's servers write for an impossible token. */
const lowestLogprob = -9_999;

const written = (logprob: number): number => Math.max(logprob, lowestLogprob);

export interface TokenNames {
  strings(tokens: number[]): string[];
  /** Null when the model has no tokenizer. */
  bytes(token: number): Uint8Array | null;
}

export function tokenNames(prompt: PromptService, asTokenIds: boolean): TokenNames {
  return {
    strings: (tokens) =>
      asTokenIds || !prompt.available
        ? tokens.map((token) => `token_id:${token}`)
        : prompt.tokenStrings(tokens),
    bytes: (token) => (prompt.available ? prompt.tokenBytes(token) : null),
  };
}

interface ChatToken {
  token: string;
  logprob: number;
  bytes: number[] | null;
}

export function chatLogprobs(scores: TokenLogprob[], names: TokenNames) {
  const named = ({ token, logprob }: { token: number; logprob: number }): ChatToken => {
    const bytes = names.bytes(token);
    return {
      token: names.strings([token])[0] ?? "",
      logprob: written(logprob),
      bytes: bytes === null ? null : [...bytes],
    };
  };
  return {
    content: scores.map((score) => ({ ...named(score), top_logprobs: score.top.map(named) })),
    refusal: null,
  };
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

  /** @param scores Null for a token that nothing precedes, or that sees what it would be scored by. */
  write(tokens: number[], scores: (TokenLogprob | null)[]): CompletionLogprobs {
    return {
      tokens: this.#names.strings(tokens),
      token_logprobs: scores.map((score) => (score === null ? null : written(score.logprob))),
      top_logprobs: scores.map((score) => (score === null ? null : this.#alternatives(score))),
      text_offset: tokens.map((token) => {
        const offset = this.#offset;
        this.#offset += characterStarts(this.#names.bytes(token));
        return offset;
      }),
    };
  }

  /**
   * The best alternatives and the token itself, which need not be among them. Where two ids have the same
   * string the better one stays.
   */
  #alternatives(score: TokenLogprob): Record<string, number> {
    const all = [...score.top, { token: score.token, logprob: score.logprob }];
    const strings = this.#names.strings(all.map(({ token }) => token));
    const best = new Map<string, number>();
    for (const [i, { logprob }] of all.entries()) {
      const name = strings[i] ?? "";
      if (!best.has(name)) best.set(name, written(logprob));
    }
    // Not a plain literal: a token may well be called __proto__.
    return Object.fromEntries(best);
  }
}

/** Characters that begin within these bytes; one that is spread over tokens counts for its first. */
function characterStarts(bytes: Uint8Array | null): number {
  let starts = 0;
  for (const byte of bytes ?? []) if ((byte & 0xc0) !== 0x80) starts++;
  return starts;
}

export function joinLogprobs(pieces: CompletionLogprobs[]): CompletionLogprobs {
  return {
    tokens: pieces.flatMap((piece) => piece.tokens),
    token_logprobs: pieces.flatMap((piece) => piece.token_logprobs),
    top_logprobs: pieces.flatMap((piece) => piece.top_logprobs),
    text_offset: pieces.flatMap((piece) => piece.text_offset),
  };
}
