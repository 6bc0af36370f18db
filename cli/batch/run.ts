/**
 * One run over a batch: so many requests at once, each tried until it is settled or its attempts are
 * used up, each answer written before the next request is taken.
 */
import { setMaxListeners } from "node:events";
import type { Attempt } from "./client.js";
import {
  type Answer,
  formatOutputLine,
  outputLineBytesMax,
  type Usage,
  usageOf,
  verdictOf,
} from "./output-line.js";
import { type Progress, Rate } from "./progress.js";
import { type BatchRequest, isObject } from "./request-line.js";
import type { Earlier } from "./resume.js";
import { attemptsMax, pauseMs } from "./retry.js";

/** What runs when no more requests are taken may go on for so long. */
export const drainLimitMs = 20_000;
/** Kinds of failures that are counted apart; the rest is one kind. */
const failureKindsMax = 8;
const otherFailures = "other";

/** What a run does to the world. */
export interface RunPorts {
  /** One attempt; cut off when `signal` fires. */
  send(request: BatchRequest, signal: AbortSignal): Promise<Attempt>;
  /** Resolves when the line is safe from the end of this process. */
  append(line: string): Promise<void>;
  /** Ends early, in any way, when `signal` fires. */
  pause(ms: number, signal: AbortSignal): Promise<unknown>;
}

export interface FailureKind {
  count: number;
  /** The first of them. */
  customId: string;
  message: string;
}

export interface Counts {
  total: number;
  /** Lines of the output that answer with 2xx, and the others. */
  done: number;
  failed: number;
  /** Those of both that an earlier run had written. */
  skipped: number;
  /** Attempts after the first. */
  retries: number;
  /** Tokens of all lines of the output. */
  usage: Usage;
}

export class BatchRun {
  readonly counts: Counts;
  /** By code, in the order of appearance. */
  readonly failures = new Map<string, FailureKind>();
  /** Why no more requests were taken although nobody asked for an end. */
  outage: string | null = null;
  readonly #startMs = performance.now();
  readonly #tokens = new Rate(this.#startMs);
  /** Fires when no more requests are to be taken and pauses are over. */
  readonly #draining = new AbortController();
  /** Fires when running requests are to be cut off. */
  readonly #cut = new AbortController();
  #cutTimer: NodeJS.Timeout | null = null;
  /** Requests that were settled, well or not. */
  #answers = 0;
  #completionTokens = 0;
  /** Requests that are taken and not written; some of them pause. */
  #underWay = 0;
  #pausing = 0;
  #pauseReason = "";

