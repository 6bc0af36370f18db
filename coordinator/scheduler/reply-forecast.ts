/** What sequences are taken to need beyond what they have: replies as long as those that ended lately. Pure. */
import type { SequenceState } from "./sequence.js";

/** How much the newest ended reply counts in what the next ones are taken to need. */
const replyWeight = 1 / 32;

/** What is known of a sequence that runs, or that would if it started. */
export type Growing = Pick<SequenceState, "promptLength" | "longest" | "blocks" | "reservation">;

export class ReplyForecast {
  readonly #blocksFor: (tokens: number) => number;
  /** Mean tokens of the replies that ended lately. */
  #tokens: number;

  /**
   * @param first Tokens of a reply before any has ended.
   * @param blocksFor Of a sequence with so many tokens.
   */
  constructor(first: number, blocksFor: (tokens: number) => number) {
    this.#tokens = first;
    this.#blocksFor = blocksFor;
  }

  /** A reply has ended. */
  ended(tokens: number): void {
    this.#tokens += replyWeight * (tokens - this.#tokens);
  }

  /** Blocks that a sequence is taken to need beyond those it has; never more than its limits let it have. */
  growthOf({ promptLength, longest, blocks, reservation }: Growing): number {
    const length = Math.min(longest, promptLength + Math.ceil(this.#tokens));
    return Math.max(0, this.#blocksFor(length) - blocks.length - reservation);
  }
}
