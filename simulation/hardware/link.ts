/** One direction between two processes: messages leave one after the other, and are on their way for a while. */
import type { LinkSpec } from "./assumptions.js";

export class Link {
  readonly #spec: LinkSpec;
  #freeAtMs = 0;

  constructor(spec: LinkSpec) {
    this.#spec = spec;
  }

  /** @returns When a message of so many bytes that is ready now has arrived. */
  arrivalMs(nowMs: number, bytes: number): number {
    const startMs = Math.max(nowMs, this.#freeAtMs);
    this.#freeAtMs = startMs + (1_000 * bytes) / this.#spec.bandwidth;
    return this.#freeAtMs + this.#spec.latencyUs / 1_000;
  }
}
