/** What the scheduler has sent: the rows of one step, sequence by sequence. */
import type { SequenceId } from "../../common/ids.js";
import type { ScheduledSlice } from "./context-slices.js";

/** Rows [start, start + tokens.length) of a sequence, part of one step; the last draftRows of them are guesses. */
export interface ScheduledRows {
  sequence: SequenceId;
  start: number;
  tokens: number[];
  /** The first rows of the sequence. */
  first: boolean;
  /** Tokens before `start` that were found computed since its last rows, and are not computed again. */
  reused: number;
  /** Block ids to append to the sequence's block table before these rows. */
  newBlocks: readonly number[];
  /** The last row, drafts aside, is the sequence's newest token: draw the next one after it. */
  sample: boolean;
  /** Rows behind the decided ones; how many of them hold is told by `append`. */
  draftRows: number;
}

/** Block `to`, which belongs to one sequence, begins with what `from` holds for another one. */
export interface BlockCopy {
  from: number;
  to: number;
}

export interface ScheduledStep {
  step: number;
  /** To be made before anything of the step is computed, in order. */
  copies: BlockCopy[];
  /** Of a context that is read in slices, in front of the rows, which may go on with the same sequence. */
  slice: ScheduledSlice | null;
  rows: ScheduledRows[];
  /** Sequences that ended or were preempted since the last step; the stages drop their block tables. */
  ended: SequenceId[];
  /** Those of them that were preempted: they wait again, and are computed from their beginning. */
  preempted: SequenceId[];
}
