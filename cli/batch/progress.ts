/** Shows how far a batch is: a bar on a terminal, plain lines in a log. */
import type { WriteStream } from "node:tty";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { StatusLine } from "../status-line.js";
import { formatBar, formatBytes, formatCount, formatDuration } from "../text.js";

/** Tokens per second are those of this last while: long enough to smooth answers that arrive in bursts. */
export const rateWindowMs = 30_000;
const rateBucketMs = 1_000;
const redrawMs = 200;
/** In a log at most one line in so long. */
const logLineMs = 5_000;
const barWidthMax = 30;

export interface Progress {
  /** Of the whole work; null while nobody knows. */
  fraction: number | null;
  /** What is known, the most important first. */
  facts: string[];
}

/** One line of at most `columns` characters, so that the terminal does not wrap it. */
export function formatBarLine({ fraction, facts }: Progress, columns: number): string {
  const known = facts.join("  ");
  if (fraction === null) return known.slice(0, columns);
  const text = `${formatPercent(fraction).padStart("100 %".length)}  ${known}`;
  const width = Math.min(barWidthMax, columns - text.length - "[] ".length);
  const line = width > 0 ? `${formatBar(fraction, width)} ${text}` : text.trimStart();
  return line.slice(0, columns);
}

export function formatLogLine({ fraction, facts }: Progress): string {
  return [...(fraction === null ? [] : [formatPercent(fraction)]), ...facts].join(", ");
}

/** Rounded down: 100 % is the end. */
function formatPercent(fraction: number): string {
  return `${Math.floor(fraction * 100)} %`;
}

export function uploadProgress(sent: number, total: number): Progress {
  const fraction = total === 0 ? null : sent / total;
  return { fraction, facts: [`sending the input, ${formatBytes(sent)} of ${formatBytes(total)}`] };
}

/** What the state of a batch says beside its counts. */
const phases: Partial<Record<BatchObject["status"], string>> = {
  validating: "the input is being checked",
  finalizing: "the results are being written",
  cancelling: "being cancelled",
};

/** A batch as it is seen from the moment on at which somebody began to watch it. */
export class BatchTracker {
  #batch: BatchObject | null = null;
  /** When lines were seen answered for the first time, and how many. */
  #first: { atMs: number; answered: number } | null = null;
  #tokens: { rate: Rate; count: number } | null = null;
  #away: string | null = null;

  note(batch: BatchObject, nowMs: number): void {
    this.#batch = batch;
    const count = batch.usage.output_tokens;
    this.#tokens ??= { rate: new Rate(nowMs), count };
    if (count > this.#tokens.count) this.#tokens.rate.note(count - this.#tokens.count, nowMs);
    this.#tokens.count = Math.max(count, this.#tokens.count);
    if (batch.status === "in_progress") this.#first ??= { atMs: nowMs, answered: answeredOf(batch) };
  }

  /** @param reason Why the coordinator is waited for; null when it is there. */
  away(reason: string | null): void {
    this.#away = reason;
  }

  progress(nowMs: number): Progress {
    const batch = this.#batch;
    const phase = batch === null ? "asking for the batch" : phases[batch.status];
    const state = this.#away === null ? phase : `waiting for the coordinator: ${this.#away}`;
    if (batch === null || batch.request_counts.total === 0) {
      return { fraction: null, facts: [state ?? "no lines"] };
    }
    const { total, failed } = batch.request_counts;
    const answered = answeredOf(batch);
    const facts = [`${formatCount(answered)}/${formatCount(total)}`, `${formatCount(failed)} failed`];
    if (this.#away === null) {
      facts.push(`${formatCount(this.#tokens?.rate.perSecond(nowMs) ?? 0)} tokens/s`);
      if (batch.status === "in_progress" && answered < total)
        facts.push(this.#timeLeft(total - answered, nowMs));
    }
    if (state !== undefined) facts.push(state);
    return { fraction: Math.min(1, answered / total), facts };
  }

  #timeLeft(remaining: number, nowMs: number): string {
    const first = this.#first;
    const seen = first === null ? 0 : answeredOf(this.#batch!) - first.answered;
    if (first === null || seen <= 0) return "time left unknown";
    return `${formatDuration(((nowMs - first.atMs) / 1_000 / seen) * remaining)} left`;
  }
}

function answeredOf({ request_counts: { completed, failed } }: BatchObject): number {
  return completed + failed;
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
  #logged = "";

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
    const progress = this.look();
    const line = formatLogLine(progress);
    // A log does not grow while nothing happens.
    if (!this.stream.isTTY && line === this.#logged) return;
    this.#logged = line;
    this.#status.show(
      (columns) => formatBarLine(progress, columns),
      () => line,
    );
  }
}
