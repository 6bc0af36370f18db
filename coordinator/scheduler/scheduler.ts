/**
 * Decides which sequences travel together next (continuous batching): sequences join and leave
 * between steps. Pure: it is told what happened and answers with the steps to send; it knows no
 * clock, socket or text.
 */

import type { SequenceId } from "../../common/ids.js";
import { kvBlockSize } from "../../common/limits.js";
import type { TokenIds } from "../inference.js";
import { BlockPool, type PrefixNode } from "./block-pool.js";
import { type DraftCandidate, type Drafter, Speculation, type SpeculationLimits } from "./speculation.js";

export interface SchedulerLimits {
  /** KV blocks that every stage has. */
  blockCount: number;
  stageCount: number;
  /** Micro-batches in flight at most; null: min(stages, sequences). */
  microBatches: number | null;
  /** Rows of one step, prefill and decode together. */
  maxStepRows: number;
  /** KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  prefixLength: number;
  /** Prompt tokens of one sequence in one step. */
  prefillChunk: number;
  /** Decodes may carry drafts; absent: none does. */
  speculation?: SpeculationLimits | undefined;
}

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
  newBlocks: number[];
  /** The last row, drafts aside, is the sequence's newest token: draw the next one after it. */
  sample: boolean;
  /** Rows behind the decided ones; how many of them hold is told by `append`. */
  draftRows: number;
}

export interface ScheduledStep {
  step: number;
  rows: ScheduledRows[];
  /** Sequences that ended since the last step; the stages drop their block tables. */
  ended: SequenceId[];
}

interface SequenceState {
  id: SequenceId;
  tokens: number[];
  /** Tokens whose KV entries are written once the steps in flight are done. */
  computed: number;
  blocks: number[];
  /** Tokens at the beginning that must travel in one step (a prefix-LM's context). */
  whole: number;
  /** The last full block that is known by its tokens; null for a sequence that shares nothing. */
  node: PrefixNode | null;
  /** Blocks up to that one. */
  known: number;
  /** May take over blocks that others have computed. */
  reuses: boolean;
  /** Rows of it have travelled. */
  begun: boolean;
  /** Blocks it may still draw. */
  reservation: number;
  /** False when only its prompt is scored: nothing is drawn at the end. */
  generates: boolean;
  /** Tokens that it can have in all. */
  mostTokens: number;
  /** As in SequenceOptions. */
  rulesChangeAt: number;
  /** Guesses at its next tokens; null without speculation, and before its first token is drawn. */
  drafter: Drafter | null;
  /** Draft rows of its newest step that no decided token has confirmed or refuted yet. */
  draft: number[];
  /** The step it travels in, or null. A sequence is in one step at a time. */
  inStep: number | null;
  /** Removed while in flight: its blocks return when that step has come back. */
  ending: boolean;
}

/** How a sequence is run; what is not said is the plain causal way. */
export interface SequenceOptions {
  /**
   * Tokens at the beginning that must travel in one step, which may then have as many rows beside its usual
   * ones; 0 for causal attention.
   */
  whole?: number;
  /** Sequences with another one never share blocks. */
  salt?: string;
  /** Every row is wanted: nothing that others have computed is taken over. */
  everyRow?: boolean;
  /** From so many tokens on others may be drawn than before: a draft is drawn from by the rules of one side. */
  rulesChangeAt?: number;
}

interface Waiting extends Required<SequenceOptions> {
  promptTokens: TokenIds;
  maxTokens: number;
}

export const blocksFor = (tokens: number): number => Math.ceil(tokens / kvBlockSize);

/** The last token needs no row, and all that are drawn in one step are drawn by the same rules. */
function draftLimit({ tokens, mostTokens, rulesChangeAt }: SequenceState): number {
  const most = mostTokens - tokens.length - 1;
  return tokens.length < rulesChangeAt ? Math.min(most, rulesChangeAt - tokens.length - 1) : most;
}

