/** Logprobs of a prompt's tokens, collected step by step. */
import type { PromptContext, TokenIds, TokenLogprob } from "../inference.js";

export class PromptScores {
  readonly #prompt: TokenIds;
  /** Rows of a context see the tokens that they would score. */
  readonly #firstRow: number;
  readonly #scores: (TokenLogprob | null)[];

  constructor(prompt: TokenIds, context: PromptContext | null) {
    this.#prompt = prompt;
    this.#firstRow = context?.length ?? 0;
    // No row scores the first token, of a context all and the one behind it.
    this.#scores = Array.from({ length: this.#firstRow + 1 }, () => null);
  }

  /** What the rows [start, start + count) score: row i the token behind it; -1: nothing. */
  targets(start: number, count: number): number[] {
    return Array.from({ length: count }, (_, index) => {
      const row = start + index;
      return row < this.#firstRow ? -1 : (this.#prompt[row + 1] ?? -1);
    });
  }

  /** @returns the scores of the whole prompt, null for what has none, with the last of them; null before. */
  take(scores: readonly TokenLogprob[]): (TokenLogprob | null)[] | null {
    this.#scores.push(...scores);
    return this.#scores.length === this.#prompt.length ? this.#scores : null;
  }
}
