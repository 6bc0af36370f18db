/** How often and when a request is tried again. */

/**
 * Attempts of one request. With the pauses below they span eleven minutes at least: a cluster that lost a
 * worker, or a coordinator that restarts while the model is loaded anew, is back by then.
 */
export const attemptsMax = 50;
const firstPauseMs = 500;
const longestPauseMs = 15_000;
/** A server may ask for a longer pause than ours, but not for ever. */
export const retryAfterMaxMs = 60_000;

/**
 * The pause after an attempt: doubled each time up to a bound, never shorter than the server asked for, and
 * longer by up to a half at random, so that requests which failed together do not return together.
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
export function readRetryAfter(
  headers: { "retry-after-ms"?: string | string[] | undefined; "retry-after"?: string | undefined },
  nowMs: number,
): number | null {
  const ms = Number.parseFloat(String(headers["retry-after-ms"]));
  if (ms >= 0) return ms;
  const text = headers["retry-after"];
  if (text === undefined) return null;
  const seconds = Number(text);
  if (text.trim() !== "" && seconds >= 0) return seconds * 1_000;
  const date = Date.parse(text);
  return Number.isNaN(date) ? null : Math.max(0, date - nowMs);
}