  constructor(
    private readonly ports: RunPorts,
    private readonly earlier: Earlier,
    private readonly concurrency: number,
    total: number,
  ) {
    const { done, failed, settled, usage } = earlier;
    this.counts = { total, done, failed, skipped: settled.size, retries: 0, usage: { ...usage } };
    // Every request that runs or pauses listens.
    for (const { signal } of [this.#draining, this.#cut]) setMaxListeners(2 * concurrency, signal);
  }

  get remaining(): number {
    return this.counts.total - this.counts.done - this.counts.failed;
  }

  get seconds(): number {
    return (performance.now() - this.#startMs) / 1_000;
  }

  /** Generated tokens of this run per second of it. */
  get tokensPerSecond(): number {
    return this.#completionTokens / this.seconds;
  }

  /**
   * Sends what is not settled yet. Returns when every request has its line, or, after `drain` or an outage,
   * when nothing runs any more.
   * @throws What reading the input or writing the output throws; nothing runs any more then.
   */
  async run(requests: AsyncGenerator<BatchRequest>): Promise<void> {
    const lanes = Array.from({ length: this.concurrency }, () => this.#lane(requests));
    const results = await Promise.allSettled(lanes);
    if (this.#cutTimer) clearTimeout(this.#cutTimer);
    await requests.return(undefined);
    const broken = results.find((result) => result.status === "rejected");
    if (broken !== undefined) throw broken.reason;
  }

  /** Takes no more requests. Those that pause have no line then; those that run may end within drainLimitMs. */
  drain(): void {
    this.#draining.abort();
    this.#cutTimer ??= setTimeout(() => this.#cut.abort(), drainLimitMs);
  }

  progress(): Progress {
    const { total, done, failed, skipped } = this.counts;
    const answered = done + failed - skipped;
    // Answers come in bursts, so what is under way counts as half done.
    const half = this.#underWay / 2;
    const known = answered > 0 && this.#pausing < this.#underWay;
    return {
      total,
      done,
      failed,
      tokensPerSecond: this.#tokens.perSecond(performance.now()),
      secondsLeft: known ? (this.seconds / (answered + half)) * (this.remaining - half) : null,
      pausing: this.#pausing === 0 ? null : { count: this.#pausing, reason: this.#pauseReason },
    };
  }

  /** Takes one request after the other. */
  async #lane(requests: AsyncGenerator<BatchRequest>): Promise<void> {
    try {
      while (!this.#draining.signal.aborted) {
        const next = await requests.next();
        if (next.done) return;
        if (this.#draining.signal.aborted || this.earlier.settled.has(next.value.customId)) continue;
        this.#underWay += 1;
        const answer = await this.#answer(next.value);
        if (answer !== null) await this.#write(next.value.customId, answer);
        this.#underWay -= 1;
      }
    } catch (error) {
      // Without its input or output the run has no end worth waiting for.
      this.drain();
      this.#cut.abort();
      throw error;
    }
  }

  /** What stands in the output in the end; null when the run ends before. */
  async #answer(request: BatchRequest): Promise<Attempt | null> {
    const answersBefore = this.#answers;
    for (let number = 1; ; number++) {
      const attempt = await this.ports.send(request, this.#cut.signal);
      if (!attempt.again) {
        this.#answers += 1;
        return attempt;
      }
      if (this.#cut.signal.aborted) return null;
      if (number === attemptsMax) {
        // Nobody else was answered either: going on would give every line that is left the same failure.
        if (this.#answers === answersBefore) {
          this.outage ??= describe(attempt).message;
          this.drain();
        }
        return attempt;
      }
      if (!(await this.#pause(number, attempt))) return null;
      this.counts.retries += 1;
    }
  }

  /** @returns Whether to go on. */
  async #pause(number: number, attempt: Attempt): Promise<boolean> {
    const { signal } = this.#draining;
    this.#pausing += 1;
    this.#pauseReason = describe(attempt).message;
    try {
      await this.ports.pause(pauseMs(number, attempt.retryAfterMs, Math.random()), signal);
    } catch {
      // Woken because the run drains.
    } finally {
      this.#pausing -= 1;
    }
    return !signal.aborted;
  }

  async #write(customId: string, wanted: Answer): Promise<void> {
    const { line, answer } = makeLine(customId, wanted);
    await this.ports.append(line);
    const { counts } = this;
    if (verdictOf(answer) === "done") {
      counts.done += 1;
    } else {
      counts.failed += 1;
      this.#noteFailure(customId, answer);
    }
    const usage = usageOf(answer);
    counts.usage.promptTokens += usage.promptTokens;
    counts.usage.completionTokens += usage.completionTokens;
    this.#completionTokens += usage.completionTokens;
    this.#tokens.note(usage.completionTokens, performance.now());
  }

  #noteFailure(customId: string, answer: Answer): void {
    const { code, message } = describe(answer);
    const kind = this.failures.has(code) || this.failures.size < failureKindsMax ? code : otherFailures;
    const known = this.failures.get(kind);
    if (known === undefined) this.failures.set(kind, { count: 1, customId, message });
    else known.count += 1;
  }
}

/** The line of an answer; of an error in its place when it cannot be written as one. */
function makeLine(customId: string, { response, error }: Answer): { line: string; answer: Answer } {
  let fault = `longer than ${outputLineBytesMax} bytes`;
  try {
    const line = formatOutputLine(customId, { response, error });
    if (Buffer.byteLength(line) <= outputLineBytesMax) return { line, answer: { response, error } };
  } catch {
    fault = "nested too deeply";
  }
  const answer = { response: null, error: { code: "invalid_response", message: `the response is ${fault}` } };
  return { line: formatOutputLine(customId, answer), answer };
}

/** Code and message of a failure, wherever it tells them. */
function describe({ response, error }: Answer): { code: string; message: string } {
  if (response === null) return error ?? { code: otherFailures, message: "" };
  const { status_code: status, body } = response;
  const told = isObject(body) && isObject(body.error) ? body.error : {};
  return {
    code: typeof told.code === "string" ? told.code : `status ${status}`,
    message: typeof told.message === "string" ? told.message : `the server answered with status ${status}`,
  };
}
