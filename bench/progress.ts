/**
 * Progress of long work on standard error: one line that is written over on a terminal, a plain line
 * now and then in a log. Standard output belongs to the results.
 */

import { formatBytes } from "../cli/text.js";

/** Between two lines in a log, and between two updates of a terminal's line. */
const logIntervalMs = 10_000;
const terminalIntervalMs = 200;

export class Progress {
  readonly #label: string;
  readonly #total: number;
  readonly #format: (value: number) => string;
  readonly #startedMs = performance.now();
  #shownMs = this.#startedMs;
  #done = 0;

  /** @param format How a quantity is written; by default as a whole number. */
  constructor(label: string, total: number, format: (value: number) => string = String) {
    this.#label = label;
    this.#total = total;
    this.#format = format;
  }

  /** @param done Of the total, from the beginning. */
  update(done: number): void {
    this.#done = done;
    const now = performance.now();
    const finished = done >= this.#total;
    const interval = process.stderr.isTTY ? terminalIntervalMs : logIntervalMs;
    if (!finished && now - this.#shownMs < interval) return;
    this.#shownMs = now;
    const seconds = (now - this.#startedMs) / 1_000;
    const left = finished ? "" : `, ${Math.ceil((seconds / done) * (this.#total - done))} s left`;
    const line = `${this.#label}: ${this.#format(done)} of ${this.#format(this.#total)} in ${seconds.toFixed(1)} s${left}`;
    process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}${finished ? "\n" : ""}` : `${line}\n`);
  }

  add(count = 1): void {
    this.update(this.#done + count);
  }
}

/** For work that tells after every piece how many bytes of how many are done. */
export function bytesProgress(label: string): (done: number, total: number) => void {
  let progress: Progress | undefined;
  return (done, total) => {
    progress ??= new Progress(label, total, formatBytes);
    progress.update(done);
  };
}

export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}
