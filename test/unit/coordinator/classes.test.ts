/** Interactive and batch sequences in one scheduler, and tenants that pay for what was computed for them. */
import { describe, expect, it } from "vitest";
import { type SequenceId, sequenceId } from "../../../common/ids.js";
import type { GenerationRequest } from "../../../coordinator/inference.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import type { SequenceOptions } from "../../../coordinator/scheduler/sequence.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const limits: SchedulerLimits = {
  blockCount: 64,
  stageCount: 2,
  microBatches: 1,
  prefixLength: 0,
  maxStepRows: 32,
  prefillChunk: 32,
  firstExpectedReply: 0,
};
const id = (value: number): SequenceId => sequenceId(value);
/** Of different sequences with different tokens, so that none finds what another one computed. */
const prompt = (sequence: number, length: number): number[] => Array.from({ length }, () => sequence);
const batch: SequenceOptions = { class: "batch" };

function drain(scheduler: Scheduler): ScheduledStep[] {
  const steps: ScheduledStep[] = [];
  for (let step = scheduler.next(); step !== null; step = scheduler.next()) steps.push(step);
  return steps;
}

/** One step there and back; what it samples is appended. */
function turn(scheduler: Scheduler): ScheduledStep | undefined {
  const [step] = drain(scheduler);
  if (step === undefined) return undefined;
  scheduler.complete(step.step);
  for (const { sequence, sample } of step.rows) if (sample) scheduler.append(sequence, 7);
  return step;
}

const shape = (step: ScheduledStep | undefined) =>
  step?.rows.map(({ sequence, tokens }) => [sequence, tokens.length]);

describe("a step", () => {
  it("gives batch rows what interactive ones leave of it, decodes and prompts, from the next one on", () => {
    const scheduler = new Scheduler(limits);
    scheduler.submit(id(1), prompt(1, 200), 4, batch);
    scheduler.submit(id(2), prompt(2, 2), 40, batch);
    expect(shape(turn(scheduler))).toEqual([[1, 32]]);
    expect(shape(turn(scheduler))).toEqual([
      [2, 2],
      [1, 30],
    ]);
    scheduler.submit(id(3), prompt(3, 20), 40);
    scheduler.submit(id(4), prompt(4, 1), 40);
    // The batch decode has its row before the batch prompt, and both come behind the interactive ones.
    expect(shape(turn(scheduler))).toEqual([
      [4, 1],
      [3, 20],
      [2, 1],
      [1, 10],
    ]);
    expect(shape(turn(scheduler))).toEqual([
      [4, 1],
      [3, 1],
      [2, 1],
      [1, 29],
    ]);
    scheduler.submit(id(5), prompt(5, 90), 1);
    // Nothing is left.
    expect(shape(turn(scheduler))).toEqual([
      [4, 1],
      [3, 1],
      [5, 30],
    ]);
  });

  it("is filled with batch rows when interactive ones are on their way", () => {
    const scheduler = new Scheduler({ ...limits, microBatches: 2 });
    scheduler.submit(id(1), prompt(1, 5), 9);
    scheduler.submit(id(2), prompt(2, 5), 9, batch);
    expect(drain(scheduler).map(shape)).toEqual([[[1, 5]], [[2, 5]]]);
  });

  it("takes every batch sequence in turn", () => {
    const scheduler = new Scheduler({ ...limits, maxStepRows: 4 });
    for (let n = 1; n <= 9; n++) scheduler.submit(id(n), prompt(n, 1), 100, batch);
    const rows = new Map<number, number>();
    for (let round = 0; round < 90; round++) {
      for (const { sequence } of turn(scheduler)!.rows) rows.set(sequence, (rows.get(sequence) ?? 0) + 1);
    }
    expect(rows.size).toBe(9);
    expect(Math.max(...rows.values()) - Math.min(...rows.values())).toBeLessThanOrEqual(1);
  });
});

