/** The last events of a simulation, a line each. */
import type { Clock } from "../../common/clock.js";

const maxLines = 400;

export class Trace {
  readonly #clock: Clock;
  readonly #lines: string[] = [];
  #next = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  note(who: string, what: string): void {
    this.#lines[this.#next++ % maxLines] =
      `${this.#clock.nowMs().toFixed(1).padStart(9)} ${who.padEnd(14)} ${what}`;
  }

  /** @returns The last lines, oldest first. */
  last(count: number): string[] {
    const most = Math.min(count, this.#lines.length);
    return Array.from({ length: most }, (_, index) => this.#lines[(this.#next - most + index) % maxLines]!);
  }
}
