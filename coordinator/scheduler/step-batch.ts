/** A step while it is formed: what it has, and what it may still take. */
import { goesBefore, type RequestClass } from "../request-class.js";
import { isDecode, type Runner } from "./survey.js";
import { causalKeys, type StepSize } from "./timing/step-size.js";

export interface StepLimits {
  /** Rows in all, contexts apart. */
  rows: number;
  /** Sequences. */
  share: number;
  /** Those of them that decode, so that no step has all decodes while others have none. */
  decodeShare: number;
  /** Steps on their way, this one included. */
  microBatches: number;
  /** Somebody waits for a next token, in this step or in another. */
  decoding: boolean;
  /** A context may come whole; otherwise it is read in slices. */
  wholeContexts: boolean;
}

export class StepBatch {
  readonly limits: StepLimits;
  readonly size: StepSize = { rows: 0, keys: 0 };
  #sequences = 0;
  #decodes = 0;
  #prompts = 0;
  #budget: number;
  #hasContext = false;
  /** Of a sequence that must go with a later step: none of a later class goes before it. */
  #passedOver: RequestClass | null = null;

  constructor(limits: StepLimits) {
    this.limits = limits;
    this.#budget = limits.rows;
  }

  /** Rows that it has room for, contexts apart. */
  get budget(): number {
    return this.#budget;
  }

  get full(): boolean {
    return this.#sequences >= this.limits.share || this.#budget === 0;
  }

  /** It has a whole context. */
  get hasContext(): boolean {
    return this.#hasContext;
  }

  get decodes(): number {
    return this.#decodes;
  }

  /** It has rows of a prompt. */
  get hasPrompt(): boolean {
    return this.#prompts > 0;
  }

  /** Whether a sequence may travel with it. One context per step: the stages have room for the longest one. */
  admits(sequence: Runner & { whole: number }): boolean {
    if (this.#passedOver !== null && goesBefore(this.#passedOver, sequence.class)) return false;
    if (sequence.computed < sequence.whole) return this.limits.wholeContexts && !this.#hasContext;
    if (!isDecode(sequence) || this.#decodes < this.limits.decodeShare) return true;
    this.#passedOver ??= sequence.class;
    return false;
  }

  /**
   * Rows [start, start + count) of a sequence.
   * @param whole Those of its context, 0 without one.
   * @param decodes They are the row of its newest token.
   */
  add(start: number, count: number, whole: number, decodes: boolean): void {
    this.#sequences++;
    if (decodes) this.#decodes++;
    else this.#prompts++;
    this.#hasContext ||= whole > 0;
    this.#budget -= count - whole;
    this.size.rows += count;
    // Rows of a context read all of it.
    this.size.keys += whole > 0 ? count * (start + count) : causalKeys(start, count);
  }

  /** Guessed rows [start, start + count) of a sequence that travels with it. */
  addDraft(start: number, count: number): void {
    this.#budget -= count;
    this.size.rows += count;
    this.size.keys += causalKeys(start, count);
  }
}
