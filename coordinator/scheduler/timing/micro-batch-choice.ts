/**
 * The number of micro-batches over time. Every change moves sequences between them, so a better number must be
 * so by more than the noise of what is measured, and for a while.
 */
import { bestMicroBatches, cycleUs, decodeSize, type Load, type PipelineTimes } from "./cycle.js";

/** A cycle must become shorter by this factor. */
const leastGain = 1.05;
/** In so many finished steps on end. */
const lastingSteps = 48;
/** It is looked for once in so many. */
const lookEvery = 4;

export class MicroBatchChoice {
  readonly #most: number;
  #current: number;
  /** Since which finished step another number has been better; null while none is. */
  #betterSince: number | null = null;
  #lastLook = Number.NEGATIVE_INFINITY;

  /** @param first What is taken before anything is measured. */
  constructor(first: number, most: number) {
    this.#current = Math.min(first, most);
    this.#most = most;
  }

  get current(): number {
    return this.#current;
  }

  /** @param steps Finished so far: the clock in which a gain lasts. */
  choose(times: PipelineTimes, load: Load, steps: number): number {
    if (steps - this.#lastLook < lookEvery) return this.#current;
    this.#lastLook = steps;
    // What was never tried is not known: twice as many show whether hops or something between them was slow.
    const most = Math.min(this.#most, 2 * this.#current);
    const best = bestMicroBatches(times, load, most);
    if (!this.#gains(times, load, best)) this.#betterSince = null;
    else this.#betterSince ??= steps;
    if (this.#betterSince !== null && steps - this.#betterSince >= lastingSteps) {
      this.#current = best;
      this.#betterSince = null;
    }
    return this.#current;
  }

  #gains(times: PipelineTimes, load: Load, best: number): boolean {
    // With fewer sequences than micro-batches each is one of its own, whatever is chosen.
    const inUse = Math.max(1, Math.min(this.#current, load.running));
    if (best === inUse) return false;
    const cycleOf = (count: number) => cycleUs(times, count, decodeSize(load, count));
    return cycleOf(inUse) > leastGain * cycleOf(best);
  }
}
