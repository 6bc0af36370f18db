/**
 * The arithmetic of a pipeline (bubbles, budgets, chunks): pure functions of fitted times. With M micro-batches
 * of like steps on their way, a sequence gets its next token after
 *
 *   cycle = max( sum(t_i) + hops, M * max(t_i), M * station ),
 *
 * the first where stages wait for steps, the second where steps wait for the slowest stage, the third where
 * they wait for something between the stages.
 */
import type { StageTime } from "./stage-fit.js";
import { causalKeys, type StepSize } from "./step-size.js";

export interface PipelineTimes {
  stages: readonly StageTime[];
  /** All hops of a step's way together. */
  hopUs: number;
  /** What the slowest station beside the stages takes per step. */
  stationUs: number;
}

/** What runs: sequences, and the mean of their contexts in tokens. */
export interface Load {
  running: number;
  context: number;
}

/** Late chunks come that much of the way from the first chunk's rows to those of equal time. */
const damping = 0.75;

/** Of two cycles; less is rounding. */
const leastDifference = 1e-9;

export const stageUs = ({ baseUs, rowUs, keyUs }: StageTime, { rows, keys }: StepSize): number =>
  baseUs + rowUs * rows + keyUs * keys;

export function cycleUs(
  { stages, hopUs, stationUs }: PipelineTimes,
  microBatches: number,
  size: StepSize,
): number {
  let sum = hopUs;
  let slowest = stationUs;
  for (const stage of stages) {
    const us = stageUs(stage, size);
    sum += us;
    slowest = Math.max(slowest, us);
  }
  return Math.max(sum, microBatches * slowest);
}

/** A decode step when all sequences are divided among so many micro-batches. */
export function decodeSize({ running, context }: Load, microBatches: number): StepSize {
  const rows = running / microBatches;
  return { rows, keys: rows * context };
}

/**
 * How many micro-batches carry the load fastest. The slowest stage is saturated by sum(t + c) / max(t) of them,
 * t being that of their share of the sequences. Every one more reads the weights once more, so the whole number
 * below may be faster than the one above: the shorter cycle decides. Sequences that wait while the KV cache has
 * room need no rule of their own: admission makes them run first, and then they are counted.
 * @returns 1 to the number of sequences, at most `most`.
 */
export function bestMicroBatches(times: PipelineTimes, load: Load, most: number): number {
  const limit = Math.max(1, Math.min(load.running, most));
  let below = 1;
  while (below < limit && !saturates(times, load, below + 1)) below++;
  const above = Math.min(below + 1, limit);
  const cycleOf = (count: number) => cycleUs(times, count, decodeSize(load, count));
  return cycleOf(above) < (1 - leastDifference) * cycleOf(below) ? above : below;
}

/** More micro-batches than that only wait. */
function saturates(times: PipelineTimes, load: Load, microBatches: number): boolean {
  const size = decodeSize(load, microBatches);
  let sum = times.hopUs;
  let slowest = times.stationUs;
  for (const stage of times.stages) {
    const us = stageUs(stage, size);
    sum += us;
    slowest = Math.max(slowest, us);
  }
  return microBatches * slowest > sum;
}

/**
 * What steps like this one take whatever their rows, in rows: reading the weights, and the hops where nothing
 * else is waited for. Another row is taken to read as many keys as those that the step has.
 * @returns infinity where rows cost nothing.
 */
export function kneeRows(
  { stages, hopUs, stationUs }: PipelineTimes,
  microBatches: number,
  size: StepSize,
): number {
  let slowest = { us: stationUs, perRowUs: 0 };
  const sum = { us: hopUs, perRowUs: 0 };
  for (const stage of stages) {
    const us = stageUs(stage, size);
    const perRowUs = stage.rowUs + (stage.keyUs * size.keys) / size.rows;
    sum.us += us;
    sum.perRowUs += perRowUs;
    if (us > slowest.us) slowest = { us, perRowUs };
  }
  const { us, perRowUs } = microBatches * slowest.us > sum.us ? slowest : sum;
  return perRowUs === 0 ? Number.POSITIVE_INFINITY : Math.max(0, us / perRowUs - size.rows);
}

/**
 * Rows of a prompt from `start` on that a step takes beside what it has, so that steps like it keep the cycle
 * within a limit.
 * @returns not rounded; 0 where it is over the limit already, infinity where rows cost nothing.
 */
export function rowsWithin(
  { stages, hopUs }: PipelineTimes,
  microBatches: number,
  has: StepSize,
  start: number,
  limitUs: number,
): number {
  const sum: StageTime = { baseUs: 0, rowUs: 0, keyUs: 0 };
  let rows = Number.POSITIVE_INFINITY;
  for (const stage of stages) {
    sum.baseUs += stage.baseUs;
    sum.rowUs += stage.rowUs;
    sum.keyUs += stage.keyUs;
    rows = Math.min(rows, rowsFor(stage, start, limitUs / microBatches - stageUs(stage, has)));
  }
  return Math.min(rows, rowsFor(sum, start, limitUs - hopUs - stageUs(sum, has)));
}

/**
 * Rows of a chunk that starts behind `start` tokens and takes as long as the first `first` tokens did:
 * T(start + x) - T(start) = T(first), the part that does not depend on rows left out. Damped, since the fit of
 * long contexts comes late.
 */
export function equalTimeRows({ stages }: PipelineTimes, start: number, first: number): number {
  const sum = stages.reduce(
    (total, { rowUs, keyUs }) => ({ baseUs: 0, rowUs: total.rowUs + rowUs, keyUs: total.keyUs + keyUs }),
    { baseUs: 0, rowUs: 0, keyUs: 0 },
  );
  const firstUs = stageUs(sum, { rows: first, keys: causalKeys(0, first) });
  const equal = firstUs === 0 ? first : Math.min(first, rowsFor(sum, start, firstUs));
  return first + damping * (equal - first);
}

/** The x with rowUs * x + keyUs * (x * start + x (x + 1) / 2) = us. */
function rowsFor({ rowUs, keyUs }: StageTime, start: number, us: number): number {
  if (us <= 0) return 0;
  const linear = rowUs + keyUs * (start + 0.5);
  if (linear === 0) return Number.POSITIVE_INFINITY;
  // The root of keyUs / 2 x^2 + linear x - us, in the form that loses nothing when keyUs is small.
  return (2 * us) / (linear + Math.sqrt(linear * linear + 2 * keyUs * us));
}
