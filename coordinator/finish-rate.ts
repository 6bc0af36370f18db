/**
 * How fast sequences have been finishing lately, for the Retry-After of those that found the queue full. The mean
 * forgets by time constantly served: what happened while nothing was there to finish says nothing. Pure.
 */

/** What lies this far back counts 1/e of what happens now. */
const timeConstantMs = 30_000;
/** What a refused client is told lies between these, however slow or fast it goes. */
export const retryAfterLeastS = 1;
export const retryAfterMostS = 120;
/** What it is told before anything has finished. */
export const retryAfterUnknownS = 5;

export class FinishRate {
  /** Finished sequences, and the time in which they did, both fading alike. */
  #finished = 0;
  #servedMs = 0;
  #notedMs = 0;
  #isServing = false;

  /**
   * Call whenever sequences begin or end.
   * @param open Sequences that are there from now on.
   * @param finished Of those that ended now, the ones that were answered.
   */
  note(nowMs: number, open: number, finished = 0): void {
    this.#pass(nowMs);
    this.#finished += finished;
    this.#isServing = open > 0;
  }

  /** Seconds until so many sequences will have finished, if it goes on like that; within the range above. */
  retryAfterS(nowMs: number, count: number): number {
    this.#pass(nowMs);
    if (this.#finished === 0) return retryAfterUnknownS;
    const seconds = (count * this.#servedMs) / this.#finished / 1_000;
    return Math.min(retryAfterMostS, Math.max(retryAfterLeastS, seconds));
  }

  #pass(nowMs: number): void {
    if (this.#isServing) {
      const kept = Math.exp(-(nowMs - this.#notedMs) / timeConstantMs);
      this.#finished *= kept;
      this.#servedMs = this.#servedMs * kept + timeConstantMs * (1 - kept);
    }
    this.#notedMs = nowMs;
  }
}
