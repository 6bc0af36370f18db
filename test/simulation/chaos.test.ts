import { describe, expect, it } from "vitest";
import { report, runSeed } from "../../simulation/chaos/run.js";
import { faultKinds } from "../../simulation/chaos/scenario.js";
import { findPlanted, tableOf } from "../support/find-planted.js";
import { plantedBugs } from "../support/planted-bugs.js";

const one = process.env["SEED"];
const seeds = one === undefined ? Array.from({ length: 300 }, (_, index) => index + 1) : [Number(one)];
/** Bugs that take more seeds are looked for in test/long. */
const quickSeeds = 5;
const quickBugs = [
  "a draft counts as accepted without a check",
  "a step counts as finished when its only request is cancelled",
  "a token is delivered twice after a recovery",
  "a ledger record is deleted with the first token",
  "a line of a batch is answered twice",
  "the epoch is not raised after a loss",
  "the copy of a shared prompt's last block is left out",
  "workers are not told which sequences have ended",
  "an interrupted sequence is built without its last token",
  "the answer of a request whose client is gone is not kept",
  "a client that left is not forgotten",
];

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
    const bugs = plantedBugs.filter(({ name }) => quickBugs.includes(name));
    expect(bugs).toHaveLength(quickBugs.length);
    const found = [];
    for (const bug of bugs) found.push(await findPlanted(bug, quickSeeds));
    console.log(tableOf(found));
    expect(found.filter(({ seeds: needed }) => needed === null)).toEqual([]);
  });
});
