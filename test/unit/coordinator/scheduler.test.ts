import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SequenceId, sequenceId } from "../../../common/ids.js";
import { BlockPool, blocksFor } from "../../../coordinator/scheduler/block-pool.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import { KvSlots } from "../../support/kv-slots.js";

const limits: SchedulerLimits = {
  blockCount: 64,
  stageCount: 4,
  microBatches: null,
  prefixLength: 0,
  maxStepRows: 32,
  prefillChunk: 16,
  firstExpectedReply: 256,
};
const id = (value: number): SequenceId => sequenceId(value);
const prompt = (length: number): number[] => Array.from({ length }, (_, index) => index);

/** Sends all that can be sent. */
function drain(scheduler: Scheduler): ScheduledStep[] {
  const steps: ScheduledStep[] = [];
  for (let step = scheduler.next(); step !== null; step = scheduler.next()) steps.push(step);
  return steps;
}

describe("the block pool", () => {
  it("gives out what was reserved and takes everything back", () => {
    const pool = new BlockPool(4);
    expect(pool.reserve(3)).toBe(true);
    expect(pool.reserve(2)).toBe(false);
    const blocks = pool.take(2);
    expect(blocks).toEqual([0, 1]);
    expect(pool.used).toBe(2);
    pool.release(blocks, 1);
    expect(pool.available).toBe(4);
    expect(() => pool.take(1)).toThrow();
  });
});

