/**
 * Decides which sequences travel together next (continuous batching): sequences join and leave
 * between steps. Pure: it is told what happened and answers with the steps to send; it knows no
 * clock, socket or text.
 */

import type { SequenceId } from "../../common/ids.js";
import { kvBlockSize } from "../../common/limits.js";
import type { TokenIds } from "../inference.js";
import { defaultTenant, type RequestClass } from "../request-class.js";
import { BlockPool, type PrefixNode } from "./block-pool.js";
import { type Tab, WaitingSet } from "./waiting-set.js";

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
}

/** Rows [start, start + tokens.length) of a sequence, part of one step. */
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
  /** The last row is the sequence's newest token: draw the next one after it. */
  sample: boolean;
}

export interface ScheduledStep {
  step: number;
  rows: ScheduledRows[];
  /** Sequences that ended since the last step; the stages drop their block tables. */
  ended: SequenceId[];
}

interface SequenceState {
  id: SequenceId;
  tenant: string;
  class: RequestClass;
  /** Where its work is charged. */
  tab: Tab;
  /** Tokens that were charged when it was admitted and are not computed yet. */
  prepaid: number;
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
  /** The step it travels in, or null. A sequence is in one step at a time. */
  inStep: number | null;
  /** Removed while in flight: its blocks return when that step has come back. */
  ending: boolean;
}

/** How a sequence is run; what is not said is the plain causal way. */
export interface SequenceOptions {
  /** Sequences of another one never share blocks. */
  tenant?: string;
  class?: RequestClass;
  /**
   * Tokens at the beginning that must travel in one step, which may then have as many rows beside its usual
   * ones; 0 for causal attention.
   */
  whole?: number;
  /** Sequences of a tenant with another one never share blocks. */
  salt?: string;
  /** Every row is wanted: nothing that others have computed is taken over. */
  everyRow?: boolean;
}

interface Submitted extends Required<SequenceOptions> {
  promptTokens: TokenIds;
  maxTokens: number;
}

/** Of one class, sequences whose next rows can be computed now. */
interface ReadySequences {
  decodes: SequenceState[];
  prefills: SequenceState[];
}

export const blocksFor = (tokens: number): number => Math.ceil(tokens / kvBlockSize);

export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #pool: BlockPool;
  /** Bounded by the queue limit of the coordinator's core. */
  readonly #waiting = new WaitingSet<Submitted>();
  /** Holding blocks, in the order in which they may next be scheduled. */
  readonly #running = new Map<SequenceId, SequenceState>();
  readonly #steps = new Map<number, SequenceId[]>();
  readonly #runningOf: Record<RequestClass, number> = { interactive: 0, batch: 0 };
  #ended: SequenceId[] = [];
  #lastStep = 0;

  constructor(limits: SchedulerLimits) {
    this.#limits = limits;
    this.#pool = new BlockPool(limits.blockCount);
  }

  get runningCount(): number {
    return this.#running.size;
  }

  get waitingCount(): number {
    return this.#waiting.size;
  }

  /** Sequences of one class. */
  countsOf(of: RequestClass): { running: number; waiting: number } {
    return { running: this.#runningOf[of], waiting: this.#waiting.sizeOf(of) };
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
    const { tenant = defaultTenant, class: ofClass = "interactive" } = options;
    const { whole = 0, salt = "", everyRow = false } = options;
    const submitted = { promptTokens, maxTokens, tenant, class: ofClass, whole, salt, everyRow };
    this.#waiting.add(id, tenant, ofClass, submitted);
  }

  /** Ends a sequence wherever it is. Unknown ids are those that ended before: nothing happens. */
  remove(id: SequenceId): void {
    if (this.#waiting.remove(id) !== null) return;
    const sequence = this.#running.get(id);
    if (sequence === undefined || sequence.ending) return;
    if (sequence.inStep === null) this.#free(sequence);
    else sequence.ending = true;
  }

  /** A token was decided for a sequence: it becomes a row of one of the next steps. */
  append(id: SequenceId, token: number): void {
    const sequence = this.#running.get(id);
    if (sequence === undefined || sequence.ending) return;
    sequence.tokens.push(token);
    this.#waiting.chargeGenerated(sequence.tab, 1);
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

  /**
   * Waiting sequences start, each in its turn, while the pool holds all they can grow to. Their prompts are
   * charged at once, or a tenant could take many places before the first row of it is counted.
   */
  #admit(): void {
    for (let next = this.#waiting.first(); next !== null; next = this.#waiting.first()) {
      const { promptTokens, maxTokens, tenant, whole, salt, everyRow } = next.what;
      const reservation = this.#blocksFor(promptTokens.length + Math.max(0, maxTokens - 1));
      if (!this.#pool.reserve(reservation)) return;
      const { id } = next;
      const tab = this.#waiting.remove(id)!;
      this.#waiting.chargePrompt(tab, promptTokens.length);
      this.#runningOf[next.class]++;
      this.#running.set(id, {
        id,
        tenant,
        class: next.class,
        tab,
        prepaid: promptTokens.length,
        tokens: Array.from(promptTokens),
        computed: 0,
        blocks: [],
        whole,
        node: this.#sharesBlocks(whole) ? this.#pool.root(tenant, salt) : null,
        known: 0,
        reuses: !everyRow,
        begun: false,
        reservation,
        generates: maxTokens > 0,
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

  /**
   * Interactive sequences first, batch gets what they leave of the step. Within a class decodes first: each is
   * one row and someone waits for it; then prefill, longest in the system first.
   */
  #ready(): SequenceState[] {
    const interactive: ReadySequences = { decodes: [], prefills: [] };
    const batch: ReadySequences = { decodes: [], prefills: [] };
    for (const sequence of this.#running.values()) {
      const left = sequence.tokens.length - sequence.computed;
      if (sequence.inStep !== null || left === 0) continue;
      const ready = sequence.class === "batch" ? batch : interactive;
      (left === 1 ? ready.decodes : ready.prefills).push(sequence);
    }
    return interactive.decodes.concat(interactive.prefills, batch.decodes, batch.prefills);
  }

  #schedule(sequence: SequenceState, budget: number): ScheduledRows {
    const reused = this.#takeOver(sequence);
    const start = sequence.computed;
    const left = sequence.tokens.length - start;
    const whole = start < sequence.whole ? sequence.whole : 0;
    const count = whole + Math.min(left - whole, this.#limits.prefillChunk, budget);
    const missing = this.#blocksFor(start + count) - sequence.blocks.length;
    const taken = missing > 0 ? this.#pool.take(missing) : [];
    sequence.reservation -= taken.length;
    sequence.blocks.push(...taken);
    const newBlocks = sequence.blocks.slice(sequence.blocks.length - reused.blocks - taken.length);
    sequence.computed += count;
    this.#settle(sequence, count, reused.tokens);
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
    };
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

  /** Rows that are computed now were charged before; those that others had computed cost nothing. */
  #settle(sequence: SequenceState, computed: number, reused: number): void {
    const free = Math.min(sequence.prepaid, reused);
    this.#waiting.chargePrompt(sequence.tab, -free);
    sequence.prepaid = Math.max(0, sequence.prepaid - free - computed);
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
    this.#runningOf[sequence.class]--;
    this.#waiting.chargePrompt(sequence.tab, -sequence.prepaid);
    this.#pool.release(sequence.blocks, sequence.reservation);
    this.#ended.push(sequence.id);
  }
}
