/** The events of a request on their way to whoever follows it. */
import type { RequestEvent } from "./inference.js";
import type { WakeUps } from "./wake-ups.js";

/**
 * At most one event per token and choice, read by one consumer. Written out: a generator would take twice the
 * time for each event.
 */
export class EventStream implements AsyncIterableIterator<RequestEvent, undefined> {
  readonly #wakeUps: WakeUps;
  readonly #events: RequestEvent[] = [];
  #done = false;
  #wake: (() => void) | null = null;

  constructor(wakeUps: WakeUps) {
    this.#wakeUps = wakeUps;
  }

  push(event: RequestEvent): void {
    this.#events.push(event);
    this.#notify();
  }

  end(): void {
    this.#done = true;
    this.#notify();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<RequestEvent, undefined>> {
    const now = this.#take();
    if (now !== null) return Promise.resolve(now);
    return new Promise((resolve) => {
      this.#wake = () => resolve(this.#take()!);
    });
  }

  /** Null while there is nothing to take. */
  #take(): IteratorResult<RequestEvent, undefined> | null {
    const value = this.#events.shift();
    if (value !== undefined) return { done: false, value };
    return this.#done ? { done: true, value: undefined } : null;
  }

  #notify(): void {
    const wake = this.#wake;
    if (wake === null) return;
    this.#wake = null;
    this.#wakeUps.wake(wake);
  }
}
