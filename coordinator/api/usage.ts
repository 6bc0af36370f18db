/** What a call has used so far, for responses and chunks. */
import type { GenerationRequest } from "../inference.js";
import type { AnswerEvent } from "./answer.js";

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

export class UsageCounter {
  readonly promptTokens: number;
  readonly #completionTokens: number[];
  readonly #choicesPerPrompt: number;
  #cachedTokens = 0;

  /** @param n Choices per prompt: a prompt counts once, however often it is answered. */
  constructor(choices: GenerationRequest["choices"], n: number) {
    this.promptTokens = choices.reduce(
      (sum, choice, i) => sum + (i % n === 0 ? choice.promptTokens.length : 0),
      0,
    );
    this.#completionTokens = choices.map(() => 0);
    this.#choicesPerPrompt = n;
  }

  note(event: AnswerEvent): void {
    if (event.type === "tokens") {
      this.#completionTokens[event.choice] =
        (this.#completionTokens[event.choice] ?? 0) + event.tokens.length;
    } else if (event.type === "finish") {
      this.#completionTokens[event.choice] = event.completionTokens;
      // A prompt counts once: its other choices share the blocks of the first one.
      if (event.choice % this.#choicesPerPrompt === 0) this.#cachedTokens += event.cachedTokens ?? 0;
    }
  }

  get usage(): Usage {
    const completionTokens = this.#completionTokens.reduce((sum, count) => sum + count, 0);
    return {
      prompt_tokens: this.promptTokens,
      completion_tokens: completionTokens,
      total_tokens: this.promptTokens + completionTokens,
      prompt_tokens_details: { cached_tokens: this.#cachedTokens },
    };
  }
}
