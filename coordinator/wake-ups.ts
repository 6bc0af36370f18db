/**
 * Wakes those who wait for something, a few at a time. One step brings tokens for hundreds of requests, one
 * lost worker ends thousands: were all of them woken at once, all their answers would be written before
 * anything else happened. A turn of the event loop costs as much as writing several tokens, so one goes on for
 * a share of time and not for a number of them.
 */

import { systemTimers, type Timers } from "../common/clock.js";

/** Writing a chunk of a stream takes a 50th of a millisecond, an error's response ten times that. */
const groupSize = 16;
/** While a turn has taken less, another group is woken in it. */
const shareMs = 4;

export class WakeUps {
  readonly #timers: Pick<Timers, "nowMs" | "soon" | "settled">;
  /** In the order in which they were to be woken. Bounded by the requests that exist. */
  #waiting: (() => void)[] = [];
  /** Who may still be woken before the others have done their work. */
  #left = groupSize;
  #turnBeganMs = 0;
  #underWay = false;

  constructor(timers: Pick<Timers, "nowMs" | "soon" | "settled"> = systemTimers) {
    this.#timers = timers;
  }

  wake(sleeper: () => void): void {
    if (!this.#underWay) {
      this.#underWay = true;
      this.#beginTurn();
    }
    if (this.#left === 0) {
      this.#waiting.push(sleeper);
      return;
    }
    this.#left--;
    sleeper();
  }

  #beginTurn(): void {
    this.#turnBeganMs = this.#timers.nowMs();
    this.#whenDone(() => this.#goOn());
  }

  #goOn(): void {
    if (this.#waiting.length > 0 && this.#timers.nowMs() - this.#turnBeganMs < shareMs) {
      this.#wakeGroup();
      this.#whenDone(() => this.#goOn());
      return;
    }
    this.#timers.soon(() => {
      this.#left = groupSize;
      if (this.#waiting.length === 0) {
        this.#underWay = false;
        return;
      }
      this.#beginTurn();
      this.#wakeGroup();
    });
  }

  #wakeGroup(): void {
    const group = this.#waiting.splice(0, groupSize);
    this.#left = groupSize - group.length;
    for (const sleeper of group) sleeper();
  }

  /** After the work of those who are awake, which they do as promises. */
  #whenDone(next: () => void): void {
    this.#timers.settled(next);
  }
}