export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #pool: BlockPool;
  /** Arrival order. Bounded by the queue limit of the coordinator's core. */
  readonly #waiting = new Map<SequenceId, Waiting>();
  /** Holding blocks, in the order in which they may next be scheduled. */
  readonly #running = new Map<SequenceId, SequenceState>();
  readonly #speculation: Speculation | null;
  readonly #steps = new Map<number, SequenceId[]>();
  #ended: SequenceId[] = [];
  #lastStep = 0;

  constructor(limits: SchedulerLimits) {
    this.#limits = limits;
    this.#pool = new BlockPool(limits.blockCount);
    this.#speculation = limits.speculation === undefined ? null : new Speculation(limits.speculation);
  }

  get runningCount(): number {
    return this.#running.size;
  }

  get waitingCount(): number {
    return this.#waiting.size;
  }

  get stepsInFlight(): number {
    return this.#steps.size;
  }

  /** Blocks that no sequence holds, kept for those that begin alike. */
  get blocksKept(): number {
    return this.#pool.kept;
  }

  get blocksUsed(): number {
    return this.#pool.used;
  }

  /** Whether a sequence could ever run, with all blocks to itself. The last token drawn needs no slot. */
  fits(promptLength: number, maxTokens: number): boolean {
    return this.#blocksFor(promptLength + Math.max(0, maxTokens - 1)) <= this.#limits.blockCount;
  }

  /** @param maxTokens Tokens to generate at most; 0 runs the prompt only. */
  submit(id: SequenceId, promptTokens: TokenIds, maxTokens: number, options: SequenceOptions = {}): void {
    if (promptTokens.length === 0) throw new Error("Scheduler.submit: empty prompt");
    if (!this.fits(promptTokens.length, maxTokens)) throw new Error("Scheduler.submit: never fits");
    const { whole = 0, salt = "", everyRow = false, rulesChangeAt = 0 } = options;
    this.#waiting.set(id, { promptTokens, maxTokens, whole, salt, everyRow, rulesChangeAt });
  }

  /** Ends a sequence wherever it is. Unknown ids are those that ended before: nothing happens. */
  remove(id: SequenceId): void {
    if (this.#waiting.delete(id)) return;
    const sequence = this.#running.get(id);
    if (sequence === undefined || sequence.ending) return;
    if (sequence.inStep === null) this.#free(sequence);
    else sequence.ending = true;
  }

  /**
   * A token was decided for a sequence: it becomes a row of one of the next steps, unless it was one already, as
   * the next one of a draft. To be called for every token drawn, in order, before the next step is formed.
   */
  append(id: SequenceId, token: number): void {
    const sequence = this.#running.get(id);
    if (sequence === undefined || sequence.ending) return;
    sequence.tokens.push(token);
    this.#verifyDraft(sequence, token);
  }

  /** A step has left the last stage: its sequences may be scheduled again, ended ones give back their blocks. */
  complete(step: number): void {
    const ids = this.#steps.get(step);
    if (ids === undefined) throw new Error(`Scheduler.complete: step ${step} is not in flight`);
    this.#steps.delete(step);
    for (const id of ids) {
      const sequence = this.#running.get(id)!;
      sequence.inStep = null;
      if (sequence.ending) this.#free(sequence);
    }
  }

  /** Forms the next step, or null when nothing can be sent now. */
  next(): ScheduledStep | null {
    this.#admit();
    const target = this.#microBatchTarget();
    if (this.#steps.size >= target) return null;
    const share = Math.ceil(this.#running.size / target);
    const rows: ScheduledRows[] = [];
    let budget = this.#limits.maxStepRows;
    let hasContext = false;
    for (const sequence of this.#ready()) {
      if (rows.length >= share || budget === 0) break;
      const isContext = sequence.computed < sequence.whole;
      // One context per step: the stages have room for the longest one beside a usual step.
      if (isContext && hasContext) continue;
      const scheduled = this.#schedule(sequence, budget);
      hasContext ||= isContext;
      budget -= scheduled.tokens.length - (isContext ? sequence.whole : 0);
      rows.push(scheduled);
    }
    if (rows.length === 0) return null;
    this.#addDrafts(rows, budget);
    const step = ++this.#lastStep;
    this.#steps.set(
      step,
      rows.map((entry) => entry.sequence),
    );
    for (const entry of rows) this.#depart(entry.sequence, step);
    const ended = this.#ended;
    this.#ended = [];
    return { step, rows, ended };
  }

  /** Waiting sequences start in arrival order while the pool holds all they can grow to. */
  #admit(): void {
    for (const [id, { promptTokens, maxTokens, whole, salt, everyRow, rulesChangeAt }] of this.#waiting) {
      const reservation = this.#blocksFor(promptTokens.length + Math.max(0, maxTokens - 1));
      if (!this.#pool.reserve(reservation)) return;
      this.#waiting.delete(id);
      this.#running.set(id, {
        id,
        tokens: Array.from(promptTokens),
        computed: 0,
        blocks: [],
        whole,
        node: this.#sharesBlocks(whole) ? this.#pool.root(salt) : null,
        known: 0,
        reuses: !everyRow,
        begun: false,
        reservation,
        generates: maxTokens > 0,
        mostTokens: promptTokens.length + maxTokens,
        rulesChangeAt,
        drafter: null,
        draft: [],
        inStep: null,
        ending: false,
      });
    }
  }

  /** Of a sequence with so many tokens. */
  #blocksFor(tokens: number): number {
    return blocksFor(this.#limits.prefixLength + tokens);
  }

  #microBatchTarget(): number {
    const wanted = this.#limits.microBatches ?? this.#limits.stageCount;
    return Math.max(1, Math.min(wanted, this.#running.size));
  }

  /** Decodes first: each is one row and someone waits for it; then prefill, longest in the system first. */
  #ready(): SequenceState[] {
    const decodes: SequenceState[] = [];
    const prefills: SequenceState[] = [];
    for (const sequence of this.#running.values()) {
      const left = sequence.tokens.length - sequence.computed;
      if (sequence.inStep !== null || left === 0) continue;
      (left === 1 ? decodes : prefills).push(sequence);
    }
    return decodes.concat(prefills);
  }

  #schedule(sequence: SequenceState, budget: number): ScheduledRows {
    const reused = this.#takeOver(sequence);
    const start = sequence.computed;
    const left = sequence.tokens.length - start;
    const whole = start < sequence.whole ? sequence.whole : 0;
    const count = whole + Math.min(left - whole, this.#limits.prefillChunk, budget);
    const taken = this.#takeBlocks(sequence, start + count);
    const newBlocks = sequence.blocks.slice(sequence.blocks.length - reused.blocks - taken.length);
    sequence.computed += count;
    this.#makeKnown(sequence);
    const first = !sequence.begun;
    sequence.begun = true;
    return {
      sequence: sequence.id,
      first,
      reused: reused.tokens,
      start,
      tokens: sequence.tokens.slice(start, start + count),
      newBlocks,
      sample: sequence.generates && count === left,
      draftRows: 0,
    };
  }

  /** Blocks for its first `tokens` tokens, from its reservation. @returns those that it did not have yet. */
  #takeBlocks(sequence: SequenceState, tokens: number): number[] {
    const missing = this.#blocksFor(tokens) - sequence.blocks.length;
    const taken = missing > 0 ? this.#pool.take(missing) : [];
    sequence.reservation -= taken.length;
    sequence.blocks.push(...taken);
    return taken;
  }

  /** Guesses travel behind the decodes of a step, as far as they pay and its budget reaches. */
  #addDrafts(rows: readonly ScheduledRows[], budget: number): void {
    if (this.#speculation === null) return;
    const entries: { entry: ScheduledRows; sequence: SequenceState }[] = [];
    const candidates: DraftCandidate[] = [];
    for (const entry of rows) {
      const sequence = this.#running.get(entry.sequence)!;
      const { drafter } = sequence;
      if (drafter === null || !entry.sample || entry.tokens.length > 1) continue;
      entries.push({ entry, sequence });
      candidates.push({ drafter, limit: draftLimit(sequence) });
    }
    if (candidates.length === 0) return;
    const usual = rows.reduce((total, { tokens }) => total + tokens.length, 0);
    const lengths = this.#speculation.plan(candidates, usual, budget);
    for (const [index, { entry, sequence }] of entries.entries()) {
      if (lengths[index]! > 0) this.#addDraft(entry, sequence, sequence.drafter!.draft(lengths[index]!));
    }
  }

  /**
   * Its rows are not counted as computed: the next rows begin behind those that held, and overwrite the others.
   * Blocks of rows that did not hold stay with the sequence for its next ones.
   */
  #addDraft(entry: ScheduledRows, sequence: SequenceState, draft: number[]): void {
    entry.newBlocks.push(...this.#takeBlocks(sequence, sequence.computed + draft.length));
    entry.tokens.push(...draft);
    entry.draftRows = draft.length;
    sequence.draft = draft;
  }

  /** The newest token of a sequence confirms the next row of its draft, or shows that the rest is wrong. */
  #verifyDraft(sequence: SequenceState, token: number): void {
    if (sequence.draft.length > 0) {
      if (sequence.draft.shift() === token) {
        sequence.computed++;
        this.#makeKnown(sequence);
      } else {
        sequence.draft = [];
      }
    }
    if (sequence.drafter !== null) sequence.drafter.advance();
    else if (this.#speculation !== null) {
      sequence.drafter = this.#speculation.drafter(sequence.tokens, sequence.mostTokens);
    }
  }

  /**
   * Takes over the full blocks that others have computed from the same tokens, up to the last token, which is
   * computed in any case: what follows it is drawn from its row. Steps reach every stage in order, so rows that
   * are still on their way are there before these.
   */
  #takeOver(sequence: SequenceState): { blocks: number; tokens: number } {
    const before = sequence.computed;
    let blocks = 0;
    while (sequence.reuses && sequence.node !== null && sequence.known === sequence.blocks.length) {
      const begin = sequence.known * kvBlockSize;
      const end = begin + kvBlockSize;
      if (end >= sequence.tokens.length) break;
      const shared = this.#pool.share(sequence.node, sequence.tokens.slice(begin, end));
      if (shared === null) break;
      sequence.blocks.push(shared.block);
      sequence.reservation--;
      sequence.node = shared.node;
      sequence.known++;
      sequence.computed = end;
      blocks++;
    }
    return { blocks, tokens: sequence.computed - before };
  }

  /** Blocks that its rows have filled may serve others from now on. */
  #makeKnown(sequence: SequenceState): void {
    while (sequence.node !== null && (sequence.known + 1) * kvBlockSize <= sequence.computed) {
      const begin = sequence.known * kvBlockSize;
      const tokens = sequence.tokens.slice(begin, begin + kvBlockSize);
      sequence.node = this.#pool.know(sequence.node, tokens, sequence.blocks[sequence.known]!);
      sequence.known++;
    }
  }

  /**
   * A context's keys and values depend on what comes after them. Behind a prefix encoder's slots tokens do not
   * begin with a block, and each sequence writes those slots itself.
   */
  #sharesBlocks(whole: number): boolean {
    return whole === 0 && this.#limits.prefixLength === 0;
  }

  /** Marks a sequence as travelling and puts it behind the others, so that none is passed over for ever. */
  #depart(id: SequenceId, step: number): void {
    const sequence = this.#running.get(id)!;
    sequence.inStep = step;
    this.#running.delete(id);
    this.#running.set(id, sequence);
  }

  #free(sequence: SequenceState): void {
    this.#running.delete(sequence.id);
    this.#pool.release(sequence.blocks, sequence.reservation);
    this.#ended.push(sequence.id);
  }
}
