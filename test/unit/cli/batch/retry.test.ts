import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  awayLimitMs,
  CallError,
  Patience,
  pauseMs,
  readRetryAfter,
  retryAfterMaxMs,
} from "../../../../cli/batch/retry.js";

const passing = (message = "gone") => new CallError(message, null, null, true, null);

describe("the pauses between attempts", () => {
  it("double, then stay", () => {
    const pauses = Array.from({ length: 7 }, (_, index) => pauseMs(index + 1, null, 0));
    expect(pauses).toEqual([500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
    // The restart of a large model is outlasted.
    expect(awayLimitMs).toBeGreaterThan(11 * 60_000);
  });

  it("are never shorter than the server asked for, and bounded", () => {
    const attempt = fc.integer({ min: 1, max: 1_000 });
    const wish = fc.option(fc.double({ min: 0, max: 1e9, noNaN: true }));
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(attempt, wish, random, (number, retryAfterMs, chance) => {
        const ms = pauseMs(number, retryAfterMs, chance);
        expect(ms).toBeGreaterThanOrEqual(Math.min(retryAfterMs ?? 0, retryAfterMaxMs));
        expect(ms).toBeLessThanOrEqual(1.5 * retryAfterMaxMs);
      }),
    );
  });

  it("read retry-after-ms before Retry-After in seconds or as a date", () => {
    const now = Date.parse("2026-01-01T00:00:00Z");
    const read = (headers: Record<string, string>) => readRetryAfter(new Headers(headers), now);
    expect(read({ "retry-after-ms": "250", "retry-after": "7" })).toBe(250);
    expect(read({ "retry-after": "7" })).toBe(7_000);
    expect(read({ "retry-after-ms": "soon", "retry-after": "1.5" })).toBe(1_500);
    expect(read({ "retry-after": "Thu, 01 Jan 2026 00:00:09 GMT" })).toBe(9_000);
    expect(read({ "retry-after": "Wed, 31 Dec 2025 00:00:00 GMT" })).toBe(0);
    for (const text of ["", "later"]) expect(read({ "retry-after": text })).toBeNull();
    expect(read({})).toBeNull();
  });
});

describe("patience", () => {
  /** Pauses are counted, not waited for. */
  function patient(limitMs = awayLimitMs) {
    const cut = new AbortController();
    const told: (string | null)[] = [];
    const pauses: number[] = [];
    const patience = new Patience(
      cut.signal,
      (reason) => told.push(reason),
      limitMs,
      async (ms) => void pauses.push(ms),
    );
    return { patience, told, pauses, cut };
  }

  it("calls again what failed for a passing reason, tells why, and begins with short pauses anew", async () => {
    const { patience, told, pauses } = patient();
    for (let round = 0; round < 2; round++) {
      let left = 3;
      const value = await patience.call(async () => {
        if (left-- > 0) throw passing(`away ${left}`);
        return "there";
      });
      expect(value).toBe("there");
    }
    expect(told).toEqual(["away 2", "away 1", "away 0", null, "away 2", "away 1", "away 0", null]);
    expect(pauses[3]!).toBeLessThan(pauses[2]!);
  });

  it("ends with what is for good, whoever threw it", async () => {
    const { patience, pauses } = patient();
    const refused = new CallError("no", "invalid_value", 400, false, null);
    for (const error of [refused, new Error("a mistake")]) {
      await expect(patience.call(() => Promise.reject(error))).rejects.toBe(error);
    }
    expect(pauses).toEqual([]);
  });

  it("ends when the coordinator stays away, or when it is told to", async () => {
    const { patience } = patient(-1);
    await expect(patience.call(() => Promise.reject(passing()))).rejects.toThrow(
      /the coordinator is away for .* already: gone/,
    );
    const { patience: other, cut, pauses } = patient();
    cut.abort();
    await expect(other.call(() => Promise.reject(passing()))).rejects.toThrow("gone");
    expect(pauses).toEqual([]);
  });
});
