/**
 * What finished steps say about the next ones: how many micro-batches to keep on their way, and how many rows
 * of prompts a step may carry. It begins with nothing and answers like `unmeasured` until enough steps have
 * come back. Pure: the same steps give the same answers.
 */
import { kvBlockSize, maxMicroBatchesInFlight } from "../../../common/limits.js";
import {
  cycleUs,
  equalTimeRows,
  kneeRows,
  type Load,
  type PipelineTimes,
  rowsWithin,
  stageUs as timeOf,
} from "./cycle.js";
import { MicroBatchChoice } from "./micro-batch-choice.js";
import { RoundTrips } from "./round-trips.js";
import { RowTimes } from "./row-times.js";
import { type SliceSize, SliceTime } from "./slice-time.js";
import { StageFit, type StageTime } from "./stage-fit.js";
import type { StepSize } from "./step-size.js";
import type { ChunkQuestion, MeasuredStep, SliceQuestion, StepTiming } from "./step-timing.js";

/** Steps before anything is decided by them: the first ones find cold caches. */
const leastSteps = 32;
/** The line through the averages moves slowly: it is drawn anew after so many steps. */
const fitEvery = 16;
/** A prompt that fills a step makes the cycle at most so many times as long, and has at most so many rows in it. */
const fillStretch = 2;
const mostFillRows = 4 * kvBlockSize;
/** A fit of few sizes may take rows to be cheaper than they are: nobody relies on more than this. */
const mostKneeRows = 32;

export interface TimingOptions {
  stageCount: number;
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs: number;
}

interface Sent {
  size: StepSize;
  slice: SliceSize | null;
  decodes: boolean;
  /** Steps on the way, itself included. */
  onWay: number;
  /** Slowest stages of all steps that had finished when it was sent, summed. */
  finishedUs: number;
}

export class TimingModel implements StepTiming {
  readonly #options: TimingOptions;
  readonly #fit: StageFit;
  readonly #roundTrips = new RoundTrips();
  /** Per stage. */
  readonly #rowTimes: readonly RowTimes[];
  readonly #slices = new SliceTime();
  readonly #choice: MicroBatchChoice;
  /** Bounded by the scheduler, which sends at most maxMicroBatchesInFlight. */
  readonly #sent = new Map<number, Sent>();
  #steps = 0;
  #finishedUs = 0;
  #times: PipelineTimes | null = null;

  constructor(options: TimingOptions) {
    this.#options = options;
    this.#fit = new StageFit(options.stageCount);
    this.#rowTimes = Array.from({ length: options.stageCount }, () => new RowTimes());
    this.#choice = new MicroBatchChoice(options.stageCount, maxMicroBatchesInFlight);
  }

  /** What is known of the pipeline; null before. */
  get times(): PipelineTimes | null {
    return this.#times;
  }

  get lacksPlainSteps(): boolean {
    return this.#times === null;
  }

  sent(step: number, size: StepSize, slice: SliceSize | null, decodes = false): void {
    const onWay = this.#sent.size + 1;
    this.#sent.set(step, { size, slice, decodes, onWay, finishedUs: this.#finishedUs });
  }

  finished(step: number, { stageUs, roundtripUs }: MeasuredStep): void {
    const sent = this.#sent.get(step);
    if (sent === undefined) return;
    this.#sent.delete(step);
    // Steps come back in the order sent: what finished since then was ahead of it.
    const aheadUs = this.#finishedUs - sent.finishedUs;
    this.#finishedUs += Math.max(...stageUs);
    if (sent.slice !== null) {
      this.#addSlice(sent.slice, sent.size, stageUs);
      return;
    }
    this.#steps++;
    this.#fit.add(sent.size, stageUs);
    if (sent.decodes) this.#addDecode(sent.size, stageUs);
    this.#roundTrips.add({ onWay: sent.onWay, roundtripUs, stageUs, aheadUs });
    if (this.#steps >= leastSteps && this.#steps % fitEvery === 0) {
      this.#times = { stages: this.#fit.fit(), ...this.#roundTrips.times };
    }
  }

