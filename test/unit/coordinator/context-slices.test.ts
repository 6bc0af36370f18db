/** Contexts in slices of layers: what travels when, and that every stage would take it. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bytesFromInt32 } from "../../../common/bytes.js";
import { pipelineId, type SequenceId, sequenceId } from "../../../common/ids.js";
import { Pipeline, sequenceSampling } from "../../../coordinator/pipeline/pipeline.js";
import type { LayerRange } from "../../../coordinator/placement/cut.js";
import { sliceLayers } from "../../../coordinator/scheduler/context-slices.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import type {
  StepHeader,
  StepHeader__Output,
} from "../../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import { CheckingStages, received } from "../../support/checking-stages.js";
import { sampling } from "../../support/fake-cluster.js";
import { KvSlots } from "../../support/kv-slots.js";

const id = (value: number): SequenceId => sequenceId(value);
const prompt = (length: number): number[] => Array.from({ length }, (_, index) => index % 100);

/** Stages with so many layers each. */
function stagesOf(...layers: number[]): LayerRange[] {
  let layerBegin = 0;
  return layers.map((count) => {
    const stage = { layerBegin, layerEnd: layerBegin + count };
    layerBegin = stage.layerEnd;
    return stage;
  });
}

function limitsOf(stages: LayerRange[], changes: Partial<SchedulerLimits> = {}): SchedulerLimits {
  return {
    blockCount: 400,
    stageCount: stages.length,
    stages,
    microBatches: null,
    prefixLength: 0,
    maxStepRows: 64,
    prefillChunk: 16,
    firstExpectedReply: 0,
    ...changes,
  };
}

function drain(scheduler: Scheduler): ScheduledStep[] {
  const steps: ScheduledStep[] = [];
  for (let step = scheduler.next(); step !== null; step = scheduler.next()) steps.push(step);
  return steps;
}

/** A scheduler whose oldest step comes back on demand, every sampled sequence with a token. */
class Ring {
  readonly scheduler: Scheduler;
  readonly flight: ScheduledStep[] = [];
  readonly sent: ScheduledStep[] = [];
  readonly drawn = new Map<SequenceId, number>();

  constructor(limits: SchedulerLimits) {
    this.scheduler = new Scheduler(limits);
  }

  send(): ScheduledStep[] {
    const steps = drain(this.scheduler);
    this.flight.push(...steps);
    this.sent.push(...steps);
    return steps;
  }

  back(): ScheduledStep {
    const step = this.flight.shift()!;
    this.scheduler.complete(step.step);
    for (const { sequence, sample } of step.rows) {
      if (!sample) continue;
      this.scheduler.append(sequence, 1);
      this.drawn.set(sequence, (this.drawn.get(sequence) ?? 0) + 1);
    }
    return step;
  }

  /** Until a sequence has drawn a token. */
  until(sequence: SequenceId): void {
    for (let round = 0; !this.drawn.has(sequence); round++) {
      if (round > 1_000) throw new Error(`sequence ${sequence} never draws a token`);
      this.send();
      this.back();
    }
  }
}

const slicesOf = (steps: readonly ScheduledStep[], sequence: SequenceId): [number, number][] =>
  steps.flatMap(({ slice }) =>
    slice?.sequence === sequence ? [[slice.layerBegin, slice.layerEnd] as [number, number]] : [],
  );

describe("layers of a slice", () => {
  it.each([
    // A chunk of 256 rows on 14 layers.
    [256, 256 * 14, 1, 14],
    [2_048, 256 * 14, 1, 1],
    [512, 256 * 14, 1, 7],
    [512, 256 * 14, 2, 3],
    // At least one.
    [2_048, 0, 4, 1],
  ])("of %i rows, work of %i and %i micro-batches: %i", (rows, work, microBatches, expected) => {
    expect(sliceLayers(rows, work, microBatches)).toBe(expected);
  });
});

