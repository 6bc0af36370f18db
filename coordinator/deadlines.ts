/**
 * When nobody wants the answers of requests any more. By the time of day, because a coordinator that takes over
 * has to keep to what another one has accepted.
 */
import { systemTimers, type Timer, type Timers } from "../common/clock.js";
import { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";

/** A Node timer holds no longer time; what lies further off is looked at again then. */
const longestTimerMs = 2 ** 31 - 1;

export class Deadlines {
  readonly #passed: (id: RequestId) => void;
  /** Of requests that are not answered yet. */
  readonly #watched = new Map<RequestId, Timer>();
  readonly #timers: Pick<Timers, "after" | "timeOfDayMs">;

  /** @param passed Called once for each request whose deadline has passed. */
  constructor(passed: (id: RequestId) => void, timers: Pick<Timers, "after" | "timeOfDayMs"> = systemTimers) {
    this.#passed = passed;
    this.#timers = timers;
  }

  /** @param deadlineMs Since 1970; one that has passed is told in the next turn of the event loop. */
  watch(id: RequestId, deadlineMs: number): void {
    const waitMs = Math.min(longestTimerMs, Math.max(0, deadlineMs - this.#timers.timeOfDayMs()));
    const timer = this.#timers.after(waitMs, () => {
      this.#watched.delete(id);
      if (hasPassed(deadlineMs, this.#timers.timeOfDayMs())) this.#passed(id);
      else this.watch(id, deadlineMs);
    });
    this.#watched.set(id, timer);
  }

  forget(id: RequestId): void {
    this.#watched.get(id)?.cancel();
    this.#watched.delete(id);
  }
}

export const hasPassed = (deadlineMs: number | undefined, timeOfDayMs: number): boolean =>
  deadlineMs !== undefined && deadlineMs <= timeOfDayMs;

export function deadlinePassed(): RelayError {
  return new RelayError("deadline_exceeded", "the request's deadline passed before its answer was complete");
}
