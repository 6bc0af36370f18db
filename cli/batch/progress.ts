/** Shows on standard error how far a batch is: a bar on a terminal, plain lines in a log. */
import type { WriteStream } from "node:tty";
import { StatusLine } from "../status-line.js";
import { formatBar, formatCount, formatDuration } from "../text.js";

/** Tokens per second are those of this last while: long enough to smooth answers that arrive in bursts. */
export const rateWindowMs = 30_000;
const rateBucketMs = 1_000;
const redrawMs = 200;
/** In a log at most one line in so long. */
const logLineMs = 5_000;
const barWidthMax = 30;

export interface Progress {
  total: number;
  /** Answered with 2xx, by this or an earlier run. */
  done: number;
  failed: number;
  tokensPerSecond: number;
  /** Null until the first answer of this run, and while nothing is being answered. */
  secondsLeft: number | null;
  /** Requests that pause before another attempt, and why the last of them failed. */
  pausing: { count: number; reason: string } | null;
}

/** One line of at most `columns` characters, so that the terminal does not wrap it. */
export function formatBarLine(progress: Progress, columns: number): string {
  const { total, done, failed } = progress;
  const fraction = (done + failed) / total;
  const facts = formatFacts(progress).join("  ");
  const text = `${formatPercent(fraction).padStart("100 %".length)}  ${facts}`;
  const width = Math.min(barWidthMax, columns - text.length - "[] ".length);
  const line = width > 0 ? `${formatBar(fraction, width)} ${text}` : text.trimStart();
  return line.slice(0, columns);
}

export function formatLogLine(progress: Progress): string {
  return [formatPercent((progress.done + progress.failed) / progress.total), ...formatFacts(progress)].join(
    ", ",
  );
}

/** Rounded down: 100 % is the end. */
function formatPercent(fraction: number): string {
  return `${Math.floor(fraction * 100)} %`;
}

function formatFacts({ total, done, failed, tokensPerSecond, secondsLeft, pausing }: Progress): string[] {
  return [
    `${formatCount(done + failed)}/${formatCount(total)}`,
    `${formatCount(failed)} failed`,
    `${formatCount(tokensPerSecond)} tokens/s`,
    ...(done + failed === total
      ? []
      : [secondsLeft === null ? "time left unknown" : `${formatDuration(secondsLeft)} left`]),
    ...(pausing === null ? [] : [`${formatCount(pausing.count)} to try again: ${pausing.reason}`]),
  ];
}

/** How many per second over the last while. */
export class Rate {
  /** Count per bucket of time, oldest first; bounded by the window. */
  readonly #buckets: { startMs: number; count: number }[] = [];

  constructor(private readonly beginMs: number) {}

  note(count: number, nowMs: number): void {
    const last = this.#buckets.at(-1);
    if (last !== undefined && nowMs - last.startMs < rateBucketMs) last.count += count;
    else this.#buckets.push({ startMs: nowMs, count });
    this.#forget(nowMs);
  }

  perSecond(nowMs: number): number {
    this.#forget(nowMs);
    const spanMs = Math.min(rateWindowMs, nowMs - this.beginMs);
    const sum = this.#buckets.reduce((total, bucket) => total + bucket.count, 0);
    return spanMs > 0 ? (sum * 1_000) / spanMs : 0;
  }

  #forget(nowMs: number): void {
    while (this.#buckets.length > 0 && nowMs - this.#buckets[0]!.startMs >= rateWindowMs)
      this.#buckets.shift();
  }
}

/** Draws until it is stopped. */
export class ProgressDisplay {
  readonly #status: StatusLine;
  readonly #timer: NodeJS.Timeout;

  /** @param look What there is to show now. */
  constructor(
    private readonly stream: WriteStream,
    private readonly look: () => Progress,
  ) {
    // The timer says when a log gets its line.
    this.#status = new StatusLine(stream, 0);
    this.#timer = setInterval(() => this.#draw(), stream.isTTY ? redrawMs : logLineMs);
  }

  /** A line for people, above the bar. */
  print(line: string): void {
    this.#status.print(line);
  }

  /** Shows the last state, which stays. */
  stop(): void {
    clearInterval(this.#timer);
    this.#draw();
    if (this.stream.isTTY) this.stream.write("\n");
  }

  #draw(): void {
    this.#status.show(
      (columns) => formatBarLine(this.look(), columns),
      () => formatLogLine(this.look()),
    );
  }
}