describe("a context", () => {
  it("comes whole, with what follows it, when nobody decodes", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 4)));
    ring.scheduler.submit(id(1), prompt(60), 4, { whole: 59 });
    const [step, ...more] = ring.send();
    expect([more, step!.slice]).toEqual([[], null]);
    expect(step!.rows[0]).toMatchObject({ sequence: 1, start: 0, sample: true });
    expect(step!.rows[0]!.tokens).toHaveLength(60);
  });

  it("comes in slices that end with stages while somebody decodes, and its tail with the last one", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 3)));
    ring.scheduler.submit(id(1), [7], 100);
    ring.until(id(1));
    ring.scheduler.submit(id(2), prompt(20), 4, { whole: 18 });
    const before = ring.sent.length;
    ring.until(id(2));
    const steps = ring.sent.slice(before).filter(({ slice }) => slice !== null);
    // Two micro-batches: 16 rows of 4 layers a slice are shared out to 1.77 layers each.
    expect(slicesOf(steps, id(2))).toEqual([
      [0, 1],
      [1, 2],
      [2, 3],
      [3, 4],
      [4, 5],
      [5, 6],
      [6, 7],
    ]);
    const [first, ...later] = steps.map(({ slice }) => slice!);
    expect(first).toMatchObject({ rowCount: 18, first: true, last: false, newBlocks: [1, 2] });
    expect(first!.tokens).toEqual(prompt(18));
    for (const slice of later) expect(slice).toMatchObject({ tokens: [], newBlocks: [], first: false });
    const last = steps.at(-1)!;
    expect(last.slice!.last).toBe(true);
    expect(last.rows).toContainEqual({
      sequence: 2,
      first: false,
      reused: 0,
      start: 18,
      tokens: [18, 19],
      newBlocks: [],
      sample: true,
      draftRows: 0,
    });
  });

  it("lets a decode travel in between, whatever its length", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 4)));
    ring.scheduler.submit(id(1), [7], 1_000);
    ring.until(id(1));
    const before = ring.drawn.get(id(1))!;
    ring.scheduler.submit(id(2), prompt(1_000), 4, { whole: 999 });
    ring.until(id(2));
    // A context of 62 chunks goes layer by layer, and no two slices may be in flight on one stage.
    expect(slicesOf(ring.sent, id(2))).toHaveLength(8);
    expect(ring.drawn.get(id(1))! - before).toBeGreaterThanOrEqual(7);
  });

  it("goes on in whole stages when the others have ended", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 4)));
    ring.scheduler.submit(id(1), [7], 1_000);
    ring.until(id(1));
    ring.scheduler.submit(id(2), prompt(100), 4, { whole: 99 });
    ring.send();
    ring.scheduler.remove(id(1));
    ring.until(id(2));
    expect(slicesOf(ring.sent, id(2))).toEqual([
      [0, 1],
      [1, 4],
      [4, 8],
    ]);
  });

  it("keeps the slices in flight on a stage below a chunk's work, or they are one", () => {
    const ring = new Ring(limitsOf(stagesOf(8), { microBatches: 4 }));
    for (let n = 1; n <= 4; n++) ring.scheduler.submit(id(n), [7], 1_000);
    for (let n = 1; n <= 4; n++) ring.until(id(n));
    ring.scheduler.submit(id(5), prompt(33), 4, { whole: 32 });
    const work = () => ring.flight.reduce((sum, { slice }) => sum + (slice?.rowCount ?? 0), 0);
    let most = 0;
    while (!ring.drawn.has(id(5))) {
      ring.send();
      most = Math.max(most, work());
      ring.back();
    }
    // A chunk is 16 rows of 8 layers.
    expect(most).toBe(128);
  });

  it("never has two slices in front of a decode that are a chunk's work each, also at the border of stages", () => {
    const ring = new Ring(limitsOf(stagesOf(2, 2, 2)));
    for (const n of [1, 2]) ring.scheduler.submit(id(n), [7], 1_000);
    for (const n of [1, 2]) ring.until(id(n));
    ring.scheduler.submit(id(3), prompt(100), 4, { whole: 99 });
    while (!ring.drawn.has(id(3))) {
      ring.send();
      expect(ring.flight.filter(({ slice }) => slice !== null).length).toBeLessThanOrEqual(1);
      ring.back();
    }
    expect(slicesOf(ring.sent, id(3))).toHaveLength(6);
  });

  it("waits for its blocks, and has all of them with its first slice", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 4), { blockCount: 8 }));
    ring.scheduler.submit(id(1), prompt(60), 64);
    ring.until(id(1));
    ring.scheduler.submit(id(2), prompt(80), 4, { whole: 79 });
    ring.send();
    expect(slicesOf(ring.sent, id(2))).toEqual([]);
    ring.scheduler.remove(id(1));
    ring.until(id(2));
    expect(ring.sent.at(-1)!.rows[0]!.tokens).toHaveLength(80);
  });
});