  microBatches(load: Load): number | null {
    if (this.#times === null) return null;
    return this.#choice.choose(this.#times, load, this.#steps);
  }

  chunkRows(question: ChunkQuestion): number {
    const { has, start, most, first, microBatches, alone, decoding, mayBeNone, fills } = question;
    const times = this.#times;
    // Alone, a prompt is through soonest in large chunks: the next one waits for the last.
    if (times === null || alone) return most;
    if (fills && mayBeNone) return 0;
    const wanted = Math.min(
      fills ? this.#fillRows(times, question) : most,
      equalTimeRows(times, start, first),
      decoding ? rowsWithin(times, microBatches, has, start, this.#limitUs) : most,
    );
    if (wanted >= most) return most;
    const end = Math.floor((start + wanted) / kvBlockSize) * kvBlockSize;
    if (end > start) return end - start;
    // A block in every step, or the prompt never gets to its end.
    const toNextBlock = kvBlockSize - (start % kvBlockSize);
    return mayBeNone ? 0 : Math.min(most, toNextBlock);
  }

  #fillRows(times: PipelineTimes, { has, start, microBatches }: ChunkQuestion): number {
    const limitUs = fillStretch * cycleUs(times, microBatches, has);
    return Math.min(mostFillRows, rowsWithin(times, microBatches, has, start, limitUs));
  }

  kneeRows(microBatches: number, size: StepSize): number | null {
    if (this.#times === null) return null;
    const knee = kneeRows(this.#times, microBatches, size);
    // Steps of one size show nothing of what a row costs.
    return Number.isFinite(knee) ? Math.min(mostKneeRows, knee) : null;
  }

  /**
   * Steps go through all stages in order, so each sequence has one token per cycle, however unlike the steps are. A
   * cycle is the way of the longest of them, or what all together take on one stage.
   */
  cycleWith(size: StepSize, others: readonly StepSize[]): ((moreRows: number) => number) | null {
    const times = this.#times;
    if (times === null) return null;
    const { stages, hopUs, stationUs } = times;
    const onStages = (of: StepSize) => stages.map((stage, index) => this.#rowsUs(stage, index, of));
    const sumOf = (values: readonly number[]) => values.reduce((sum, us) => sum + us, 0);
    const beside = others.map(onStages);
    const longestUs = Math.max(0, ...beside.map(sumOf));
    const busyUs = stages.map((_, index) => sumOf(beside.map((us) => us[index]!)));
    const stationsUs = (others.length + 1) * stationUs;
    return (moreRows) => {
      const rows = size.rows + moreRows;
      const own = onStages({ rows, keys: (size.keys / size.rows) * rows });
      const wayUs = hopUs + Math.max(longestUs, sumOf(own));
      return Math.max(wayUs, stationsUs, ...own.map((us, index) => us + busyUs[index]!));
    };
  }

  /** By the number of rows where that was measured, else by the line. */
  #rowsUs(stage: StageTime, index: number, { rows, keys }: StepSize): number {
    const us = this.#rowTimes[index]!.us(rows, stage.rowUs);
    return us === null ? timeOf(stage, { rows, keys }) : us + stage.keyUs * keys;
  }

  sliceWork({ has, stage, microBatches }: SliceQuestion): number | null {
    const us = this.#slices.us(stage);
    if (this.#times === null || us === null) return null;
    const leftUs = this.#limitUs - cycleUs(this.#times, microBatches, has);
    return us === 0 ? Number.POSITIVE_INFINITY : Math.max(0, leftUs / us);
  }

  #addDecode({ rows, keys }: StepSize, stageUs: readonly number[]): void {
    const times = this.#times;
    if (times === null) return;
    for (const [index, { keyUs }] of times.stages.entries()) {
      this.#rowTimes[index]!.add(rows, Math.max(0, stageUs[index]! - keyUs * keys));
    }
  }

  /** What the step's rows are known to take is not the slice's. */
  #addSlice(slice: SliceSize, { rows, keys }: StepSize, stageUs: readonly number[]): void {
    const stage = this.#times?.stages[slice.stage];
    const rowsUs = stage === undefined || rows === 0 ? 0 : timeOf(stage, { rows, keys });
    this.#slices.add(slice, stageUs[slice.stage]! - rowsUs);
  }

  /** Rows of new prompts that a step without decodes may take by the target; null while that is not known. */
  rowBudget(microBatches: number): number | null {
    if (this.#times === null) return null;
    return Math.floor(rowsWithin(this.#times, microBatches, { rows: 0, keys: 0 }, 0, this.#limitUs));
  }

  get #limitUs(): number {
    return this.#options.itlTargetMs * 1_000;
  }
}
