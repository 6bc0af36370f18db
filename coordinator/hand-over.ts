/**
 * Which of the requests that the queue took it will not hand on any more. Ten thousand at once take their time, so
 * it is not the waiting alone: for so long either later ones were handed on, or none at all. Time is counted in
 * sweeps: what this process missed while it stood still is not the queue's fault. No clock.
 */

/** How often the service looks. */
export const sweepMs = 1_000;
const limitSweeps = 10;
export const handOverLimitS = (limitSweeps * sweepMs) / 1_000;
/** The queue hands on several at a time, which may change places. */
const mostOvertaking = 256;

/** Of one request: its place among all that were accepted, and the sweep after which it was. */
export interface Accepted {
  readonly place: number;
  readonly sweep: number;
}

export class HandOver {
  #sweeps = 0;
  #accepted = 0;
  #lastPlace = -1;
  #lastSweep = 0;

  accept(): Accepted {
    return { place: this.#accepted++, sweep: this.#sweeps };
  }

  /** @param accepted Null for what an earlier process had put into the queue: it has no place among ours. */
  handedOn(accepted: Accepted | null): void {
    this.#lastPlace = Math.max(this.#lastPlace, accepted?.place ?? -1);
    this.#lastSweep = this.#sweeps;
  }

  sweep(): void {
    this.#sweeps++;
  }

  /** Of one that was not handed on. */
  isLost({ place, sweep }: Accepted): boolean {
    if (this.#sweeps - sweep < limitSweeps) return false;
    return this.#sweeps - this.#lastSweep >= limitSweeps || place + mostOvertaking <= this.#lastPlace;
  }
}
