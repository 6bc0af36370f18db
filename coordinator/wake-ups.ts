/**
 * Wakes those who wait for something, a few between two turns of the event loop. One step brings tokens
 * for hundreds of requests, one lost worker ends thousands: were all of them woken at once, all their
 * answers would be written before anything else happened.
 */

/** Writing a chunk of a stream takes a tenth of a millisecond, an error's response somewhat longer. */
const perTurn = 16;

export class WakeUps {
  /** In the order in which they were to be woken. Bounded by the requests that exist. */
  #waiting: (() => void)[] = [];
  #leftThisTurn = perTurn;
  #turnScheduled = false;

  wake(sleeper: () => void): void {
    this.#scheduleTurn();
    if (this.#leftThisTurn === 0) {
      this.#waiting.push(sleeper);
      return;
    }
    this.#leftThisTurn--;
    sleeper();
  }

  #scheduleTurn(): void {
    if (this.#turnScheduled) return;
    this.#turnScheduled = true;
    setImmediate(() => {
      this.#turnScheduled = false;
      const now = this.#waiting.splice(0, perTurn);
      this.#leftThisTurn = perTurn - now.length;
      if (now.length > 0) this.#scheduleTurn();
      for (const sleeper of now) sleeper();
    });
  }
}
