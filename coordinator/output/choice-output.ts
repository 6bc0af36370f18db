/**
 * One choice of a request on its way out: counts tokens, turns them into text, applies the stop
 * rules and says when the choice is finished. A state machine: tokens in, events out.
 */
import type { RequestEvent, SamplingParams, TokenLogprob } from "../inference.js";
import type { Detokenizer } from "../prompt/service.js";

export interface OutputRules {
  sampling: SamplingParams;
  /** The model's own stop tokens; they never become text. */
  modelStopTokens: ReadonlySet<number>;
}

type FinishEvent = Extract<RequestEvent, { type: "finish" }>;
type TokensEvent = Extract<RequestEvent, { type: "tokens" }>;

const noTokens: readonly number[] = [];

export class ChoiceOutput {
  readonly #choice: number;
  readonly #rules: OutputRules;
  readonly #detokenizer: Detokenizer;
  #completionTokens = 0;
  /** Text not yet given out because it may be the beginning of a stop string. */
  #held = "";
  /** Tokens by where in it their text begins; tokens without text of their own share a place. */
  #starts = new Map<number, number>();
  #tokensBehindEnd = 0;

  constructor(choice: number, rules: OutputRules, detokenizer: Detokenizer) {
    this.#choice = choice;
    this.#rules = rules;
    this.#detokenizer = detokenizer;
  }

  /** Of a finished choice: its last tokens that are no part of its text, such as those of a stop string. */
  get tokensBehindEnd(): number {
    return this.#tokensBehindEnd;
  }

  /**
   * Ids that may not be drawn next: stop tokens while the answer is shorter than min_tokens.
   * @param count Tokens decided so far; `push` may not have had all of them yet.
   */
  bannedTokens(count: number): readonly number[] {
    const { sampling, modelStopTokens } = this.#rules;
    if (count >= sampling.minTokens) return noTokens;
    return [...modelStopTokens, ...sampling.stopTokenIds];
  }

  /** Whether the answer ends with this token, its `count`-th, whatever its text is. */
  endsWith(token: number, count: number): boolean {
    return this.#isStop(token, count) || count >= this.#rules.sampling.maxTokens;
  }

  /** Takes the next decided token. After a finish event no more may come. */
  push(result: TokenLogprob): (TokensEvent | FinishEvent)[] {
    const { sampling } = this.#rules;
    this.#completionTokens++;
    const mayStop = this.#completionTokens > sampling.minTokens;
    if (this.#isStop(result.token, this.#completionTokens)) {
      const reason = this.#isModelStop(result.token) ? null : result.token;
      return [this.#finish("stop", reason, this.#held + this.#detokenizer.flush())];
    }
    const last = this.#completionTokens >= sampling.maxTokens;
    this.#starts.set(this.#held.length, (this.#starts.get(this.#held.length) ?? 0) + 1);
    let text = this.#held + this.#detokenizer.push(result.token);
    if (last) text += this.#detokenizer.flush();
    const stop = mayStop ? firstStop(text, sampling.stop) : null;
    const tokens: TokensEvent = {
      type: "tokens",
      choice: this.#choice,
      text: "",
      tokens: [result.token],
      logprobs: sampling.topLogprobs >= 0 ? [result] : [],
    };
    if (stop !== null) {
      const end = sampling.includeStopInOutput ? stop.index + stop.text.length : stop.index;
      for (const [start, count] of this.#starts) if (start >= end) this.#tokensBehindEnd += count;
      return [tokens, this.#finish("stop", stop.text, text.slice(0, end))];
    }
    if (last) return [tokens, this.#finish("length", null, text)];
    const certain = text.length - heldLength(text, sampling.stop);
    this.#held = text.slice(certain);
    if (certain > 0) this.#starts = shifted(this.#starts, certain);
    tokens.text = text.slice(0, certain);
    return [tokens];
  }

  /** The choice ends without a generated token: its prompt was only to be scored. */
  finishEmpty(): FinishEvent {
    return this.#finish("length", null, "");
  }

  #isStop(token: number, count: number): boolean {
    const { minTokens, stopTokenIds } = this.#rules.sampling;
    return count > minTokens && (this.#isModelStop(token) || stopTokenIds.includes(token));
  }

  #isModelStop(token: number): boolean {
    return !this.#rules.sampling.ignoreEos && this.#rules.modelStopTokens.has(token);
  }

  #finish(reason: "stop" | "length", stopReason: string | number | null, text: string): FinishEvent {
    const choice = this.#choice;
    const completionTokens = this.#completionTokens;
    return { type: "finish", choice, text, reason, stopReason, completionTokens };
  }
}

/** Places in a text whose beginning has been given out. */
function shifted(starts: ReadonlyMap<number, number>, by: number): Map<number, number> {
  const left = [...starts].filter(([start]) => start >= by);
  return new Map(left.map(([start, count]) => [start - by, count]));
}

/** The stop string that ends first in the text; of two that end together the longer one. */
function firstStop(text: string, stops: readonly string[]): { index: number; text: string } | null {
  let best: { index: number; text: string } | null = null;
  for (const stop of stops) {
    const index = text.indexOf(stop);
    if (index < 0) continue;
    const end = index + stop.length;
    const bestEnd = best === null ? Number.POSITIVE_INFINITY : best.index + best.text.length;
    if (end < bestEnd || (end === bestEnd && index < best!.index)) best = { index, text: stop };
  }
  return best;
}

/** Length of the longest end of the text with which some stop string begins. */
function heldLength(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
