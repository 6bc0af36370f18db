/** How many guesses a step carries: from their chances, and from what rows cost. */
import { describe, expect, it } from "vitest";
import { maxDraftRows } from "../../../common/limits.js";
import { Acceptance } from "../../../coordinator/scheduler/acceptance.js";
import { type Drafter, Speculation } from "../../../coordinator/scheduler/speculation.js";
import { kneeRows } from "../../../coordinator/scheduler/timing/cycle.js";

/** A drafter whose every guess is kept with one chance. */
function drafterWith(chance: number): Drafter {
  const text = [1, 2, 3, 1, 2];
  const drafter = new Speculation().drafter(text, 1_000);
  // Observed often enough, a pattern of hits and misses settles near its share.
  return Object.assign(Object.create(drafter) as Drafter, {
    chances: (limit: number, threshold: number) => {
      const chances: number[] = [];
      for (let p = chance; chances.length < limit && p > threshold; p *= chance) chances.push(p);
      return chances;
    },
  });
}

describe("how many draft rows a step carries", () => {
  const plan = (chances: number[], rows: number, { budget = 512, limit = maxDraftRows, knee = 4 } = {}) =>
    new Speculation().plan(
      chances.map((chance) => ({ drafter: drafterWith(chance), limit })),
      { rows, budget, knee, otherYield: 0, timeOf: null },
    ).lengths;

  it("is none where guesses fail, and the more the likelier they are kept", () => {
    // One row beside a knee of 4: a chance above 1 / (4 + 1) pays, 0.26 pays by a twentieth.
    expect(plan([0.25], 1)).toEqual([0]);
    expect(plan([0.27], 1)).toEqual([1]);
    const lengths = [0.3, 0.5, 0.7, 0.8, 0.9, 0.99].map((chance) => plan([chance], 1)[0]!);
    expect(lengths).toEqual([...lengths].sort((a, b) => a - b));
    expect(lengths[0]).toBe(1);
    expect(lengths.at(-1)).toBe(maxDraftRows);
  });

  it("is none where rows are all that counts, and all within bounds where they cost nothing", () => {
    expect(plan([0.99], 1, { knee: 0 })).toEqual([0]);
    expect(plan([0.99, 0.5], 2, { knee: 1e6, limit: 6 })).toEqual([6, 2]);
    const speculation = new Speculation();
    expect([0, 1, Number.POSITIVE_INFINITY].map((knee) => speculation.mayPay(9, knee))).toEqual([
      false,
      false,
      true,
    ]);
    expect(speculation.mayPay(8, 1)).toBe(true);
  });

  it("maximises tokens per time: no other length of a single draft is better", () => {
    for (const chance of [0.3, 0.5, 0.7, 0.85, 0.95]) {
      for (const knee of [1, 4, 20]) {
        const rate = (length: number) => {
          let tokens = 1;
          for (let p = chance, n = 0; n < length; n++, p *= chance) tokens += p;
          return tokens / (knee + 1 + length);
        };
        const [chosen] = plan([chance], 1, { knee });
        // Rows with a chance of less than 0.2 are not sent in any case, nor those that gain next to nothing.
        const lengths = Array.from({ length: maxDraftRows + 1 }, (_, length) => length);
        const best = Math.max(...lengths.filter((length) => chance ** length > 0.2).map(rate));
        if (best > 1.05 * rate(0)) expect(rate(chosen!)).toBeCloseTo(best, 12);
        else expect(chosen).toBe(0);
      }
    }
  });

  it("falls with company, and beside a prompt's rows is nothing but certainties", () => {
    const one = plan([0.8], 1)[0]!;
    const many = plan(Array(16).fill(0.8), 16);
    expect(Math.max(...many)).toBeLessThan(one);
    expect(plan([0.9], 257)).toEqual([0]);
  });

  it("follows the stairs of times that were measured", () => {
    // Tiles of four rows: up to the end of one a row costs nothing, the next one as much as four.
    const tiles = (rows: number) => (draftRows: number) => 10 + 8 * Math.ceil((rows + draftRows) / 4);
    const lengths = (chance: number, rows: number, otherYield = 0) =>
      new Speculation().plan(
        Array.from({ length: rows }, () => ({ drafter: drafterWith(chance), limit: 9 })),
        { rows, budget: 99, knee: 3, otherYield, timeOf: tiles(rows) },
      ).lengths;
    expect(lengths(0.6, 2)).toEqual([1, 1]);
    expect(lengths(0.6, 4)).toEqual([1, 1, 1, 1]);
    expect(lengths(0.5, 4)).toEqual([0, 0, 0, 0]);
    expect(lengths(0.9, 1)).toEqual([7]);
    // Others would lose by it, who wait for the longer step.
    expect(lengths(0.9, 1, 3)).toEqual([3]);
  });

  it("goes to whose guesses are better, within limits and budget", () => {
    expect(plan([0.3, 0.95], 2)[1]).toBeGreaterThan(plan([0.3, 0.95], 2)[0]!);
    expect(plan([0.99, 0.99], 2, { limit: 3 })).toEqual([3, 3]);
    expect(plan([0.99, 0.98], 2, { budget: 1 })).toEqual([1, 0]);
    expect(plan([0.99], 1, { budget: 0 })).toEqual([0]);
    expect(plan([0.99], 1, { limit: 0 })).toEqual([0]);
    expect(plan([], 3)).toEqual([]);
  });
});

