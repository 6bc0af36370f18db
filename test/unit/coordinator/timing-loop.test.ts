/** The scheduler with its timing model on a simulated pipeline: it finds the number of micro-batches by itself. */
import { describe, expect, it } from "vitest";
import { sequenceId } from "../../../common/ids.js";
import { type ScheduledStep, Scheduler } from "../../../coordinator/scheduler/scheduler.js";
import { TimingModel } from "../../../coordinator/scheduler/timing/timing-model.js";

interface Machine {
  /** Per stage: a step takes base + row * rows. */
  stages: { baseUs: number; rowUs: number }[];
  /** Each hop, one more than there are stages. */
  hopUs: number;
  /** The same later on, where the network changes. */
  laterHopUs?: number;
  /** An event loop behind the last stage that takes so long for a step, one after the other. */
  stationUs: number;
  /** Times vary by so much in both directions. */
  noise: number;
}

function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Tokens per second of sequences that only decode, and how many micro-batches there were at the end. */
function run(machine: Machine, running: number, microBatches: number | null) {
  const random = randomNumbers(17);
  const varied = (us: number) => us * (1 + machine.noise * (2 * random() - 1));
  const stageCount = machine.stages.length;
  const scheduler = new Scheduler(
    {
      blockCount: 100_000,
      stageCount,
      microBatches,
      maxStepRows: 512,
      prefixLength: 0,
      prefillChunk: 256,
      firstExpectedReply: 16,
    },
    new TimingModel({ stageCount, itlTargetMs: 60_000 }),
  );
  const free = machine.stages.map(() => 0);
  let stationFree = 0;
  let nowUs = 0;
  let { hopUs } = machine;
  const flight: { step: ScheduledStep; sentUs: number; backUs: number; stageUs: number[] }[] = [];
  const send = () => {
    for (let step = scheduler.next(); step !== null; step = scheduler.next()) {
      const rows = step.rows.reduce((sum, { tokens }) => sum + tokens.length, 0);
      const stageUs = machine.stages.map(({ baseUs, rowUs }) => varied(baseUs + rowUs * rows));
      let at = nowUs;
      for (const [stage, us] of stageUs.entries()) {
        at = Math.max(at + varied(hopUs), free[stage]!) + us;
        free[stage] = at;
      }
      at = Math.max(at, stationFree) + varied(machine.stationUs);
      stationFree = at;
      flight.push({ step, sentUs: nowUs, backUs: at + varied(hopUs), stageUs });
    }
  };
  // They come one after the other with a prompt each: steps of several sizes, as on any machine that serves.
  let arrived = 0;
  const arrive = () => {
    if (arrived === running) return;
    arrived++;
    const prompt = Array.from({ length: 30 + arrived }, (_, index) => arrived * 1_000 + index);
    scheduler.submit(sequenceId(arrived), prompt, 100_000);
  };
  arrive();
  send();
  const marks: { us: number; tokens: number }[] = [];
  let tokens = 0;
  for (let count = 0; count < 6_000; count++) {
    const { step, sentUs, backUs, stageUs } = flight.shift()!;
    nowUs = Math.max(nowUs, backUs);
    scheduler.complete(step.step, { stageUs, roundtripUs: nowUs - sentUs });
    for (const { sequence, sample } of step.rows) if (sample) scheduler.append(sequence, 1);
    tokens += step.rows.length;
    if (count % 3 === 0) arrive();
    if (count === 1_000) hopUs = machine.laterHopUs ?? hopUs;
    marks.push({ us: nowUs, tokens });
    send();
  }
  const [from, to] = [marks[3_000]!, marks.at(-1)!];
  const perSecond = ((to.tokens - from.tokens) / (to.us - from.us)) * 1e6;
  return { perSecond, microBatches: scheduler.microBatchTarget };
}

describe("the number of micro-batches on a simulated pipeline", () => {
  const even = (count: number, baseUs: number, rowUs: number) =>
    Array.from({ length: count }, () => ({ baseUs, rowUs }));

  it.each<[string, Machine, number]>([
    ["long hops", { stages: even(4, 500, 200), hopUs: 2_000, stationUs: 0, noise: 0.1 }, 32],
    ["short hops", { stages: even(4, 10_000, 400), hopUs: 100, stationUs: 0, noise: 0.1 }, 17],
    [
      "unequal stages",
      { stages: [...even(3, 2_000, 500), ...even(1, 6_000, 900)], hopUs: 300, stationUs: 0, noise: 0.1 },
      24,
    ],
    [
      "a network that becomes slow",
      { stages: even(4, 500, 200), hopUs: 200, laterHopUs: 3_000, stationUs: 0, noise: 0.1 },
      32,
    ],
    [
      "a network that becomes fast",
      { stages: even(4, 3_000, 200), hopUs: 6_000, laterHopUs: 100, stationUs: 0, noise: 0.1 },
      32,
    ],
    ["a slow event loop", { stages: even(2, 300, 40), hopUs: 200, stationUs: 3_000, noise: 0.1 }, 16],
    ["hops that vary", { stages: even(4, 1_000, 300), hopUs: 1_000, stationUs: 0, noise: 0.5 }, 32],
    ["few sequences", { stages: even(4, 2_000, 100), hopUs: 500, stationUs: 0, noise: 0.1 }, 2],
  ])("is nearly the best with %s", (_, machine, running) => {
    const fixed = [1, 2, 3, 4, 5, 6, 8, 12, 16].filter((count) => count <= running);
    const best = Math.max(...fixed.map((count) => run(machine, running, count).perSecond));
    const chosen = run(machine, running, null);
    expect(chosen.perSecond / best).toBeGreaterThan(0.85);
  });
});
