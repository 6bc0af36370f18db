/** How many steps are on their way, and how large they are: the scheduler with a timing that the test speaks for. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SequenceId, sequenceId } from "../../../common/ids.js";
import { maxMicroBatchesInFlight } from "../../../common/limits.js";
import type { RequestClass } from "../../../coordinator/request-class.js";
import { evenShare } from "../../../coordinator/scheduler/even-share.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import type { StepSize } from "../../../coordinator/scheduler/timing/step-size.js";
import {
  type ChunkQuestion,
  type MeasuredStep,
  type StepTiming,
  unmeasured,
} from "../../../coordinator/scheduler/timing/step-timing.js";
import { TimingModel } from "../../../coordinator/scheduler/timing/timing-model.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const limits: SchedulerLimits = {
  blockCount: 2_000,
  stageCount: 4,
  microBatches: null,
  prefixLength: 0,
  maxStepRows: 512,
  prefillChunk: 256,
  firstExpectedReply: 16,
};

const id = (value: number): SequenceId => sequenceId(value);
/** Prompts of their own: nothing is taken over from others. */
const promptOf = (sequence: number, length: number): number[] =>
  Array.from({ length }, (_, index) => sequence * 10_000 + index);

/** Runs sequences whose next token is always there, step by step in the order sent. */
class Run {
  readonly scheduler: Scheduler;
  readonly flight: ScheduledStep[] = [];

  constructor(timing: StepTiming = unmeasured, changes: Partial<SchedulerLimits> = {}) {
    this.scheduler = new Scheduler({ ...limits, ...changes }, timing);
  }

  join(sequence: number, length = 1): void {
    this.scheduler.submit(id(sequence), promptOf(sequence, length), 10_000);
    this.send();
  }

  send(): void {
    for (let step = this.scheduler.next(); step !== null; step = this.scheduler.next())
      this.flight.push(step);
  }

  /** Answers the oldest step. */
  answer(measured?: MeasuredStep): ScheduledStep {
    const step = this.flight.shift()!;
    this.scheduler.complete(step.step, measured);
    for (const { sequence, sample } of step.rows) if (sample) this.scheduler.append(sequence, 1);
    this.send();
    return step;
  }

  /** Sequences per step on its way, the smallest first. */
  get sizes(): number[] {
    return this.flight.map(({ rows }) => rows.length).sort((a, b) => a - b);
  }
}

const withMicroBatches = (count: number | null): StepTiming => ({
  ...unmeasured,
  microBatches: () => count,
});

describe("an even share", () => {
  it("leaves groups whose sizes differ by one at most, wherever it begins", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200 }),
        fc.integer({ min: 1, max: 32 }),
        fc.infiniteStream(fc.nat(200)),
        (members, wanted, random) => {
          const groups = Math.min(members, wanted);
          // Some division: what comes back is divided anew, a group at a time.
          const sizes: number[] = [];
          let left = members;
          for (let group = 0; group < groups; group++) {
            const size =
              group === groups - 1
                ? left
                : 1 + (random.next().value! % Math.max(1, left - (groups - group) + 1));
            sizes.push(size);
            left -= size;
          }
          let ready = 0;
          for (let turn = 0; turn < 4 * groups; turn++) {
            ready += sizes.shift()!;
            const size = Math.min(ready, evenShare(members, groups, sizes));
            sizes.push(size);
            ready -= size;
          }
          expect(ready).toBe(0);
          expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
        },
      ),
      { numRuns: 300, seed: 3 },
    );
  });
});