describe("several contexts", () => {
  it("are in a stage one at a time, and fill the stages one behind the other", () => {
    const ring = new Ring(limitsOf(stagesOf(2, 2, 2)));
    ring.scheduler.submit(id(1), [7], 1_000);
    ring.until(id(1));
    for (const n of [2, 3, 4]) ring.scheduler.submit(id(n), prompt(80), 4, { whole: 79 });
    ring.until(id(4));
    const order = ring.sent.flatMap(({ slice }) =>
      slice === null ? [] : [[slice.sequence, slice.layerBegin] as const],
    );
    for (const n of [2, 3, 4]) expect(slicesOf(ring.sent, id(n))).toHaveLength(6);
    const at = (sequence: number, layer: number) =>
      order.findIndex(([which, begin]) => which === sequence && begin === layer);
    // The second is in the first stage before the first has left the second one.
    expect(at(3, 0)).toBeLessThan(at(2, 3));
    expect(at(4, 0)).toBeLessThan(at(3, 3));
    // And leaves it only when its successor has been left.
    expect(at(3, 1)).toBeGreaterThan(at(2, 3));
  });

  it("do not wait for one that was cancelled, once its steps have come back", () => {
    const ring = new Ring(limitsOf(stagesOf(4, 4)));
    ring.scheduler.submit(id(1), [7], 1_000);
    ring.until(id(1));
    ring.scheduler.submit(id(2), prompt(80), 4, { whole: 79 });
    ring.scheduler.submit(id(3), prompt(80), 4, { whole: 79 });
    while (slicesOf(ring.sent, id(2)).length < 2) {
      ring.send();
      ring.back();
    }
    ring.send();
    const travelling = ring.flight.filter(({ slice }) => slice?.sequence === id(2)).length;
    expect(travelling).toBe(1);
    ring.scheduler.remove(id(2));
    expect(ring.scheduler.blocksUsed).toBe(6);
    ring.until(id(3));
    const begin = ring.sent.find(({ slice }) => slice?.sequence === id(3))!;
    expect(ring.sent.filter(({ slice, step }) => slice?.sequence === id(2) && step > begin.step)).toEqual([]);
    expect(ring.sent.find(({ ended }) => ended.includes(id(2)))!.step).toBeLessThanOrEqual(begin.step);
  });

  it("that several choices have is read in slices once, also while others queue for the stage", () => {
    const limits = limitsOf(stagesOf(4), { microBatches: 1 });
    const ring = new Ring(limits);
    ring.scheduler.submit(id(1), [7], 200);
    ring.until(id(1));
    const shared = prompt(60);
    ring.scheduler.submit(id(2), prompt(50).toReversed(), 4, { whole: 49 });
    for (const n of [3, 4, 5]) ring.scheduler.submit(id(n), shared, 4, { whole: 59, prompt: shared });
    for (const n of [3, 4, 5]) ring.until(id(n));
    const slots = new KvSlots(0);
    const prompts = new Map([
      [id(1), [7]],
      [id(2), prompt(50).toReversed()],
    ]);
    for (const step of ring.sent) {
      slots.take(step, (n) => [...(prompts.get(n) ?? shared), ...Array(200).fill(1)]);
    }
    expect(slicesOf(ring.sent, id(3)).length).toBeGreaterThan(0);
    expect([4, 5].map((n) => slicesOf(ring.sent, id(n)))).toEqual([[], []]);
    expect(slots.copies).toBe(2);
  });
});

