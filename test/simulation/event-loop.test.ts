import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { EventLoop } from "../../simulation/event-loop.js";
import { Random } from "../../simulation/random.js";

describe("the event loop of a simulation", () => {
  it("lets things happen in the order of their times, then of their planning", () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ atMs: fc.integer({ min: 0, max: 20 }), cancelled: fc.boolean() })),
        (planned) => {
          const loop = new EventLoop();
          const happened: { atMs: number; index: number }[] = [];
          const all = planned.map(({ atMs }, index) =>
            loop.at(atMs, () => {
              expect(loop.nowMs()).toBe(atMs);
              happened.push({ atMs, index });
            }),
          );
          for (const [index, { cancelled }] of planned.entries()) if (cancelled) all[index]!.cancel();
          const expected = planned
            .map(({ atMs, cancelled }, index) => ({ atMs, index, cancelled }))
            .filter(({ cancelled }) => !cancelled)
            .sort((a, b) => a.atMs - b.atMs || a.index - b.index)
            .map(({ atMs, index }) => ({ atMs, index }));
          expect(loop.pending).toBe(expected.length);
          while (loop.step());
          expect(happened).toEqual(expected);
          expect(loop.pending).toBe(0);
        },
      ),
    );
  });

  it("runs up to a time, and repeats what is repeated until it is called off", () => {
    const loop = new EventLoop();
    const times: number[] = [];
    const ticks = loop.every(10, () => times.push(loop.nowMs()));
    loop.runUntil(35);
    expect([times, loop.nowMs()]).toEqual([[10, 20, 30], 35]);
    ticks.cancel();
    loop.runUntil(100);
    expect([times.length, loop.nowMs(), loop.pending]).toEqual([3, 100, 0]);
  });

  it("may call itself off while it happens, and plan what is late for now", () => {
    const loop = new EventLoop();
    let count = 0;
    const late: number[] = [];
    const ticks = loop.every(5, () => {
      if (++count === 2) ticks.cancel();
      loop.at(0, () => late.push(loop.nowMs()));
    });
    loop.runUntil(50);
    expect([count, late]).toEqual([2, [5, 10]]);
  });
});

describe("random numbers of a simulation", () => {
  it("are the same for a seed, and those of a fork do not depend on what others draw", () => {
    const one = new Random(7);
    const other = new Random(7);
    expect(Array.from({ length: 9 }, () => one.next())).toEqual(
      Array.from({ length: 9 }, () => other.next()),
    );
    expect(new Random(7).fork("a").next()).toBe(new Random(7).fork("a").next());
    expect(new Random(7).fork("a").next()).not.toBe(new Random(7).fork("b").next());
    expect(new Random(7).fork("a").next()).not.toBe(new Random(8).fork("a").next());
  });

  it("have the ranges that they are asked for", () => {
    const random = new Random(1);
    const values = Array.from({ length: 20_000 }, () => random.next());
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values)).toBeLessThan(1);
    expect(values.reduce((sum, value) => sum + value, 0) / values.length).toBeCloseTo(0.5, 1);
    const integers = new Set(Array.from({ length: 1_000 }, () => random.integer(3, 6)));
    expect([...integers].sort()).toEqual([3, 4, 5, 6]);
    const waits = Array.from({ length: 20_000 }, () => random.exponential(4));
    expect(waits.reduce((sum, wait) => sum + wait, 0) / waits.length).toBeCloseTo(4, 0);
  });
});
