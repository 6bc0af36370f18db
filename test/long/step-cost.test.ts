/**
 * What a step costs scheduler and pipeline, in CPU time: as promised, and in proportion to its sequences. A
 * machine that others use as well takes half as much again, since they use its caches.
 */
import { expect, test } from "vitest";
import { measureStepCost, target } from "../../bench/scheduler-cost.js";

const busy = 1.5;

test("a step of 256 sequences costs what is promised, and one of 512 twice as much per sequence at most as one of 64", () => {
  const decode = (running: number) => measureStepCost({ running, prefill: false, waiting: 0 });
  const [few, promised, many] = [decode(64), decode(target.sequences), decode(1_024)];
  const perSequence = ({ stepUs, rowsPerStep }: typeof few) => stepUs / rowsPerStep;
  console.log([few, promised, many].map(({ running, stepUs }) => `${running}: ${stepUs.toFixed(1)} us`));
  expect(promised.stepUs).toBeLessThan(target.stepUs * busy);
  expect(perSequence(many)).toBeLessThan(perSequence(few) * 2);
});

test("ten thousand waiting sequences at most double what a step costs", () => {
  const alone = measureStepCost({ running: target.sequences, prefill: false, waiting: 0 });
  const crowded = measureStepCost({ running: target.sequences, prefill: false, waiting: 10_000 });
  expect(crowded.stepUs).toBeLessThan(alone.stepUs * 2);
});