describe("sequences in several micro-batches", () => {
  it.each([
    [17, 4],
    [16, 4],
    [5, 3],
    [64, 7],
    [3, 8],
  ])("%i are spread evenly over %i, however they arrived", (count, microBatches) => {
    const run = new Run(withMicroBatches(microBatches));
    for (let sequence = 1; sequence <= count; sequence++) run.join(sequence, 1 + (sequence % 40));
    for (let turn = 0; turn < 6 * microBatches; turn++) run.answer();
    const groups = Math.min(count, microBatches);
    expect(run.sizes).toHaveLength(groups);
    expect(run.sizes.reduce((sum, size) => sum + size, 0)).toBe(count);
    expect(run.sizes.at(-1)! - run.sizes[0]!).toBeLessThanOrEqual(1);
  });

  it("stay spread while others join and leave", () => {
    const run = new Run(withMicroBatches(4));
    for (let sequence = 1; sequence <= 20; sequence++) run.join(sequence);
    for (let turn = 0; turn < 20; turn++) run.answer();
    // All of one micro-batch end at once.
    for (const { sequence } of run.flight[0]!.rows) run.scheduler.remove(sequence);
    for (let turn = 0; turn < 12; turn++) run.answer();
    expect(run.sizes).toEqual([3, 4, 4, 4]);
    for (let sequence = 30; sequence < 36; sequence++) run.join(sequence, 100);
    for (let turn = 0; turn < 16; turn++) run.answer();
    expect(run.sizes).toEqual([5, 5, 5, 6]);
  });

  it("have their decodes spread as well, with the prompts of others beside them", () => {
    const run = new Run(withMicroBatches(4), { blockCount: 20_000 });
    for (let sequence = 1; sequence <= 8; sequence++) run.join(sequence);
    for (let turn = 0; turn < 8; turn++) run.answer();
    for (let sequence = 11; sequence <= 18; sequence++) run.join(sequence, 20 * 256);
    for (let turn = 0; turn < 16; turn++) run.answer();
    for (const { rows } of run.flight) {
      expect(rows.filter(({ tokens }) => tokens.length === 1)).toHaveLength(2);
      expect(rows.filter(({ tokens }) => tokens.length > 1)).toHaveLength(2);
    }
  });

  it("are as many as the timing says, but never more than sequences, nor than links have credits for", () => {
    for (const [count, wanted, expected] of [
      [10, 7, 7],
      [10, 1, 1],
      [3, 7, 3],
      [200, 1_000, maxMicroBatchesInFlight],
      [10, null, limits.stageCount],
    ] as const) {
      const run = new Run(withMicroBatches(wanted));
      for (let sequence = 1; sequence <= count; sequence++) run.join(sequence);
      for (let turn = 0; turn < 2 * count; turn++) run.answer();
      expect(run.scheduler.stepsInFlight).toBe(expected);
      expect(run.scheduler.microBatchTarget).toBe(expected);
    }
    const forced = new Run(withMicroBatches(7), { microBatches: 2 });
    for (let sequence = 1; sequence <= 10; sequence++) forced.join(sequence);
    expect(forced.scheduler.stepsInFlight).toBe(2);
  });
});

describe("what the timing is told and asked", () => {
  class Recorder implements StepTiming {
    readonly lacksPlainSteps = false;
    readonly sizes = new Map<number, StepSize>();
    readonly finishedSteps: [number, MeasuredStep][] = [];
    readonly questions: ChunkQuestion[] = [];
    readonly answers: number[];
    constructor(...answers: number[]) {
      this.answers = answers;
    }
    sent(step: number, size: StepSize): void {
      this.sizes.set(step, { ...size });
    }
    finished(step: number, measured: MeasuredStep): void {
      this.finishedSteps.push([step, measured]);
    }
    microBatches(): number {
      return 1;
    }
    sliceWork(): null {
      return null;
    }

    chunkRows(question: ChunkQuestion): number {
      this.questions.push({ ...question, has: { ...question.has } });
      return Math.min(question.most, this.answers.shift() ?? question.most);
    }
    kneeRows(): null {
      return null;
    }
    cycleWith(): null {
      return null;
    }
  }

  it("are the rows and keys of each step, and how long it took", () => {
    const timing = new Recorder();
    const run = new Run(timing);
    run.join(1, 300);
    const measured = { stageUs: [1, 2, 3, 4], roundtripUs: 12 };
    for (let turn = 0; turn < 3; turn++) run.answer(measured);
    // 256 rows read 1 to 256 keys, the next 44 read 257 to 300, a decode all that is there and itself.
    expect([...timing.sizes.values()].slice(0, 3)).toEqual([
      { rows: 256, keys: (256 * 257) / 2 },
      { rows: 44, keys: 44 * 256 + (44 * 45) / 2 },
      { rows: 1, keys: 301 },
    ]);
    expect(timing.finishedSteps).toEqual([
      [1, measured],
      [2, measured],
      [3, measured],
    ]);
  });

  it("is a chunk beside what the step has, and a step goes on without a prompt for which there is no room", () => {
    const timing = new Recorder(256, 48, 0);
    const run = new Run(timing);
    run.join(1, 30);
    run.join(2, 300);
    run.join(3, 300);
    run.answer();
    expect(run.flight[0]!.rows.map(({ sequence, tokens }) => [sequence, tokens.length])).toEqual([
      [1, 1],
      [2, 48],
    ]);
    const keys = 31 + (48 * 49) / 2;
    expect(timing.questions.slice(1)).toMatchObject([
      { has: { rows: 1, keys: 31 }, start: 0, most: 256, alone: false, decoding: true, mayBeNone: false },
      { has: { rows: 49, keys }, start: 0, most: 256, alone: false, decoding: true, mayBeNone: true },
    ]);
    run.answer();
    expect(timing.questions[0]).toMatchObject({ alone: true, decoding: false, most: 29 + 1 });
  });

  it("says of a batch prompt beside interactive requests that it only fills", () => {
    const timing = new Recorder();
    const run = new Run(timing);
    const submit = (sequence: number, of: RequestClass) =>
      run.scheduler.submit(id(sequence), promptOf(sequence, 300), 2, { class: of });
    submit(1, "batch");
    submit(2, "batch");
    run.send();
    expect(timing.questions.splice(0)).toMatchObject([{ fills: false }, { fills: false }]);
    submit(3, "interactive");
    run.answer();
    // The interactive prompt goes first, and never fills.
    expect(timing.questions.splice(0)).toMatchObject([{ fills: false }, { fills: true }, { fills: true }]);
    for (let turn = 0; turn < 6; turn++) run.answer();
    run.scheduler.remove(id(3));
    run.answer();
    submit(4, "batch");
    run.answer();
    expect(timing.questions.splice(0).at(-1)).toMatchObject({ fills: false });
  });
});

