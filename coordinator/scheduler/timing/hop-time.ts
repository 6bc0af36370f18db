/**
 * What a step's way takes beside the stages' computing: all hops together, from the coordinator over the
 * stages and back. A round trip is compute + hops + waiting behind other steps, and only the first is measured;
 * so it bounds the hops from above, and shows them where nothing was waited for.
 */

/** Steps that the average remembers. */
const memory = 16;
/** A round trip this much above what the steps ahead can have held up: it did not wait. */
const clearRatio = 1.1;
/** A step that was away so many times longer was disturbed: it counts as that much. */
const outlierRatio = 3;
/** An average of nothing can still grow. */
const leastUs = 50;

export interface RoundTrip {
  roundtripUs: number;
  /** Compute time, one per stage. */
  stageUs: readonly number[];
  /** Slowest stages of the steps that were in flight when it was sent, summed: it waited no longer. */
  aheadUs: number;
}

export class HopTime {
  #us = 0;
  #steps = 0;

  get us(): number {
    return this.#us;
  }

  add({ roundtripUs, stageUs, aheadUs }: RoundTrip): void {
    const computeUs = stageUs.reduce((sum, us) => sum + us, 0);
    const restUs = Math.max(0, roundtripUs - computeUs);
    const clear = aheadUs === 0 || roundtripUs > clearRatio * (aheadUs + Math.max(...stageUs));
    if (this.#steps > 0 && !clear && restUs >= this.#us) return;
    this.#steps = Math.min(this.#steps + 1, memory);
    const most = this.#steps === 1 ? restUs : outlierRatio * Math.max(this.#us, leastUs);
    this.#us += (Math.min(restUs, most) - this.#us) / this.#steps;
  }
}