describe("admission", () => {
  it("lets batch sequences in only when no interactive one waits", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 5, firstExpectedReply: 16 });
    scheduler.submit(id(1), prompt(1, 40), 10);
    turn(scheduler);
    scheduler.submit(id(2), prompt(2, 1), 1, batch);
    scheduler.submit(id(3), prompt(3, 40), 10);
    // It would fit beside the first one.
    turn(scheduler);
    expect(scheduler.countsOf("batch")).toEqual({ running: 0, waiting: 1 });
    expect(scheduler.countsOf("interactive")).toEqual({ running: 1, waiting: 1 });
    scheduler.remove(id(3));
    turn(scheduler);
    expect(scheduler.countsOf("batch")).toEqual({ running: 1, waiting: 0 });
  });

  it("takes the blocks of batch sequences for an interactive one, within one step, and no more than it needs", () => {
    for (const inFlight of [false, true]) {
      const scheduler = new Scheduler({ ...limits, blockCount: 6, maxStepRows: 64 });
      for (const n of [1, 2, 3]) scheduler.submit(id(n), prompt(n, 20), 10, batch);
      const steps = [drain(scheduler)];
      expect(steps[0]!.map(shape)).toEqual([[1, 2, 3].map((n) => [n, 20])]);
      if (!inFlight) scheduler.complete(1);
      scheduler.submit(id(4), prompt(4, 20), 10);
      steps.push(drain(scheduler));
      if (inFlight) {
        expect(steps[1]).toEqual([]);
        // Asked again before the step is back, it takes no second one.
        expect(drain(scheduler)).toEqual([]);
        scheduler.complete(1);
        steps.push(drain(scheduler));
      }
      const step = steps.at(-1)![0]!;
      // The youngest of those behind it.
      expect(step.preempted).toEqual([3]);
      expect(step.ended).toEqual([3]);
      expect(step.rows[0]).toMatchObject({ sequence: 4, start: 0 });
      expect(scheduler.countsOf("batch")).toEqual({ running: 2, waiting: 1 });
      expect(scheduler.countsOf("interactive")).toEqual({ running: 1, waiting: 0 });
    }
  });

  it("takes nothing for one of their own class, nor when that would not be enough", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 6 });
    scheduler.submit(id(1), prompt(1, 50), 10);
    scheduler.submit(id(2), prompt(2, 20), 10, batch);
    turn(scheduler);
    scheduler.submit(id(3), prompt(3, 20), 10, batch);
    scheduler.submit(id(4), prompt(4, 50), 10);
    const preempted = [turn(scheduler), turn(scheduler)].flatMap((step) => step!.preempted);
    expect(preempted).toEqual([]);
    expect(scheduler.countsOf("interactive")).toEqual({ running: 1, waiting: 1 });
    expect(scheduler.countsOf("batch")).toEqual({ running: 1, waiting: 1 });
  });

  it("gives a running interactive sequence the blocks of batch ones, also of those that came before it", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 4 });
    scheduler.submit(id(1), prompt(1, 20), 10, batch);
    scheduler.submit(id(2), prompt(2, 30), 30);
    const preempted: number[] = [];
    for (let round = 0; preempted.length === 0; round++) {
      expect(round).toBeLessThan(30);
      preempted.push(...turn(scheduler)!.preempted);
    }
    expect(preempted).toEqual([1]);
  });
});

