import { PassThrough } from "node:stream";
import type { WriteStream } from "node:tty";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  formatBarLine,
  formatLogLine,
  type Progress,
  ProgressDisplay,
  Rate,
  rateWindowMs,
} from "../../../../cli/batch/progress.js";

const progress: Progress = {
  total: 1_000,
  done: 418,
  failed: 2,
  tokensPerSecond: 1_234.4,
  secondsLeft: 205,
  pausing: null,
};
const pausing = { count: 3, reason: "the model is not being served" };

describe("the progress of a batch", () => {
  it("shows bar, percent, done of total, failed, tokens per second and time left", () => {
    expect(formatBarLine(progress, 100)).toBe(
      "[#############.................]  42 %  420/1,000  2 failed  1,234 tokens/s  3 min 25 s left",
    );
    expect(formatLogLine(progress)).toBe("42 %, 420/1,000, 2 failed, 1,234 tokens/s, 3 min 25 s left");
  });

  it("shortens the bar first on a narrow terminal, then leaves it out", () => {
    const facts = "42 %  420/1,000  2 failed  1,234 tokens/s  3 min 25 s left";
    expect(formatBarLine(progress, 70)).toBe(`[###.....]  ${facts}`);
    expect(formatBarLine(progress, 60)).toBe(facts);
    expect(formatBarLine(progress, 50)).toBe(facts.slice(0, 50));
  });

  it("says what it waits for, and that the time is not known yet", () => {
    expect(formatLogLine({ ...progress, secondsLeft: null, pausing })).toBe(
      "42 %, 420/1,000, 2 failed, 1,234 tokens/s, time left unknown, " +
        "3 to try again: the model is not being served",
    );
  });

  it("shows 100 % at the end only, and then no time left", () => {
    expect(formatLogLine({ ...progress, total: 1_000, done: 997 })).toMatch(/^99 %/);
    expect(formatLogLine({ ...progress, done: 998, secondsLeft: 0 })).toBe(
      "100 %, 1,000/1,000, 2 failed, 1,234 tokens/s",
    );
  });

  it("never outgrows the terminal's line", () => {
    const state = fc.record({
      total: fc.integer({ min: 1, max: 50_000 }),
      share: fc.double({ min: 0, max: 1, noNaN: true }),
      tokensPerSecond: fc.double({ min: 0, max: 1e6, noNaN: true }),
      secondsLeft: fc.option(fc.double({ min: 0, max: 1e6, noNaN: true })),
      pausing: fc.option(fc.constant(pausing)),
    });
    fc.assert(
      fc.property(state, fc.integer({ min: 1, max: 300 }), ({ share, ...rest }, columns) => {
        const done = Math.floor(rest.total * share);
        const line = formatBarLine({ ...rest, done, failed: 0 }, columns);
        expect(line.length).toBeLessThanOrEqual(columns);
      }),
    );
  });

  it("redraws one line on a terminal and writes lines to a log", () => {
    const written = (columns?: number) => {
      const stream = new PassThrough();
      const terminal = columns === undefined ? {} : { isTTY: true, columns };
      const display = new ProgressDisplay(
        Object.assign(stream, terminal) as unknown as WriteStream,
        () => progress,
      );
      display.print("SIGINT: waiting");
      display.stop();
      return String(stream.read());
    };
    const bar = formatBarLine(progress, 89);
    expect(written(90)).toBe(`\r\x1b[KSIGINT: waiting\n\r${bar}\x1b[K\n`);
    expect(written()).toBe(`SIGINT: waiting\n${formatLogLine(progress)}\n`);
  });

  it("counts tokens per second over the last while, and over what there was before it is full", () => {
    const rate = new Rate(1_000);
    expect(rate.perSecond(1_000)).toBe(0);
    rate.note(50, 2_000);
    rate.note(50, 2_500);
    expect(rate.perSecond(3_000)).toBe(50);
    rate.note(900, 1_000 + rateWindowMs);
    expect(rate.perSecond(1_000 + rateWindowMs)).toBeCloseTo(1_000 / 30);
    // The first answers are forgotten.
    expect(rate.perSecond(2_600 + rateWindowMs)).toBeCloseTo(900 / 30);
    expect(rate.perSecond(10 * rateWindowMs)).toBe(0);
  });
});