describe("whatever comes and goes", () => {
  it("every stage takes every step, contexts are read once and in order, and every block comes back", () => {
    let sliced = 0;
    let preempted = 0;
    let copies = 0;
    fc.assert(
      fc.property(
        fc.record({
          sequences: fc.array(
            fc.record({
              prompt: fc.integer({ min: 1, max: 90 }),
              context: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 89 })),
              twin: fc.boolean(),
              tokens: fc.integer({ min: 0, max: 30 }),
              arrives: fc.integer({ min: 0, max: 30 }),
              cancelAfter: fc.option(fc.integer({ min: 0, max: 60 }), { nil: null }),
              batch: fc.boolean(),
            }),
            { minLength: 1, maxLength: 10 },
          ),
          layers: fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 }),
          microBatches: fc.integer({ min: 1, max: 5 }),
          prefillChunk: fc.constantFrom(1, 7, 16, 64),
          prefixLength: fc.constantFrom(0, 5),
          blockCount: fc.constantFrom(10, 14, 40),
          firstExpectedReply: fc.constantFrom(0, 30),
        }),
        ({ sequences, layers, microBatches, prefillChunk, prefixLength, blockCount, firstExpectedReply }) => {
          const stages = stagesOf(...layers);
          const layerCount = stages.at(-1)!.layerEnd;
          const limits = limitsOf(stages, {
            blockCount,
            microBatches,
            prefillChunk,
            prefixLength,
            firstExpectedReply,
          });
          const scheduler = new Scheduler(limits);
          const workers = new CheckingStages(stages, blockCount, prefixLength);
          // A twin has the prompt of the one before it, as choices of a request do.
          const elder = sequences.map((_, index) => {
            while (index > 0 && sequences[index]!.twin) index--;
            return index;
          });
          const prompts = sequences.map((_, n) => prompt(sequences[n]!.prompt));
          const promptOf = (n: number) => prompts[elder[n]!]!;
          const wholeOf = (n: number) => Math.min(sequences[elder[n]!]!.context, promptOf(n).length - 1);
          const slots = new KvSlots(prefixLength);
          const tokensOf = (n: number) => [
            ...promptOf(n),
            ...Array.from({ length: lengths[n]! - promptOf(n).length }, () => 1),
          ];
          const headers: StepHeader[] = [];
          const push = (header: StepHeader) => headers.push(header);
          const pipeline = new Pipeline({ term: 1, plan: 1 }, pipelineId(0), push, stages.length);
          const context = (n: number) => ({
            length: wholeOf(n),
            mask: -1,
            constantPosition: false,
            remainingMasks: [],
          });
          const requestOf = (n: number) => ({
            requestId: "",
            context: wholeOf(n) === 0 ? null : context(n),
            sampling: sequenceSampling(sampling(), 1n),
            bannedTokens: [],
            scoreTargets: [],
          });
          const requests = {
            rows: ({ sequence }: { sequence: SequenceId }) => requestOf(sequence),
            decodes: requestOf,
            slice: ({ sequence }: { sequence: SequenceId }) => ({
              requestId: "",
              context: context(sequence),
            }),
          };
          const left = sequences.map(({ tokens }) => tokens);
          const lengths = sequences.map((_, n) => promptOf(n).length);
          const open = new Set<number>();
          const flight: ScheduledStep[] = [];
          let round = 0;
          const end = (n: number) => {
            scheduler.remove(id(n));
            open.delete(n);
          };
          const isOver = () => round > 30 && open.size === 0 && flight.length === 0;
          for (; !isOver(); round++) {
            expect(round).toBeLessThan(4_000);
            for (const [n, { tokens, arrives, cancelAfter, batch }] of sequences.entries()) {
              if (arrives === round) {
                const ofClass = batch ? "batch" : "interactive";
                const options = { whole: wholeOf(n), class: ofClass, prompt: promptOf(n) } as const;
                scheduler.submit(id(n), promptOf(n), tokens, options);
                open.add(n);
              }
              if (cancelAfter !== null && arrives + cancelAfter === round) end(n);
            }
            for (const step of drain(scheduler)) {
              flight.push(step);
              preempted += step.preempted.length;
              slots.take(step, tokensOf);
              pipeline.submit(step, requests, 0);
              workers.step(received(headers.at(-1)!));
              if (step.slice !== null) sliced++;
              // A worker that is lost now was lost with this sequence, too.
              if (step.slice !== null) expect(pipeline.sequencesInFlight()).toContain(step.slice.sequence);
              expect(step.rows.length + (step.slice === null ? 0 : 1)).toBeGreaterThan(0);
              expect(step.rows.reduce((sum, { tokens }) => sum + tokens.length, 0)).toBeLessThanOrEqual(
                limits.maxStepRows + Math.max(0, ...step.rows.map(({ sequence }) => wholeOf(sequence))),
              );
              for (const { sequence, start } of step.rows) {
                // Rows behind a context see what every layer of it has stored.
                const whole = wholeOf(sequence);
                if (whole > 0 && start > 0 && workers.computed.has(sequence)) {
                  expect(workers.computed.get(sequence)).toBe(layerCount);
                }
              }
            }
            expect(flight.length).toBeLessThanOrEqual(microBatches);
            const step = flight.shift();
            if (step === undefined) continue;
            scheduler.complete(step.step);
            for (const { sequence, start, tokens, sample } of step.rows) {
              if (!open.has(sequence)) continue;
              if (sample) {
                scheduler.append(sequence, 1);
                lengths[sequence]!++;
                left[sequence]!--;
              }
              const scored = sequences[sequence]!.tokens === 0 && start + tokens.length === lengths[sequence];
              if (scored || (sample && left[sequence] === 0)) end(sequence);
            }
          }
          copies += slots.copies;
          expect([scheduler.blocksUsed, scheduler.runningCount, scheduler.waitingCount]).toEqual([0, 0, 0]);
          // The stages hear of the last ones with the next step.
          scheduler.submit(id(99), [1], 1);
          pipeline.submit(
            scheduler.next()!,
            { ...requests, rows: () => requestOf(0), decodes: () => null },
            0,
          );
          const header = received({ ...headers.at(-1)!, sequences: [], slice: null });
          workers.step({ ...header, sequences: [{ ...rowOf(99) }] });
          expect(workers.parked).toBe(0);
        },
      ),
      { numRuns: 300 },
    );
    expect(sliced).toBeGreaterThan(1_000);
    expect(preempted).toBeGreaterThan(10);
    expect(copies).toBeGreaterThan(30);
  }, 120_000);
});

/** One row of a sequence that the stages have not heard of. */
function rowOf(sequence: number): StepHeader__Output["sequences"][number] {
  return {
    sequence,
    validLength: 0,
    rowCount: 1,
    tokenIds: bytesFromInt32([1]),
    newBlocks: bytesFromInt32([0]),
    sampling: null,
    scoreTargets: Buffer.alloc(0),
    scoreTopLogprobs: 0,
    context: null,
    requestId: "",
    draftRows: 0,
  };
}
