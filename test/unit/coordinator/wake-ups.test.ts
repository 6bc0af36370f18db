import { expect, it } from "vitest";
import { WakeUps } from "../../../coordinator/wake-ups.js";

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

it("wakes a few at once and the others turn by turn, in order", async () => {
  const wakeUps = new WakeUps();
  const woken: number[] = [];
  for (let i = 0; i < 100; i++) wakeUps.wake(() => woken.push(i));
  const perTurn = [woken.length];
  while (woken.length < 100) {
    const before = woken.length;
    await turn();
    perTurn.push(woken.length - before);
    if (perTurn.length > 1_000) throw new Error("not all of them are woken");
  }
  expect(woken).toEqual(Array.from({ length: 100 }, (_, i) => i));
  expect(Math.max(...perTurn)).toBe(16);
});

it("lets nobody overtake those who wait, and has no backlog once all are awake", async () => {
  const wakeUps = new WakeUps();
  const woken: number[] = [];
  for (let i = 0; i < 40; i++) wakeUps.wake(() => woken.push(i));
  await turn();
  wakeUps.wake(() => woken.push(40));
  for (let i = 0; i < 10; i++) await turn();
  expect(woken).toEqual(Array.from({ length: 41 }, (_, i) => i));
  wakeUps.wake(() => woken.push(41));
  expect(woken.at(-1)).toBe(41);
});
