/** What is done when the coordinator is away: it is asked again, in bounded pauses and for a bounded time. */
import { setTimeout as sleep } from "node:timers/promises";
import { CommandError } from "../errors.js";
import { formatDuration } from "../text.js";

const firstPauseMs = 500;
const longestPauseMs = 15_000;
/** A server may ask for a longer pause than ours, but not for ever. */
export const retryAfterMaxMs = 60_000;
/** A coordinator that restarts, or a machine that reboots, is back by then. */
export const awayLimitMs = 15 * 60_000;

/** Why a call failed. One that failed for a passing reason may succeed when it is made again. */
export class CallError extends CommandError {
  constructor(
    message: string,
    code: string | null,
    /** Null when there was no answer. */
    readonly httpStatus: number | null,
    readonly passing: boolean,
    /** What the server asked for; null without a wish. */
    readonly retryAfterMs: number | null,
  ) {
    super(message, code);
  }
}

/**
 * The pause after an attempt: doubled each time up to a bound, never shorter than the server asked for, and
 * longer by up to a half at random, so that those who failed together do not return together.
 * @param attempt The number of the attempt that failed, from 1.
 * @param retryAfterMs What the server asked for; null without a wish.
 * @param random In [0, 1).
 */
export function pauseMs(attempt: number, retryAfterMs: number | null, random: number): number {
  const own = Math.min(longestPauseMs, firstPauseMs * 2 ** (attempt - 1));
  return Math.max(own, Math.min(retryAfterMs ?? 0, retryAfterMaxMs)) * (1 + random / 2);
}

/**
 * What a response's headers ask for: retry-after-ms, else Retry-After in seconds or as a date.
 * @param nowMs Unix time.
 * @returns Milliseconds; null when there is no wish that can be understood.
 */
export function readRetryAfter(headers: Pick<Headers, "get">, nowMs: number): number | null {
  const ms = Number.parseFloat(headers.get("retry-after-ms") ?? "");
  if (ms >= 0) return ms;
  const text = headers.get("retry-after");
  if (text === null) return null;
  const seconds = Number(text);
  if (text.trim() !== "" && seconds >= 0) return seconds * 1_000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? null : Math.max(0, date - nowMs);
}

/** A coordinator that is sometimes away: whoever talks to it waits for it here. */
export class Patience {
  #failures = 0;
  #awaySinceMs = 0;

  /**
   * @param signal Ends a pause.
   * @param tell Why the coordinator is waited for; null when it is back.
   * @param limitMs How long it may be away.
   * @param pause Resolves after so long; rejects when the signal fires.
   */
  constructor(
    readonly signal: AbortSignal,
    private readonly tell: (reason: string | null) => void,
    private readonly limitMs = awayLimitMs,
    private readonly pause: (ms: number) => Promise<unknown> = (ms) => sleep(ms, undefined, { signal }),
  ) {}

  /** It has answered. */
  succeeded(): void {
    if (this.#failures === 0) return;
    this.#failures = 0;
    this.tell(null);
  }

  /**
   * Pauses before the next attempt.
   * @throws The error itself when it is for good; CommandError when the coordinator is away for too long.
   */
  async failed(error: unknown): Promise<void> {
    if (this.signal.aborted || !(error instanceof CallError) || !error.passing) throw error;
    const nowMs = performance.now();
    if (this.#failures === 0) this.#awaySinceMs = nowMs;
    if (nowMs - this.#awaySinceMs > this.limitMs) {
      throw new CommandError(
        `the coordinator is away for ${formatDuration(this.limitMs / 1_000)} already: ${error.message}`,
        error.code,
      );
    }
    this.#failures += 1;
    this.tell(error.message);
    await this.pause(pauseMs(this.#failures, error.retryAfterMs, Math.random()));
  }

  /** Calls until it succeeds, or fails for good. */
  async call<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        const value = await work();
        this.succeeded();
        return value;
      } catch (error) {
        await this.failed(error);
      }
    }
  }
}