describe("the scheduler", () => {
  it("cuts a prompt into chunks and draws a token only after its last row", () => {
    const scheduler = new Scheduler(limits);
    scheduler.submit(id(1), prompt(40), 4);
    const seen: [number, number, boolean][] = [];
    for (let round = 0; round < 3; round++) {
      const [step, ...more] = drain(scheduler);
      expect(more).toEqual([]);
      const rows = step!.rows[0]!;
      seen.push([rows.start, rows.tokens.length, rows.sample]);
      scheduler.complete(step!.step);
    }
    expect(seen).toEqual([
      [0, 16, false],
      [16, 16, false],
      [32, 8, true],
    ]);
  });

  it("sends nothing for a sequence whose next token is not decided yet", () => {
    const scheduler = new Scheduler(limits);
    scheduler.submit(id(1), prompt(3), 4);
    const [step] = drain(scheduler);
    scheduler.complete(step!.step);
    expect(drain(scheduler)).toEqual([]);
    scheduler.append(id(1), 7);
    const [next] = drain(scheduler);
    expect(next!.rows[0]).toMatchObject({ start: 3, tokens: [7], newBlocks: [], sample: true });
  });

  it("keeps min(stages, sequences) micro-batches in flight by default, two at once for two sequences", () => {
    const scheduler = new Scheduler(limits);
    scheduler.submit(id(1), prompt(3), 4);
    scheduler.submit(id(2), prompt(3), 4);
    const steps = drain(scheduler);
    expect(steps.map((step) => step.rows.map((rows) => rows.sequence))).toEqual([[1], [2]]);
    expect(scheduler.stepsInFlight).toBe(2);
  });

  it("obeys a given number of micro-batches", () => {
    const scheduler = new Scheduler({ ...limits, microBatches: 1 });
    for (let n = 1; n <= 5; n++) scheduler.submit(id(n), prompt(2), 4);
    const steps = drain(scheduler);
    expect(steps).toHaveLength(1);
    expect(steps[0]!.rows).toHaveLength(5);
  });

  it("lets a sequence join while others are running", () => {
    const scheduler = new Scheduler({ ...limits, microBatches: 1 });
    scheduler.submit(id(1), prompt(2), 9);
    const [first] = drain(scheduler);
    scheduler.submit(id(2), prompt(5), 9);
    expect(drain(scheduler)).toEqual([]);
    scheduler.complete(first!.step);
    scheduler.append(id(1), 3);
    const [second] = drain(scheduler);
    expect(second!.rows.map((rows) => [rows.sequence, rows.tokens.length])).toEqual([
      [1, 1],
      [2, 5],
    ]);
  });

  it("keeps a sequence waiting until its blocks are free and starts it then", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 2 });
    scheduler.submit(id(1), prompt(20), 4);
    scheduler.submit(id(2), prompt(20), 4);
    drain(scheduler);
    expect([scheduler.runningCount, scheduler.waitingCount]).toEqual([1, 1]);
    scheduler.remove(id(1));
    expect(drain(scheduler)).toEqual([]); // its step is in flight: its blocks are named in it
    scheduler.complete(1);
    const [step] = drain(scheduler);
    expect(step!.rows[0]!.sequence).toBe(2);
    expect(step!.ended).toEqual([1]);
  });

  it("knows what never fits", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 2 });
    expect(scheduler.fits(31, 2)).toBe(true);
    expect(scheduler.fits(32, 2)).toBe(false);
    expect(scheduler.fits(32, 1)).toBe(true);
  });

  it("admits more than fits, and the youngest gives its blocks to those before it", () => {
    const scheduler = new Scheduler({ ...limits, blockCount: 4, microBatches: 1, firstExpectedReply: 0 });
    for (const n of [1, 2]) scheduler.submit(id(n), [n, ...prompt(31)], 30);
    const order: [number[], number[]][] = [];
    for (let round = 0; scheduler.runningCount + scheduler.waitingCount > 0; round++) {
      expect(round).toBeLessThan(100);
      const [step] = drain(scheduler);
      const sequences = step!.rows.map((rows) => rows.sequence as number);
      order.push([sequences, step!.preempted]);
      scheduler.complete(step!.step);
      for (const { sequence, sample, start, tokens } of step!.rows) {
        if (sample) scheduler.append(sequence, 7);
        if (start + tokens.length === 61) scheduler.remove(sequence);
      }
    }
    const preempted = order.flatMap(([, ids]) => ids);
    expect(preempted).toEqual([2]);
    // The one that lost its blocks is alone at the end, and computed from its beginning.
    expect(order.at(-1)![0]).toEqual([2]);
    expect(scheduler.blocksUsed).toBe(0);
  });

  it("counts replies as long as those that ended lately", () => {
    const scheduler = new Scheduler({ ...limits, microBatches: 1, firstExpectedReply: 1_000 });
    const admitted = (): number => {
      for (const n of [1, 2, 3]) scheduler.submit(id(n), prompt(1), 400);
      const [step] = drain(scheduler);
      scheduler.complete(step!.step);
      const count = scheduler.runningCount;
      for (const n of [1, 2, 3]) scheduler.remove(id(n));
      return count;
    };
    // Each may need 25 of the 64 blocks.
    expect(admitted()).toBe(2);
    for (let round = 0; round < 60; round++) admitted();
    expect(admitted()).toBe(3);
  });

  it("never exceeds its budgets and returns every block, whatever happens", () => {
    let preemptions = 0;
    let copies = 0;
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            prompt: fc.integer({ min: 1, max: 90 }),
            context: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 89 })),
            twin: fc.boolean(),
            tokens: fc.integer({ min: 0, max: 40 }),
            class: fc.constantFrom("interactive" as const, "batch" as const),
            arrivesAt: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 20 })),
            cancelAfter: fc.option(fc.integer({ min: 0, max: 8 }), { nil: null }),
          }),
          { minLength: 1, maxLength: 12 },
        ),
        fc.integer({ min: 1, max: 4 }),
        fc.constantFrom(1, 7, 16, 64),
        fc.constantFrom(0, 5, 16),
        fc.constantFrom(0, 3, 256),
        (sequences, microBatches, prefillChunk, prefixLength, firstExpectedReply) => {
          const blockCount = 16;
          const config = {
            ...limits,
            blockCount,
            microBatches,
            prefillChunk,
            prefixLength,
            firstExpectedReply,
          };
          const scheduler = new Scheduler(config);
          // A twin has the prompt of the one before it, as choices of a request do.
          const elder = sequences.map((_, index) => {
            while (index > 0 && sequences[index]!.twin) index--;
            return index;
          });
          const prompts = sequences.map(({ prompt: length }) => prompt(length));
          const promptOf = (sequence: SequenceId) => prompts[elder[sequence]!]!;
          const wholeOf = (sequence: SequenceId) =>
            Math.min(sequences[elder[sequence]!]!.context, promptOf(sequence).length - 1);
          const left = new Map<SequenceId, number>();
          const written = new Map<SequenceId, number>();
          const slots = new KvSlots(prefixLength);
          const tokensOf = new Map<SequenceId, number[]>();
          const open = new Set<SequenceId>();
          const flight: ScheduledStep[] = [];
          for (const [index, { tokens }] of sequences.entries()) {
            left.set(id(index), tokens);
            tokensOf.set(id(index), [...promptOf(id(index))]);
            open.add(id(index));
          }
          for (let round = 0; open.size > 0; round++) {
            expect(round).toBeLessThan(2_000);
            for (const [index, { tokens, class: of, arrivesAt }] of sequences.entries()) {
              const tokensBefore = promptOf(id(index));
              const options = { class: of, whole: wholeOf(id(index)), prompt: tokensBefore };
              if (arrivesAt === round) scheduler.submit(id(index), tokensBefore, tokens, options);
            }
            flight.push(...drain(scheduler));
            expect(flight.length).toBeLessThanOrEqual(microBatches);
            const travelling = flight.flatMap((step) => step.rows.map((rows) => rows.sequence));
            expect(new Set(travelling).size).toBe(travelling.length);
            const step = flight.shift();
            if (step === undefined) continue;
            for (const sequence of step.preempted) {
              expect(step.ended).toContain(sequence);
              written.delete(sequence);
              preemptions++;
            }
            slots.take(step, (sequence) => tokensOf.get(sequence)!);
            let usualRows = 0;
            let contexts = 0;
            for (const rows of step.rows) {
              const whole = rows.start < wholeOf(rows.sequence) ? wholeOf(rows.sequence) : 0;
              if (whole > 0) {
                contexts++;
                expect(rows.start).toBe(0);
                expect(rows.tokens.length).toBeGreaterThan(whole);
              }
              usualRows += rows.tokens.length - whole;
              expect(rows.tokens.length - whole).toBeLessThanOrEqual(prefillChunk);
              expect(rows.start).toBe((written.get(rows.sequence) ?? 0) + rows.reused);
              expect(rows.first).toBe(!written.has(rows.sequence));
              written.set(rows.sequence, rows.start + rows.tokens.length);
              expect(slots.blockCountOf(rows.sequence)).toBe(
                blocksFor(prefixLength + rows.start + rows.tokens.length),
              );
            }
            expect(contexts).toBeLessThanOrEqual(1);
            expect(usualRows).toBeLessThanOrEqual(limits.maxStepRows);
            scheduler.complete(step.step);
            for (const rows of step.rows) {
              const { tokens, cancelAfter } = sequences[rows.sequence]!;
              const done = written.get(rows.sequence)! >= promptOf(rows.sequence).length && tokens === 0;
              if (rows.sample) {
                scheduler.append(rows.sequence, 1);
                tokensOf.get(rows.sequence)!.push(1);
                left.set(rows.sequence, left.get(rows.sequence)! - 1);
              }
              if (done || left.get(rows.sequence) === 0 || (cancelAfter !== null && round >= cancelAfter)) {
                scheduler.remove(rows.sequence);
                open.delete(rows.sequence);
              }
            }
          }
          copies += slots.copies;
          expect(scheduler.blocksUsed).toBe(0);
          expect([scheduler.runningCount, scheduler.waitingCount, scheduler.stepsInFlight]).toEqual([
            0, 0, 0,
          ]);
        },
      ),
      { numRuns: 400 },
    );
    expect(preemptions).toBeGreaterThan(30);
    expect(copies).toBeGreaterThan(100);
  });
});
