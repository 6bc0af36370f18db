/**
 * Watches the body of an upload arrive: it may take its time as long as it moves, and it has an end. A time for the
 * whole, as other requests have it, would cut off a slow line in the middle of a large file.
 */
import type { IncomingMessage } from "node:http";
import { RelayError } from "../../common/errors.js";
import { minProgressBytes } from "./limits.js";

export interface ArrivalLimits {
  /** In each such time minProgressBytes must come, or the rest. */
  stallMs: number;
  maxBytes: number;
  /** What is said of more. */
  tooLarge(): RelayError;
}

export class Arrival {
  readonly #request: IncomingMessage;
  readonly #limits: ArrivalLimits;
  readonly #timer: NodeJS.Timeout;
  readonly #failed: Promise<never>;
  #reject!: (error: RelayError) => void;
  #interrupt: ((error: RelayError) => void) | null = null;
  #bytes = 0;
  /** Bytes when the present time to move began. */
  #mark = 0;
  /** We are at work on what came, and do not read. */
  #working = false;

  constructor(request: IncomingMessage, limits: ArrivalLimits) {
    this.#request = request;
    this.#limits = limits;
    this.#failed = new Promise((_, reject) => {
      this.#reject = reject;
    });
    // Nobody may wait at that moment.
    this.#failed.catch(() => undefined);
    this.#timer = setTimeout(() => this.#silent(), limits.stallMs);
  }

  /** Begins to count; call it in the same turn in which the body begins to be read. */
  begin(): void {
    this.#request.on("data", this.#count);
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#request.off("data", this.#count);
  }

  /** Waits for something that comes with the body. @throws RelayError deadline_exceeded, or tooLarge's. */
  during<T>(coming: Promise<T>): Promise<T> {
    return Promise.race([coming, this.#failed]);
  }

  /** Calls this when it fails, in place of whatever was to be called; null: nothing. */
  interruptWith(interrupt: ((error: RelayError) => void) | null): void {
    this.#interrupt = interrupt;
  }

  /** Waits for work of ours on what came; its time is not the client's. */
  async working<T>(work: Promise<T>): Promise<T> {
    this.#working = true;
    try {
      return await work;
    } finally {
      this.#working = false;
    }
  }

  readonly #count = (chunk: Buffer): void => {
    this.#bytes += chunk.length;
    if (this.#bytes > this.#limits.maxBytes) this.#fail(this.#limits.tooLarge());
    if (this.#bytes - this.#mark >= minProgressBytes) this.#moveOn();
  };

  #moveOn(): void {
    this.#mark = this.#bytes;
    this.#timer.refresh();
  }

  #silent(): void {
    if (this.#working) {
      this.#moveOn();
      return;
    }
    const came = this.#bytes - this.#mark;
    this.#fail(
      new RelayError(
        "deadline_exceeded",
        `the upload came to a halt: ${came} bytes in ${this.#limits.stallMs / 1_000} s, expected ${minProgressBytes}`,
      ),
    );
  }

  #fail(error: RelayError): void {
    this.#reject(error);
    this.#interrupt?.(error);
  }
}
