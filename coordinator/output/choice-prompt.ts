/**
 * What one choice of a request answers: a prompt, or the blanks of a prefix-LM's context one after the other,
 * each in a context in which those before it are filled. A state machine: events of the output in, the
 * choice's events out.
 */
import type { PromptContext, RequestEvent, TokenIds } from "../inference.js";
import { nextBlank } from "../prompt/prefix-boundary.js";

type FinishEvent = Extract<RequestEvent, { type: "finish" }>;
type OutputEvent = Extract<RequestEvent, { type: "tokens" }> | FinishEvent;

export class ChoicePrompt {
  readonly #choice: number;
  #tokens: TokenIds;
  #context: PromptContext | null;
  /** Blanks filled so far, and their tokens in all, with those that ended them. */
  #blanks = 0;
  #completionTokens = 0;
  /** Tokens of the blank that is being filled. */
  #filling: number[] = [];

  constructor(choice: number, tokens: TokenIds, context: PromptContext | null) {
    this.#choice = choice;
    this.#tokens = tokens;
    this.#context = context;
  }

  get tokens(): TokenIds {
    return this.#tokens;
  }

  get context(): PromptContext | null {
    return this.#context;
  }

  /** What becomes of an event of the output: the end of a blank is the end of the choice only for the last one. */
  events(event: OutputEvent): RequestEvent[] {
    const context = this.#context;
    if (context === null || context.mask < 0) return [event];
    if (event.type === "tokens") {
      if (context.remainingMasks.length > 0) this.#filling.push(...event.tokens);
      return [event];
    }
    const { text, reason } = event;
    const mask = this.#tokens[context.mask]!;
    this.#completionTokens += event.completionTokens;
    const filled: RequestEvent = {
      type: "blank",
      choice: this.#choice,
      blank: this.#blanks,
      mask,
      text,
      reason,
    };
    if (context.remainingMasks.length > 0) return [filled];
    return [filled, { ...event, text: "", completionTokens: this.#completionTokens }];
  }

  /**
   * After the end of a blank: turns to the next one.
   * @param behindEnd Tokens at its end that are no part of its text.
   * @returns false when there is none.
   */
  next(behindEnd: number): boolean {
    if (this.#context === null || this.#context.remainingMasks.length === 0) return false;
    const filling = this.#filling.slice(0, this.#filling.length - behindEnd);
    const { promptTokens, context } = nextBlank(this.#tokens, this.#context, filling);
    this.#tokens = promptTokens;
    this.#context = context;
    this.#blanks++;
    this.#filling = [];
    return true;
  }
}

/** The longest reply, and the longest context that any blank is filled in, when each takes `maxTokens`. */
export function mostTokens(
  prompt: TokenIds,
  context: PromptContext | null,
  maxTokens: number,
): { reply: number; context: number } {
  const later = context?.remainingMasks.length ?? 0;
  const first = context?.length ?? 0;
  // What stood behind the start token goes into the first blank, each mask makes room for its filling.
  const last = prompt.length - 1 + later * (maxTokens - 1);
  return { reply: (1 + later) * maxTokens, context: later === 0 ? first : Math.max(first, last) };
}
