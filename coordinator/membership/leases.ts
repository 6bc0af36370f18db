/**
 * How long a member is believed alive. A heartbeat renews a lease only when the worker's progress
 * counter moved or it is idle, so a worker that hangs inside a kernel is found too. The
 * coordinator's own stalls are added to every lease: while it did not read, nobody could renew.
 */
import { leaseMs } from "../../common/limits.js";

/** How often leases are checked; a check that comes later than this shows a stall of our own. */
export const tickMs = 100;
/** After a longer stall at most one worker is declared lost: heartbeats may still lie unread. */
const longStallMs = 500;

interface Lease {
  untilMs: number;
  progress: number;
}

export class Leases<Key> {
  readonly #leases = new Map<Key, Lease>();
  #lastCheckMs: number;

  constructor(nowMs: number) {
    this.#lastCheckMs = nowMs;
  }

  start(key: Key, nowMs: number): void {
    this.#leases.set(key, { untilMs: nowMs + leaseMs, progress: -1 });
  }

  end(key: Key): void {
    this.#leases.delete(key);
  }

  heartbeat(key: Key, progress: number, busy: boolean, nowMs: number): void {
    const lease = this.#leases.get(key);
    if (lease === undefined || (busy && progress === lease.progress)) return;
    lease.progress = progress;
    lease.untilMs = nowMs + leaseMs;
  }

  /** Call every tickMs. @returns the members whose lease is over. */
  check(nowMs: number): Key[] {
    const stallMs = Math.max(0, nowMs - this.#lastCheckMs - tickMs);
    this.#lastCheckMs = nowMs;
    const over: Key[] = [];
    for (const [key, lease] of this.#leases) {
      lease.untilMs += stallMs;
      if (nowMs > lease.untilMs) over.push(key);
    }
    return stallMs > longStallMs ? over.slice(0, 1) : over;
  }
}
