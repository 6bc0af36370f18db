import { describe, expect, it } from "vitest";
import { report, runSeed } from "../../simulation/chaos/run.js";
import { faultKinds } from "../../simulation/chaos/scenario.js";
import { findPlanted, tableOf } from "../support/find-planted.js";
import { plantedBugs } from "../support/planted-bugs.js";

const one = process.env["SEED"];
const seeds = one === undefined ? Array.from({ length: 300 }, (_, index) => index + 1) : [Number(one)];
/** What takes more seeds than that has its time in test/long. */
const mostSeeds = 60;
const slowBugs = ["nobody looks at the queue limit", "choices of a request share their tokens in the ledger"];

describe("a simulated cluster with faults", () => {
  it(`keeps its promises in ${seeds.length} seeds, which reach what they are meant to reach`, async () => {
    const counts = new Map<string, number>();
    const failed: string[] = [];
    for (const seed of seeds) {
      const outcome = await runSeed(seed);
      for (const [what, times] of outcome.counts) counts.set(what, (counts.get(what) ?? 0) + times);
      if (outcome.violation !== null) failed.push(report(outcome));
    }
    if (failed.length > 0) throw new Error(failed.join("\n\n"));
    if (one !== undefined) return;
    const reached = [
      ...faultKinds.filter((kind) => kind !== "jitter" && kind !== "loss").map((kind) => `fault ${kind}`),
      "recoveries",
      "orphans",
      "answers looked up",
      "preemptions",
      "prompt tokens found in the cache",
      "copies",
      "slices",
      "guessed tokens",
      "results of old epochs",
      "clients left",
      "clients deadline_exceeded",
      "errors queue_full",
    ];
    expect(reached.filter((what) => (counts.get(what) ?? 0) === 0)).toEqual([]);
  });

  it("does the same when a seed is run again", async () => {
    for (const seed of [5, 6, 7]) {
      const first = await runSeed(seed, 400);
      const second = await runSeed(seed, 400);
      expect(second.trace).toEqual(first.trace);
      expect(second.events).toBe(first.events);
    }
  });

  it("finds planted bugs", async () => {
    const bugs = plantedBugs.filter(({ name }) => !slowBugs.includes(name));
    expect(bugs).toHaveLength(plantedBugs.length - slowBugs.length);
    const found = [];
    for (const bug of bugs) found.push(await findPlanted(bug, mostSeeds));
    console.log(tableOf(found));
    expect(found.filter(({ seeds: needed }) => needed === null)).toEqual([]);
  });
});
