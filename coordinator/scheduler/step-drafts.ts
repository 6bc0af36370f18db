/** Which sequences of a step get how many guessed rows, and what becomes of guesses. Pure. */

import type { SequenceId } from "../../common/ids.js";
import { kvBlockSize } from "../../common/limits.js";
import type { ScheduledRows } from "./scheduled-step.js";
import type { SequenceState } from "./sequence.js";
import { type DraftCandidate, type Drafter, Speculation } from "./speculation.js";
import type { StepBatch } from "./step-batch.js";
import type { StepSize } from "./timing/step-size.js";
import type { StepTiming } from "./timing/step-timing.js";

export interface StepYield {
  size: StepSize;
  /** Rows that are expected to count: drafts count as their chances. */
  yielded: number;
}

export interface Draft {
  /** Behind its rows it travels. */
  entry: ScheduledRows;
  sequence: SequenceState;
  /** Tokens that are guessed to come next. */
  tokens: readonly number[];
}

/** The step that drafts are added to. */
export interface DraftedStep {
  rows: readonly ScheduledRows[];
  /** Steps on their way. */
  inFlight: readonly StepYield[];
  batch: StepBatch;
  sequenceOf(id: SequenceId): SequenceState;
  /** There is a block for every running sequence: a guess may take one, and nobody is preempted for it. */
  spareBlocks: boolean;
}

const none = { drafts: [], kept: 0 };

export class StepDrafts {
  readonly #speculation = new Speculation();
  readonly #timing: StepTiming;
  readonly #prefixLength: number;

  /** @param prefixLength KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  constructor(timing: StepTiming, prefixLength: number) {
    this.#timing = timing;
    this.#prefixLength = prefixLength;
  }

  /** Guesses for sequences that decode, as far as they pay and the step's budget reaches. */
  plan({ rows, inFlight, batch, sequenceOf, spareBlocks }: DraftedStep): { drafts: Draft[]; kept: number } {
    const { size, budget } = batch;
    const { microBatches } = batch.limits;
    const knee = this.#timing.kneeRows(microBatches, size);
    if (!this.#speculation.mayPay(size.rows, knee)) return none;
    const decodes: { entry: ScheduledRows; sequence: SequenceState; drafter: Drafter }[] = [];
    const candidates: DraftCandidate[] = [];
    for (const entry of rows) {
      const sequence = sequenceOf(entry.sequence);
      const { drafter } = sequence;
      if (drafter === null || entry.tokens.length > 1 || sequence.afterStep !== "go on") continue;
      decodes.push({ entry, sequence, drafter });
      candidates.push({ drafter, limit: this.#limitOf(sequence, spareBlocks) });
    }
    if (candidates.length === 0) return none;
    // Those that are still to be formed will be like this one.
    const missing = Math.max(0, microBatches - 1 - inFlight.length);
    const like = { size: { ...size }, yielded: size.rows };
    const others = [...inFlight, ...Array.from({ length: missing }, () => like)];
    const otherYield = others.reduce((sum, { yielded }) => sum + yielded, 0);
    const sizes = others.map((other) => other.size);
    const timeOf = this.#timing.cycleWith(size, sizes);
    const step = { rows: size.rows, budget, knee, otherYield, timeOf };
    const { lengths, kept } = this.#speculation.plan(candidates, step);
    const drafts = decodes.flatMap(({ entry, sequence, drafter }, index) => {
      const length = lengths[index]!;
      return length === 0 ? [] : [{ entry, sequence, tokens: drafter.draft(length) }];
    });
    return { drafts, kept };
  }

  /**
   * To be called for every token that is decided for a sequence, in order.
   * @returns whether its row has travelled, as the next one of a draft.
   */
  settle(sequence: SequenceState, token: number): boolean {
    if (sequence.drafter !== null) return sequence.drafter.settle(token);
    sequence.drafter = this.#speculation.drafter(sequence.tokens, sequence.longest + 1);
    return false;
  }

  /** The last token needs no row, and all tokens of a step are drawn by the same rules. */
  #limitOf({ tokens, longest, rulesChangeAt, blocks, reservation }: SequenceState, spareBlocks: boolean) {
    const mayGrow = reservation > 0 || spareBlocks;
    const slots = mayGrow ? longest : blocks.length * kvBlockSize - this.#prefixLength;
    const end = tokens.length < rulesChangeAt ? rulesChangeAt - 1 : longest;
    return Math.min(longest, slots, end) - tokens.length;
  }
}