describe("a tenant", () => {
  /** How often each tenant got a turn, when one sequence runs at a time. */
  function turnsOf(sequences: { tenant: string; tokens: number[]; reply: number }[], turns: number) {
    // Another one does not fit beside a reply that is taken to be long.
    const room = { blockCount: 15, firstExpectedReply: 1_000, maxStepRows: 128, prefillChunk: 128 };
    const scheduler = new Scheduler({ ...limits, ...room });
    const counts: Record<string, number> = {};
    for (const [n, { tenant, tokens }] of sequences.entries()) {
      scheduler.submit(id(n), tokens, 60, { tenant });
    }
    const left = new Map(sequences.map(({ reply }, n) => [n, reply] as const));
    for (let begun = 0; begun < turns; ) {
      const step = turn(scheduler)!;
      expect(step.rows).toHaveLength(1);
      const [{ sequence, first, sample }] = step.rows as [ScheduledStep["rows"][0]];
      if (first) {
        begun++;
        const { tenant } = sequences[sequence]!;
        counts[tenant] = (counts[tenant] ?? 0) + 1;
      }
      if (!sample) continue;
      left.set(sequence, left.get(sequence)! - 1);
      if (left.get(sequence) === 0) scheduler.remove(sequence);
    }
    return counts;
  }

  it("pays for prompts and, more dearly, for replies", () => {
    const sequences = Array.from({ length: 60 }, (_, n) => [
      { tenant: "reads", tokens: prompt(n, 100), reply: 1 },
      { tenant: "writes", tokens: prompt(1_000 + n, 100), reply: 34 },
    ]).flat();
    const { reads = 0, writes = 0 } = turnsOf(sequences, 54);
    expect(Math.abs(reads * 102 - writes * 168)).toBeLessThanOrEqual(168);
  });

  it("pays nothing for what of its prompts was computed before", () => {
    const sequences = Array.from({ length: 80 }, (_, n) => [
      { tenant: "repeats", tokens: prompt(5_000, 100), reply: 1 },
      { tenant: "varies", tokens: prompt(n, 100), reply: 1 },
    ]).flat();
    const { repeats = 0, varies = 0 } = turnsOf(sequences, 60);
    // 96 of 100 are found, but by the first one.
    expect(Math.abs(96 + repeats * 6 - varies * 102)).toBeLessThanOrEqual(102);
  });

  it("pays once for a prompt that is computed again", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 8, maxStepRows: 128, prefillChunk: 128 });
    for (const n of [1, 2]) scheduler.submit(id(n), prompt(n, 100), 2, { ...batch, tenant: "preempted" });
    for (const n of [3, 4]) scheduler.submit(id(n), prompt(n, 120), 1, { ...batch, tenant: "other" });
    turn(scheduler);
    scheduler.submit(id(5), prompt(5, 120), 1);
    const order: number[] = [];
    for (let round = 0; order.length < 5; round++) {
      expect(round).toBeLessThan(20);
      for (const { sequence, sample } of turn(scheduler)!.rows) {
        if (!sample) continue;
        order.push(sequence);
        scheduler.remove(sequence);
      }
    }
    // The first one drew a token before it was preempted and one after: 104 against 122. Paid twice, 204.
    expect(order).toEqual([5, 1, 3, 2, 4]);
  });

  it("pays nothing for what was never computed because it was cancelled", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 8 });
    scheduler.submit(id(1), prompt(1, 120), 1, { tenant: "leaves" });
    for (const [n, tenant] of ["leaves", "stays"].entries()) {
      for (let k = 0; k < 4; k++) {
        const sequence = 10 + 10 * n + k;
        scheduler.submit(id(sequence), prompt(sequence, 100), 1, { tenant });
      }
    }
    turn(scheduler); // 32 of its rows
    scheduler.remove(id(1));
    const order: number[] = [];
    while (order.length < 4) {
      for (const { sequence, first, sample } of turn(scheduler)!.rows) {
        if (first) order.push(sequence);
        if (sample) scheduler.remove(sequence);
      }
    }
    // 32 against 0, 134 against 102, ...: in turns. Had it paid 120, the other one would have had two at first.
    expect(order).toEqual([20, 10, 21, 11]);
  });
});

describe("a flood of batch requests", () => {
  const as = (of: "interactive" | "batch", request: GenerationRequest) => ({ ...request, class: of });
  const ids = (count: number, first: number) => Array.from({ length: count }, (_, i) => first + i);

  it("lets interactive ones that come later end first, and costs nobody a token", () => {
    const cluster = new FakeCluster({ maxBlocks: 24 });
    cluster.start();
    const flood = ids(30, 0).map((n) => generation(`b${n}`, ids(20, n), { maxTokens: 40 }));
    const talk = ids(5, 50).map((n) => generation(`i${n}`, ids(20, n), { maxTokens: 40 }));
    for (const request of flood) cluster.core.admit(as("batch", request));
    for (let n = 0; n < 10; n++) cluster.answer();
    for (const request of talk) cluster.core.admit(as("interactive", request));
    for (let n = 0; n < 2; n++) cluster.answer(); // the steps on their way
    expect(cluster.core.view().classes.interactive.running).toBeGreaterThan(0);
    cluster.answerAll();
    const order = [...cluster.ended].filter((name) => /^[bi]\d/.test(name));
    // There is room for one of the flood beside them.
    expect(order.slice(0, 6)).toEqual(expect.arrayContaining(talk.map((request) => request.id)));
    expect(cluster.core.view().counters.preemptions).toBeGreaterThan(0);
    for (const { id: name, choices } of [...flood, ...talk]) {
      const [{ promptTokens }] = choices as [GenerationRequest["choices"][0]];
      expect(cluster.tokensOf(name)).toEqual(expectedTokens([...promptTokens], 40));
    }
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});
