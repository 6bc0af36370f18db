/** The choices of a request: one computes the prompt, the others go on behind it in blocks of their own. */
import { describe, expect, it } from "vitest";
import { requestId, type SequenceId, sequenceId } from "../../../common/ids.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const limits: SchedulerLimits = {
  blockCount: 64,
  stageCount: 2,
  microBatches: 1,
  prefixLength: 0,
  maxStepRows: 64,
  prefillChunk: 32,
  firstExpectedReply: 0,
};
const id = (value: number): SequenceId => sequenceId(value);
const ids = (count: number): number[] => Array.from({ length: count }, (_, index) => index);

/** Sends a step, which comes back at once with a token for whoever asked. */
function step(scheduler: Scheduler): ScheduledStep {
  const sent = scheduler.next()!;
  scheduler.complete(sent.step);
  for (const { sequence, sample } of sent.rows) if (sample) scheduler.append(sequence, 7);
  return sent;
}

const rowsOf = ({ rows }: ScheduledStep) =>
  rows
    .toSorted((one, other) => one.sequence - other.sequence)
    .map(({ sequence, start, tokens, newBlocks }) => [sequence, start, tokens.length, newBlocks]);

describe("sequences with one prompt", () => {
  it("that is a context wait for the first, share its full blocks and copy the last one", () => {
    const scheduler = new Scheduler(limits);
    const prompt = ids(41);
    for (const n of [1, 2, 3]) scheduler.submit(id(n), prompt, 9, { whole: 40, prompt });
    expect(rowsOf(step(scheduler))).toEqual([[1, 0, 41, [0, 1, 2]]]);
    const second = step(scheduler);
    expect(second.copies).toEqual([
      { from: 2, to: 3 },
      { from: 2, to: 4 },
    ]);
    expect(rowsOf(second)).toEqual([
      [1, 41, 1, []],
      [2, 40, 1, [0, 1, 3]],
      [3, 40, 1, [0, 1, 4]],
    ]);
    expect(scheduler.blocksUsed).toBe(5);
    for (const n of [1, 2, 3]) scheduler.remove(id(n));
    expect([scheduler.blocksUsed, scheduler.blocksKept]).toEqual([0, 0]);
  });

  it("share a prefix encoder's slots too, and copy nothing when the prompt ends with a block", () => {
    const scheduler = new Scheduler({ ...limits, prefixLength: 7 });
    const prompt = ids(26);
    for (const n of [1, 2]) scheduler.submit(id(n), prompt, 9, { prompt });
    step(scheduler);
    const second = step(scheduler);
    expect(second.copies).toEqual([]);
    expect(rowsOf(second)).toEqual([
      [1, 26, 1, []],
      [2, 25, 1, [0, 1, 3]],
    ]);
  });

  it("hold the block that is copied until the copy has been made, whoever ends", () => {
    const scheduler = new Scheduler(limits);
    const prompt = ids(21);
    for (const n of [1, 2]) scheduler.submit(id(n), prompt, 9, { whole: 20, prompt });
    step(scheduler);
    scheduler.remove(id(1));
    expect(scheduler.next()).toMatchObject({ copies: [], rows: [{ sequence: 2, start: 0 }] });

    const other = new Scheduler(limits);
    for (const n of [1, 2]) other.submit(id(n), prompt, 9, { whole: 20, prompt });
    step(other);
    const copying = other.next()!;
    expect(copying.copies).toEqual([{ from: 1, to: 2 }]);
    other.remove(id(1));
    other.remove(id(2));
    other.complete(copying.step);
    expect(other.blocksUsed).toBe(0);
  });

  it("copy what another one has computed in an earlier step, also without waiting for it", () => {
    const scheduler = new Scheduler({ ...limits, maxStepRows: 21 });
    const prompt = ids(21);
    for (const n of [1, 2]) scheduler.submit(id(n), prompt, 9, { prompt });
    expect(rowsOf(step(scheduler))).toEqual([[1, 0, 21, [0, 1]]]);
    const second = step(scheduler);
    expect(second.copies).toEqual([{ from: 1, to: 2 }]);
    expect(rowsOf(second)[1]).toEqual([2, 20, 1, [0, 2]]);
  });

  it("are not copied where every row is scored", () => {
    const scheduler = new Scheduler(limits);
    const prompt = ids(21);
    for (const n of [1, 2]) scheduler.submit(id(n), prompt, 9, { whole: 20, prompt, everyRow: true });
    expect(rowsOf(step(scheduler))).toEqual([[1, 0, 21, [0, 1]]]);
    expect(rowsOf(step(scheduler)).at(-1)).toEqual([2, 0, 21, [2, 3]]);
  });
});

describe("a request with several choices", () => {
  it("computes its prompt once", () => {
    const cluster = new FakeCluster({ prefixLength: 3 });
    cluster.start();
    const promptTokens = ids(50);
    const choices = Array.from({ length: 5 }, (_, seed) => ({ promptTokens, seed: `${seed}` }));
    cluster.core.admit({ ...generation("n", []), choices });
    let rows = 0;
    while (cluster.steps.length > 0) {
      for (const sequence of cluster.steps[0]!.sequences!) rows += sequence.rowCount!;
      cluster.answer();
    }
    expect(rows).toBe(50 + 4 + 5 * 7);
    const told = cluster.events.get(requestId("n"))!;
    for (let choice = 0; choice < choices.length; choice++) {
      const tokens = told.flatMap((event) =>
        event.type === "tokens" && event.choice === choice ? event.tokens : [],
      );
      expect(tokens).toEqual(expectedTokens(promptTokens, 8));
    }
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});
