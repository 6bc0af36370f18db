/** What the scheduler asks of times, and tells of them. It knows no clock: times come as data. */
import type { Load } from "./cycle.js";
import type { SliceSize } from "./slice-time.js";
import type { StepSize } from "./step-size.js";

/** Of one finished step, in microseconds. */
export interface MeasuredStep {
  /** Compute time, one per stage. */
  stageUs: readonly number[];
  /** From sending its header to its result. */
  roundtripUs: number;
}

/** A prompt's chunk that a step could take. */
export interface ChunkQuestion {
  /** What the step has already. */
  has: StepSize;
  /** Tokens of the prompt that are computed. */
  start: number;
  /** Rows that may be taken at most, 1 or more. */
  most: number;
  /** Prompt tokens of one sequence in one step at most. */
  first: number;
  /** Micro-batches on their way, this one included. */
  microBatches: number;
  /** Nothing else runs. */
  alone: boolean;
  /** Some sequence waits for its next token. */
  decoding: boolean;
  /** The step has rows of another prompt: none need be taken. */
  mayBeNone: boolean;
  /** It fills what others leave: whoever comes next among them should not wait long for this step. */
  fills: boolean;
}

/** A slice of a context that a step could take. */
export interface SliceQuestion {
  /** What the step has already. */
  has: StepSize;
  /** Number of the stage that would compute it. */
  stage: number;
  /** Micro-batches on their way, this one included. */
  microBatches: number;
}

export interface StepTiming {
  /** It knows nothing yet, and steps with a slice do not change that. */
  readonly lacksPlainSteps: boolean;
  /**
   * @param slice What it brings beside its rows.
   * @param decodes All of its rows are drawn from.
   */
  sent(step: number, size: StepSize, slice: SliceSize | null, decodes?: boolean): void;
  finished(step: number, measured: MeasuredStep): void;
  /** Micro-batches to keep on their way; null while that is not known. */
  microBatches(load: Load): number | null;
  /** @returns 0 to `most` rows; 1 or more unless `mayBeNone`. */
  chunkRows(question: ChunkQuestion): number;
  /** Rows that cost as much as a step like this one does whatever its rows; null while that is not known. */
  kneeRows(microBatches: number, size: StepSize): number | null;
  /**
   * How long a cycle takes in which a step like this one has so many more rows, beside others that are on their way,
   * in microseconds; null while that is not known.
   */
  cycleWith(size: StepSize, others: readonly StepSize[]): ((moreRows: number) => number) | null;
  /** Rows times layers of slices that may be in flight on a stage, this one included; null while not known. */
  sliceWork(question: SliceQuestion): number | null;
}

/** Without measurements: as many micro-batches as stages, chunks as large as allowed, and slices like them. */
export const unmeasured: StepTiming = {
  lacksPlainSteps: false,
  sent() {},
  finished() {},
  microBatches: () => null,
  chunkRows: ({ most }) => most,
  kneeRows: () => null,
  cycleWith: () => null,
  sliceWork: () => null,
};
