/** The events of a request on their way to whoever follows it. */
import type { RequestEvent } from "./inference.js";
import type { WakeUps } from "./wake-ups.js";

/** At most one event per token and choice, read by one consumer. */
export class EventStream implements AsyncIterable<RequestEvent> {
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

  async *[Symbol.asyncIterator](): AsyncGenerator<RequestEvent> {
    for (;;) {
      while (this.#events.length > 0) yield this.#events.shift()!;
      if (this.#done) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #notify(): void {
    const wake = this.#wake;
    if (wake === null) return;
    this.#wake = null;
    this.#wakeUps.wake(wake);
  }
}