describe("the rows that a step costs in any case", () => {
  const stage = (baseUs: number, rowUs: number, keyUs = 0) => ({ baseUs, rowUs, keyUs });

  it("are the weights and hops of the whole way where nobody waits behind the slowest stage", () => {
    const times = { stages: [stage(4_000, 500), stage(8_000, 1_500)], hopUs: 2_000, stationUs: 0 };
    expect(kneeRows(times, 1, { rows: 1, keys: 100 })).toBeCloseTo(14_000 / 2_000);
    expect(kneeRows(times, 1, { rows: 9, keys: 100 })).toBeCloseTo(14_000 / 2_000);
    // Three micro-batches keep the slowest stage busy: its weights count, hops do not.
    expect(kneeRows(times, 3, { rows: 1, keys: 100 })).toBeCloseTo(8_000 / 1_500);
  });

  it("are fewer where a row reads a long context", () => {
    const times = { stages: [stage(4_000, 500, 1)], hopUs: 0, stationUs: 0 };
    expect(kneeRows(times, 1, { rows: 1, keys: 500 })).toBeCloseTo(4_000 / 1_000);
    expect(kneeRows(times, 1, { rows: 2, keys: 2_000 })).toBeCloseTo(4_000 / 1_500);
  });

  it("are without bound where rows cost nothing", () => {
    const times = { stages: [stage(4_000, 0)], hopUs: 0, stationUs: 0 };
    expect(kneeRows(times, 1, { rows: 1, keys: 5 })).toBe(Number.POSITIVE_INFINITY);
    expect(kneeRows({ stages: [stage(0, 0)], hopUs: 0, stationUs: 0 }, 2, { rows: 1, keys: 5 })).toBe(
      Number.POSITIVE_INFINITY,
    );
  });
});

describe("the measured chance", () => {
  it("follows what is seen, per length of the match, and a sequence begins with what others have seen", () => {
    const overall = Acceptance.overall();
    for (let n = 0; n < 400; n++) {
      overall.observe(2, n % 10 === 0);
      overall.observe(8, n % 10 !== 0);
    }
    expect(overall.chance(2)).toBeCloseTo(0.1, 1);
    expect(overall.chance(8)).toBeCloseTo(0.9, 1);
    expect(overall.chance(30)).toBe(overall.chance(8));
    const own = overall.forSequence();
    expect(own.chance(2)).toBe(overall.chance(2));
    for (let n = 0; n < 40; n++) own.observe(2, true);
    expect(own.chance(2)).toBeGreaterThan(0.9);
    expect(overall.chance(2)).toBeLessThan(0.2);
  });

  it("turns speculation off by itself, and on again when the text repeats itself", () => {
    // 40 tokens in which every pair was seen before with another continuation, then a loop.
    const speculation = new Speculation();
    const text = [1, 2];
    const drafter = speculation.drafter(text, 4_000);
    const grow = (token: number) => {
      text.push(token);
      drafter.settle(token);
      const step = { rows: 1, budget: 100, knee: null, otherYield: 0, timeOf: null };
      return speculation.plan([{ drafter, limit: 15 }], step).lengths[0]!;
    };
    for (let n = 0; n < 40; n++) for (const token of [1, 2, 100 + n]) grow(token);
    grow(1);
    expect(grow(2)).toBe(0);
    for (let n = 0; n < 12; n++) for (const token of [5, 6, 7]) grow(token);
    expect(grow(5)).toBeGreaterThan(4);
  });
});