describe("a measured cluster", () => {
  /** A model of two stages that takes its time: a row costs 2 ms, a step 5. */
  const slow = (rows: number): number[] => [5_000 + 2_000 * rows, 4_000 + 2_000 * rows];

  function measuredCluster(itlTargetMs: number): FakeCluster {
    const cluster = new FakeCluster({ maxBlocks: 4_000, itlTargetMs });
    cluster.stageTimes = (sequences) => slow(sequences.reduce((sum, { rowCount }) => sum + rowCount!, 0));
    cluster.start();
    // Enough steps to know the machine: decodes, and chunks.
    for (const n of [1, 2]) cluster.core.admit(generation(`w${n}`, promptOf(n, 600), { maxTokens: 40 }));
    cluster.answerAll();
    return cluster;
  }

  const rowsOf = (cluster: FakeCluster): number[] =>
    cluster.steps.map(({ sequences }) => sequences!.reduce((sum, { rowCount }) => sum + rowCount!, 0));

  it("cuts a prompt so that the steps of others stay within the target", () => {
    const cluster = measuredCluster(200);
    const { timing } = cluster.core.view();
    expect(timing.stages).toHaveLength(2);
    expect(timing.stages[0]!.baseMs).toBeCloseTo(5, 0);
    expect(timing.stages[0]!.rowMs).toBeCloseTo(2, 1);
    for (const n of [3, 4, 5]) cluster.core.admit(generation(`d${n}`, [n], { maxTokens: 200 }));
    for (let turn = 0; turn < 20; turn++) cluster.answer();
    cluster.core.admit(generation("long", promptOf(9, 2_000), { maxTokens: 4 }));
    let largest = 0;
    while (cluster.tokensOf("long").length === 0) {
      largest = Math.max(largest, ...rowsOf(cluster));
      cluster.answer();
    }
    // Two micro-batches of 5 + 2 x ms; a prompt without any would come in chunks of 256.
    expect(largest).toBeGreaterThanOrEqual(32);
    expect(largest).toBeLessThanOrEqual(50);
    cluster.answerAll();
    expect(cluster.tokensOf("long")).toEqual(expectedTokens(promptOf(9, 2_000), 4));
  });

  it("takes a prompt in large chunks where nobody waits for a token", () => {
    const cluster = measuredCluster(200);
    cluster.core.admit(generation("long", promptOf(9, 2_000), { maxTokens: 4 }));
    expect(rowsOf(cluster)).toEqual([256]);
    cluster.answerAll();
    expect(cluster.tokensOf("long")).toEqual(expectedTokens(promptOf(9, 2_000), 4));
  });

  it("moves prompts by a block per step under a target that cannot be met", () => {
    const cluster = measuredCluster(1);
    cluster.core.admit(generation("d", [3], { maxTokens: 200 }));
    for (let turn = 0; turn < 20; turn++) cluster.answer();
    cluster.core.admit(generation("long", promptOf(9, 200), { maxTokens: 4 }));
    const chunks: number[] = [];
    while (cluster.tokensOf("long").length === 0) {
      for (const { sequences } of cluster.steps) {
        for (const { rowCount } of sequences!) if (rowCount! > 1) chunks.push(rowCount!);
      }
      cluster.answer();
    }
    expect(Math.max(...chunks)).toBe(16);
    cluster.answerAll();
    expect(cluster.tokensOf("long")).toEqual(expectedTokens(promptOf(9, 200), 4));
  });

  it("begins a new plan with nothing measured", () => {
    const cluster = measuredCluster(200);
    expect(cluster.core.view().timing.hopMs).not.toBeNull();
    cluster.core.membership.gone(1, "its control stream broke");
    expect(cluster.core.view().timing).toMatchObject({ microBatchTarget: 0, hopMs: null, stages: [] });
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    expect(cluster.core.view().timing.hopMs).toBeNull();
  });
});

