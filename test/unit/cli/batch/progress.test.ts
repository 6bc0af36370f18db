import { PassThrough } from "node:stream";
import type { WriteStream } from "node:tty";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  BatchTracker,
  formatBarLine,
  formatLogLine,
  type Progress,
  ProgressDisplay,
  Rate,
  rateWindowMs,
  uploadProgress,
} from "../../../../cli/batch/progress.js";
import type { BatchObject } from "../../../../coordinator/batches/batch.js";
import { emptyBatch } from "./support.js";

const progress: Progress = {
  fraction: 0.42,
  facts: ["420/1,000", "2 failed", "1,234 tokens/s", "3 min 25 s left"],
};

describe("a line of progress", () => {
  it("shows bar, percent, and what is known", () => {
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

  it("shows 100 % at the end only, and no bar while nobody knows", () => {
    expect(formatLogLine({ fraction: 0.999, facts: [] })).toBe("99 %");
    expect(formatBarLine({ fraction: null, facts: ["the input is being checked"] }, 80)).toBe(
      "the input is being checked",
    );
    expect(formatLogLine(uploadProgress(1_048_576, 4_194_304))).toBe(
      "25 %, sending the input, 1.0 MiB of 4.0 MiB",
    );
  });

  it("never outgrows the terminal's line", () => {
    const state = fc.record({
      fraction: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
      facts: fc.array(fc.string()),
    });
    fc.assert(
      fc.property(state, fc.integer({ min: 1, max: 300 }), (any, columns) => {
        expect(formatBarLine(any, columns).length).toBeLessThanOrEqual(columns);
      }),
    );
  });

  it("is redrawn on a terminal, and written to a log when it has changed", () => {
    const written = (columns?: number) => {
      const stream = new PassThrough();
      const terminal = columns === undefined ? {} : { isTTY: true, columns };
      const display = new ProgressDisplay(
        Object.assign(stream, terminal) as unknown as WriteStream,
        () => progress,
      );
      display.print("submitted");
      display.stop();
      display.stop();
      return String(stream.read());
    };
    const bar = formatBarLine(progress, 89);
    expect(written(90)).toBe(`\r\x1b[Ksubmitted\n\r${bar}\x1b[K\n\r${bar}\x1b[K\n`);
    expect(written()).toBe(`submitted\n${formatLogLine(progress)}\n`);
  });
});

describe("a batch that is watched", () => {
  const running = (completed: number, tokens: number): BatchObject => {
    const batch = { ...emptyBatch("batch_0"), status: "in_progress" as const };
    return {
      ...batch,
      request_counts: { total: 1_000, completed, failed: 2 },
      usage: { ...batch.usage, output_tokens: tokens },
    };
  };

  it("says that the input is being checked while nothing can be counted", () => {
    const tracker = new BatchTracker();
    expect(tracker.progress(0).facts).toEqual(["asking for the batch"]);
    tracker.note(emptyBatch("batch_0"), 0);
    expect(tracker.progress(0)).toEqual({ fraction: null, facts: ["the input is being checked"] });
  });

  it("shows rate and time left of what was seen, not of what was there before", () => {
    const tracker = new BatchTracker();
    tracker.note(running(498, 1_000_000), 0);
    expect(tracker.progress(0).facts).toEqual(["500/1,000", "2 failed", "0 tokens/s", "time left unknown"]);
    tracker.note(running(598, 1_000_500), 10_000);
    expect(tracker.progress(10_000)).toEqual({
      fraction: 0.6,
      facts: ["600/1,000", "2 failed", "50 tokens/s", "40 s left"],
    });
  });

  it("says that the coordinator is waited for, and what is done at the end", () => {
    const tracker = new BatchTracker();
    tracker.away("ECONNREFUSED");
    expect(tracker.progress(0).facts).toEqual(["waiting for the coordinator: ECONNREFUSED"]);
    tracker.note(running(98, 0), 0);
    expect(tracker.progress(0).facts).toEqual([
      "100/1,000",
      "2 failed",
      "waiting for the coordinator: ECONNREFUSED",
    ]);
    tracker.away(null);
    tracker.note({ ...running(998, 0), status: "finalizing" }, 0);
    expect(tracker.progress(0)).toMatchObject({
      fraction: 1,
      facts: ["1,000/1,000", "2 failed", "0 tokens/s", "the results are being written"],
    });
    tracker.note({ ...running(998, 0), status: "completed" }, 0);
    expect(tracker.progress(0).facts).toEqual(["1,000/1,000", "2 failed", "0 tokens/s"]);
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
