/** One direction between two processes: messages leave one after the other, and are on their way for a while. */
import type { LinkSpec } from "./assumptions.js";

export class Link {
  readonly #spec: LinkSpec;
  #freeAtMs = 0;

  constructor(spec: LinkSpec) {
    this.#spec = spec;
  }

  get latencyMs(): number {
    return this.#spec.latencyUs / 1_000;
  }

  /** @returns When the last byte of a message that is ready now has left. */
  sentMs(nowMs: number, bytes: number): number {
    this.#freeAtMs = Math.max(nowMs, this.#freeAtMs) + (1_000 * bytes) / this.#spec.bandwidth;
    return this.#freeAtMs;
  }

  /** @returns When it has arrived. */
  arrivalMs(nowMs: number, bytes: number): number {
    return this.sentMs(nowMs, bytes) + this.latencyMs;
  }
}