describe("whatever the timing answers", () => {
  const extremes = [0, 1, 2, 1_000, 2 ** 32 - 1];

  /** Sequences to their end, with the invariants of steps. */
  function runAll(
    timing: StepTiming,
    sequences: { prompt: number; tokens: number; cancelAfter: number | null }[],
    measure: () => MeasuredStep,
  ): void {
    const scheduler = new Scheduler({ ...limits, blockCount: 60, prefillChunk: 64 }, timing);
    const left = new Map<SequenceId, number>();
    const rowsSeen = new Map<SequenceId, number>();
    for (const [index, { prompt, tokens }] of sequences.entries()) {
      scheduler.submit(id(index), promptOf(index, prompt), tokens);
      left.set(id(index), tokens);
    }
    const flight: ScheduledStep[] = [];
    for (let round = 0; left.size > 0; round++) {
      expect(round).toBeLessThan(5_000);
      for (let step = scheduler.next(); step !== null; step = scheduler.next()) flight.push(step);
      expect(flight.length).toBeLessThanOrEqual(maxMicroBatchesInFlight);
      const travelling = flight.flatMap(({ rows }) => rows.map(({ sequence }) => sequence));
      expect(new Set(travelling).size).toBe(travelling.length);
      const step = flight.shift()!;
      for (const sequence of step.preempted) rowsSeen.delete(sequence);
      for (const { sequence, start, tokens, reused } of step.rows) {
        expect(start).toBe((rowsSeen.get(sequence) ?? 0) + reused);
        expect(tokens.length).toBeGreaterThanOrEqual(1);
        expect(tokens.length).toBeLessThanOrEqual(64);
        rowsSeen.set(sequence, start + tokens.length);
      }
      scheduler.complete(step.step, measure());
      for (const { sequence, sample } of step.rows) {
        const { cancelAfter } = sequences[sequence]!;
        if (sample && left.has(sequence)) {
          scheduler.append(sequence, 1);
          left.set(sequence, left.get(sequence)! - 1);
        }
        if (left.get(sequence) === 0 || (cancelAfter !== null && round >= cancelAfter)) {
          scheduler.remove(sequence);
          left.delete(sequence);
        }
      }
    }
    for (const step of flight) scheduler.complete(step.step);
    expect([scheduler.runningCount, scheduler.waitingCount, scheduler.stepsInFlight]).toEqual([0, 0, 0]);
    expect(scheduler.blocksUsed).toBe(0);
  }

  const sequences = fc.array(
    fc.record({
      prompt: fc.integer({ min: 1, max: 200 }),
      tokens: fc.integer({ min: 1, max: 20 }),
      cancelAfter: fc.option(fc.integer({ min: 0, max: 30 }), { nil: null }),
    }),
    { minLength: 1, maxLength: 16 },
  );

  it("every sequence finishes and every block comes back", () => {
    fc.assert(
      fc.property(sequences, fc.infiniteStream(fc.nat()), (all, random) => {
        const next = () => random.next().value!;
        const timing: StepTiming = {
          ...unmeasured,
          microBatches: () => (next() % 5 === 0 ? null : 1 + (next() % 40)),
          chunkRows: ({ most, mayBeNone }) => Math.max(mayBeNone ? 0 : 1, next() % (most + 1)),
        };
        runAll(timing, all, () => ({ stageUs: [0, 0, 0, 0], roundtripUs: 0 }));
      }),
      { numRuns: 200, seed: 4 },
    );
  });

  it("and so it is with the real model and times that make no sense", () => {
    fc.assert(
      fc.property(
        sequences,
        fc.infiniteStream(fc.nat()),
        fc.constantFrom(1, 200, 60_000),
        (all, random, itlTargetMs) => {
          const next = () => random.next().value!;
          const us = () => (next() % 3 === 0 ? extremes[next() % extremes.length]! : next() % 50_000);
          const timing = new TimingModel({ stageCount: 4, itlTargetMs });
          const repeated = [...all, ...all, ...all];
          runAll(timing, repeated, () => ({ stageUs: [us(), us(), us(), us()], roundtripUs: us() }));
        },
      ),
      { numRuns: 100, seed: 5 },
    );
  });
});
