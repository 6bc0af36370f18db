import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { attemptsMax, pauseMs, readRetryAfter, retryAfterMaxMs } from "../../../../cli/batch/retry.js";

describe("the pauses between attempts", () => {
  it("double, then stay; together they outlast the restart of a large model", () => {
    const pauses = Array.from({ length: attemptsMax - 1 }, (_, index) => pauseMs(index + 1, null, 0));
    expect(pauses.slice(0, 7)).toEqual([500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
    expect(pauses.reduce((sum, ms) => sum + ms, 0)).toBeGreaterThan(11 * 60_000);
  });

  it("are never shorter than the server asked for, and bounded", () => {
    const attempt = fc.integer({ min: 1, max: attemptsMax });
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
    const read = (headers: Record<string, string>) => readRetryAfter(headers, now);
    expect(read({ "retry-after-ms": "250", "retry-after": "7" })).toBe(250);
    expect(read({ "retry-after": "7" })).toBe(7_000);
    expect(read({ "retry-after-ms": "soon", "retry-after": "1.5" })).toBe(1_500);
    expect(read({ "retry-after": "Thu, 01 Jan 2026 00:00:09 GMT" })).toBe(9_000);
    expect(read({ "retry-after": "Wed, 31 Dec 2025 00:00:00 GMT" })).toBe(0);
    for (const text of ["", "later"]) expect(read({ "retry-after": text })).toBeNull();
    expect(read({})).toBeNull();
  });
});
