/** Files go when their time is over, when they are too old, and the oldest when all together are too many bytes. */
import type { Timer, Timers } from "../../common/clock.js";
import type { Logger } from "../../common/log.js";
import type { FileStore } from "./store.js";

const everyMs = 60_000;

export class Retention {
  readonly #timer: Timer;
  readonly #prune: () => Promise<number>;
  readonly #log: Logger;
  #running: Promise<void> | null = null;

  /** Begins at once. @param maxAgeMs Of every file. */
  constructor(store: FileStore, maxAgeMs: number, timers: Timers, log: Logger) {
    this.#prune = () => store.prune(maxAgeMs);
    this.#log = log;
    this.#timer = timers.every(everyMs, () => this.#run());
    this.#run();
  }

  /** Resolves when nothing is being removed any more. */
  async close(): Promise<void> {
    this.#timer.cancel();
    await this.#running;
  }

  #run(): void {
    // A slow disk may need longer than the time in between.
    if (this.#running !== null) return;
    this.#running = this.#prune()
      .then(
        (removed) => {
          if (removed > 0)
            this.#log.info({ removed }, "files removed: their time is over, or there are too many");
        },
        (error: unknown) => this.#log.error({ err: error }, "files could not be cleaned up"),
      )
      .finally(() => {
        this.#running = null;
      });
  }
}
