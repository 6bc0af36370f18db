import { describe, expect, it } from "vitest";
import { bestRoute, type Candidate } from "../../../coordinator/routing.js";

const idle: Candidate = { held: 0, running: 0, waiting: 0, startsAtOnce: true, unused: 100 };
/** Index of the best of these. */
const best = (...candidates: Partial<Candidate>[]) => {
  const all = candidates.map((candidate) => ({ ...idle, ...candidate }));
  return all.indexOf(bestRoute(all)!);
};

describe("a new sequence goes", () => {
  it("to the first of equal pipelines, to none of none", () => {
    expect(best({}, {}, {})).toBe(0);
    expect(bestRoute([])).toBeNull();
  });

  it("where fewer run", () => {
    expect(best({ running: 3 }, { running: 2 })).toBe(1);
  });

  it("where it need not wait, though more run there", () => {
    expect(best({ running: 4, startsAtOnce: false }, { running: 7 })).toBe(1);
    expect(best({ running: 10, waiting: 3, startsAtOnce: false }, { running: 20 })).toBe(1);
  });

  it("where more of its prompt is held, and where less of the cache must go for it", () => {
    expect(best({}, { held: 16 })).toBe(1);
    expect(best({ held: 16 }, { held: 48 })).toBe(1);
    expect(best({ unused: 10 }, { unused: 11 })).toBe(1);
    expect(best({ unused: 11, held: 16 }, { unused: 90 })).toBe(0);
  });

  it("to its prefix while few more run there, and elsewhere when many do", () => {
    expect(best({ held: 1_600, running: 7 }, {})).toBe(0);
    expect(best({ held: 1_600, running: 9 }, {})).toBe(1);
    expect(best({ held: 64, running: 1 }, {})).toBe(0);
    expect(best({ held: 64, running: 3 }, {})).toBe(1);
  });

  it("away from its prefix, however long, where others wait already", () => {
    const crowded = { held: 100_000, running: 5, startsAtOnce: false };
    expect(best({ ...crowded, waiting: 0 }, { running: 5 })).toBe(0);
    expect(best({ ...crowded, waiting: 2 }, { running: 5 })).toBe(1);
    expect(best({ ...crowded, waiting: 2 }, { running: 5, waiting: 2, startsAtOnce: false })).toBe(0);
  });

  it("never to a pipeline that is more than eight sequences ahead of all others", () => {
    for (let seed = 1; seed <= 200; seed++) {
      const random = randomNumbers(seed);
      const loads = [0, 0, 0];
      for (let sequence = 0; sequence < 100; sequence++) {
        const held = [random(5_000), random(5_000), random(5_000)];
        const chosen = best(...loads.map((running, i) => ({ running, held: held[i]! })));
        expect(loads[chosen]! - Math.min(...loads)).toBeLessThanOrEqual(8);
        loads[chosen]! += 1;
        const leaving = random(3);
        loads[leaving] = Math.max(0, loads[leaving]! - random(2));
      }
    }
  });
});

function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor((state / 2_147_483_648) * below);
  };
}
