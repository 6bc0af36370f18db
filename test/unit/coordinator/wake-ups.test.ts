import { expect, it } from "vitest";
import { systemTimers } from "../../../common/clock.js";
import { WakeUps } from "../../../coordinator/wake-ups.js";

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Sleepers whose work takes time on a clock of their own, and how many were woken in each turn. */
async function crowd(count: number, workMs: number): Promise<{ woken: number[]; perTurn: number[] }> {
  let nowMs = 0;
  const wakeUps = new WakeUps({ ...systemTimers, nowMs: () => nowMs });
  const woken: number[] = [];
  for (let i = 0; i < count; i++) {
    void new Promise<void>((resolve) => wakeUps.wake(resolve)).then(() => {
      woken.push(i);
      nowMs += workMs;
    });
  }
  const perTurn: number[] = [];
  while (woken.length < count) {
    const before = woken.length;
    await turn();
    perTurn.push(woken.length - before);
    if (perTurn.length > 1_000) throw new Error("not all of them are woken");
  }
  return { woken, perTurn };
}

it("wakes as many in a turn as do their work in its share of time, in order", async () => {
  const { woken, perTurn } = await crowd(100, 0.1);
  expect(woken).toEqual(Array.from({ length: 100 }, (_, i) => i));
  // Three groups of 16 take 4.8 ms: the third begins within the share of 4 ms.
  expect(Math.max(...perTurn)).toBe(48);
});

it("wakes one group in a turn when that takes long", async () => {
  const { woken, perTurn } = await crowd(100, 1);
  expect(woken).toEqual(Array.from({ length: 100 }, (_, i) => i));
  expect(Math.max(...perTurn)).toBe(16);
});

it("wakes the first ones at once", () => {
  const wakeUps = new WakeUps();
  let woken = 0;
  for (let i = 0; i < 100; i++) wakeUps.wake(() => woken++);
  expect(woken).toBe(16);
});

it("lets nobody overtake those who wait, and has no backlog once all are awake", async () => {
  const wakeUps = new WakeUps();
  const woken: number[] = [];
  for (let i = 0; i < 40; i++) wakeUps.wake(() => woken.push(i));
  await Promise.resolve();
  wakeUps.wake(() => woken.push(40));
  for (let i = 0; i < 10; i++) await turn();
  expect(woken).toEqual(Array.from({ length: 41 }, (_, i) => i));
  wakeUps.wake(() => woken.push(41));
  expect(woken.at(-1)).toBe(41);
});
