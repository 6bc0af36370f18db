/**
 * Lines for people, and below them at most one that tells how far something is: redrawn in place on a
 * terminal, in a log written again now and then.
 */
import type { WriteStream } from "node:tty";

const columnsDefault = 80;

/** What tells people how something goes. */
export interface Teller {
  /** A line that stays. */
  print(line: string): void;
  /**
   * Replaces the status.
   * @param bar For a terminal, in at most so many columns.
   * @param log For a log.
   */
  show(bar: (columns: number) => string, log: () => string): void;
  /** The status goes. */
  clear(): void;
}

export const silent: Teller = { print: () => {}, show: () => {}, clear: () => {} };

export class StatusLine implements Teller {
  readonly #stream: WriteStream;
  readonly #logMs: number;
  #status = "";
  #loggedMs = Number.NEGATIVE_INFINITY;

  /** @param logMs In a log at most one status in so long. */
  constructor(stream: WriteStream, logMs: number) {
    this.#stream = stream;
    this.#logMs = logMs;
  }

  print(line: string): void {
    this.#stream.write(this.#stream.isTTY ? `\r\x1b[K${line}\n${this.#status}` : `${line}\n`);
  }

  show(bar: (columns: number) => string, log: () => string): void {
    if (this.#stream.isTTY) {
      const columns = this.#stream.columns > 0 ? this.#stream.columns : columnsDefault;
      // One column less: a full last column wraps on some terminals.
      this.#status = bar(columns - 1).slice(0, columns - 1);
      this.#stream.write(`\r${this.#status}\x1b[K`);
    } else if (performance.now() - this.#loggedMs >= this.#logMs) {
      this.#loggedMs = performance.now();
      this.#stream.write(`${log()}\n`);
    }
  }

  clear(): void {
    if (this.#status !== "") this.#stream.write("\r\x1b[K");
    this.#status = "";
  }
}
