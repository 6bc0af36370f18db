import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { pipelineId } from "../../../common/ids.js";
import { allot, type Claim } from "../../../coordinator/membership/allotment.js";

const claim = (id: number, seats: string[] = [], overdue = false): Claim => ({
  id: pipelineId(id),
  seats,
  overdue,
});
const given = (claims: Claim[], free: string[], stageCount = 2) => {
  const { workers, spares } = allot(claims, free, stageCount);
  return [...claims.map(({ id }) => [...workers.get(id)!]), spares];
};

describe("workers are given", () => {
  it("to the first pipeline first, by name", () => {
    expect(given([claim(0), claim(1)], ["a", "b", "c", "d", "e"])).toEqual([["a", "b"], ["c", "d"], ["e"]]);
    expect(given([claim(0), claim(1)], ["a", "b", "c"])).toEqual([["a", "b"], ["c"], []]);
  });

  it("back to where they were, whoever joins first", () => {
    const [first, second] = [claim(0, ["a", "b"]), claim(1, ["c", "d"])];
    expect(given([first, second], ["c", "d"])).toEqual([[], ["c", "d"], []]);
    expect(given([first, second], ["a", "d"])).toEqual([["a"], ["d"], []]);
  });

  it("to the stage of the one that is away, while the others keep theirs", () => {
    expect(given([claim(0, ["b", "c", "d"])], ["a", "c", "d"], 3)).toEqual([["a", "c", "d"], []]);
    expect(given([claim(0, ["b", "c", "d"])], ["a", "b", "d"], 3)).toEqual([["b", "a", "d"], []]);
  });

  it("where they make a pipeline whole, rather than to the first", () => {
    const claims = [claim(0, ["a", "b", "c"]), claim(1, ["d", "e", "f"])];
    expect(given(claims, ["a", "d", "e", "x"], 3)).toEqual([["a"], ["d", "e", "x"], []]);
  });

  it("from the last pipeline to the first when both have waited long", () => {
    const claims = (overdue: [boolean, boolean]) => [
      claim(0, ["a", "b"], overdue[0]),
      claim(1, ["c", "d"], overdue[1]),
    ];
    expect(given(claims([true, true]), ["a", "d"])).toEqual([["a", "d"], [], []]);
    expect(given(claims([true, false]), ["a", "d"])).toEqual([["a"], ["d"], []]);
    expect(given(claims([false, true]), ["a", "d"])).toEqual([["a"], ["d"], []]);
  });

  it("to the first that waits when they make none whole", () => {
    const claims = [claim(0, ["a", "b", "c", "d"], true), claim(1, ["e", "f", "g", "h"], true)];
    expect(given(claims, ["a", "e", "x"], 4)).toEqual([["a", "x"], ["e"], []]);
  });

  it("each once, never more than a pipeline has stages, and none is left while one is lacking", () => {
    const names = Array.from({ length: 12 }, (_, index) => `w${index}`);
    const cases = fc.record({
      stageCount: fc.integer({ min: 1, max: 4 }),
      pipelines: fc.integer({ min: 1, max: 4 }),
      free: fc.subarray(names),
      seed: fc.shuffledSubarray(names, { minLength: 12 }),
      overdue: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
      seated: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
    });
    fc.assert(
      fc.property(cases, ({ stageCount, pipelines, free, seed, overdue, seated }) => {
        const claims = Array.from({ length: pipelines }, (_, index) => {
          const seats = seed.slice(index * stageCount, (index + 1) * stageCount);
          return claim(index, seated[index] && seats.length === stageCount ? seats : [], overdue[index]);
        });
        const { workers, spares } = allot(claims, free, stageCount);
        const all = [...[...workers.values()].flat(), ...spares];
        expect([...all].sort()).toEqual([...free].sort());
        const sizes = [...workers.values()].map((each) => each.length);
        for (const size of sizes) expect(size).toBeLessThanOrEqual(stageCount);
        if (spares.length > 0) expect(sizes.every((size) => size === stageCount)).toBe(true);
        // Together those that have waited long make as many pipelines whole as can be.
        const lacking = claims.filter(
          ({ id, overdue: long }) => long && workers.get(id)!.length < stageCount,
        );
        const idle = lacking.reduce((sum, { id }) => sum + workers.get(id)!.length, 0);
        if (lacking.length > 0) expect(idle).toBeLessThan(stageCount);
        for (const { id, seats } of claims) {
          const mine = workers.get(id)!;
          if (mine.length < stageCount) continue;
          for (const [stage, name] of seats.entries()) {
            if (mine.includes(name)) expect(mine[stage]).toBe(name);
          }
        }
      }),
      { seed: 20, numRuns: 500 },
    );
  });
});
