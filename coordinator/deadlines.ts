/**
 * When nobody wants the answers of requests any more. By the time of day, because a coordinator that takes over
 * has to keep to what another one has accepted.
 */
import { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";

/** A Node timer holds no longer time; what lies further off is looked at again then. */
const longestTimerMs = 2 ** 31 - 1;

export class Deadlines {
  readonly #passed: (id: RequestId) => void;
  /** Of requests that are not answered yet. */
  readonly #timers = new Map<RequestId, NodeJS.Timeout>();

  /** @param passed Called once for each request whose deadline has passed. */
  constructor(passed: (id: RequestId) => void) {
    this.#passed = passed;
  }

  /** @param deadlineMs Since 1970; one that has passed is told in the next turn of the event loop. */
  watch(id: RequestId, deadlineMs: number): void {
    const waitMs = Math.min(longestTimerMs, Math.max(0, deadlineMs - Date.now()));
    const timer = setTimeout(() => {
      this.#timers.delete(id);
      if (hasPassed(deadlineMs)) this.#passed(id);
      else this.watch(id, deadlineMs);
    }, waitMs);
    this.#timers.set(id, timer);
  }

  forget(id: RequestId): void {
    clearTimeout(this.#timers.get(id));
    this.#timers.delete(id);
  }
}

export const hasPassed = (deadlineMs: number | undefined): boolean =>
  deadlineMs !== undefined && deadlineMs <= Date.now();

export function deadlinePassed(): RelayError {
  return new RelayError("deadline_exceeded", "the request's deadline passed before its answer was complete");
}
