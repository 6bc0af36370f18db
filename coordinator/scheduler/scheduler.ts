/**
 * Decides which sequences travel together next (continuous batching): sequences join and leave
 * between steps. Pure: it is told what happened and answers with the steps to send; it knows no
 * clock, socket or text.
 */

import type { SequenceId } from "../../common/ids.js";
import { maxMicroBatchesInFlight } from "../../common/limits.js";
import type { TokenIds } from "../inference.js";
import type { LayerRange } from "../placement/cut.js";
import { defaultTenant, type RequestClass } from "../request-class.js";
import { BlockPool } from "./block-pool.js";
import { Charges } from "./charges.js";
import { ContextSlices, type ScheduledSlice } from "./context-slices.js";
import { evenShare } from "./even-share.js";
import { roomFor } from "./make-room.js";
import { ReplyForecast } from "./reply-forecast.js";
import type { BlockCopy, ScheduledRows, ScheduledStep } from "./scheduled-step.js";
import {
  begin,
  isBehind,
  type SequenceOptions,
  type SequenceState,
  type Submitted,
  submittedAgain,
} from "./sequence.js";
import { SequenceBlocks } from "./sequence-blocks.js";
import { SharedPrompts } from "./shared-prompts.js";
import { StepBatch } from "./step-batch.js";
import { StepDrafts, type StepYield } from "./step-drafts.js";
import { isDecode, type Survey, surveyOf } from "./survey.js";
import { type MeasuredStep, type StepTiming, unmeasured } from "./timing/step-timing.js";
import { WaitingSet } from "./waiting-set.js";

export interface SchedulerLimits {
  /** KV blocks that every stage has. */
  blockCount: number;
  stageCount: number;
  /** Layers of each stage; absent: contexts are not read in slices. */
  stages?: readonly LayerRange[];
  /** Micro-batches in flight at most; null: what the timing says, and stages before it says anything. */
  microBatches: number | null;
  /** Rows of one step, prefill and decode together. */
  maxStepRows: number;
  /** KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  prefixLength: number;
  /** Prompt tokens of one sequence in one step. */
  prefillChunk: number;
  /** What a reply is taken to need before any has ended, in tokens. */
  firstExpectedReply: number;
  /** Decodes may carry drafts where they pay; absent: none does. */
  speculation?: boolean;
}

interface StepInFlight extends StepYield {
  sequences: SequenceId[];
  /** Those of them that decode. */
  decodes: number;
  /** The one with a slice of its context. */
  sliced: SequenceId | null;
  /** Held while it is on its way: its copies read them. */
  copied: readonly number[];
}

const noBlocks: readonly number[] = [];

export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #timing: StepTiming;
  readonly #pool: BlockPool;
  readonly #blocks: SequenceBlocks;
  readonly #forecast: ReplyForecast;
  /** Bounded by the queue limit of the coordinator's core. */
  readonly #waiting = new WaitingSet<Submitted>();
  readonly #charges = new Charges(this.#waiting);
  /** Holding blocks, in the order in which they may next be scheduled. */
  readonly #running = new Map<SequenceId, SequenceState>();
  readonly #sharedPrompts = new SharedPrompts();
  /** null: nothing is guessed. */
  readonly #drafts: StepDrafts | null;
  readonly #steps = new Map<number, StepInFlight>();
  readonly #runningOf: Record<RequestClass, number> = { interactive: 0, batch: 0 };
  /** null: contexts come whole. */
  readonly #slices: ContextSlices | null;
  #ended: SequenceId[] = [];
  #preemptedSinceStep: SequenceId[] = [];
  #lastStep = 0;
  /** The last one with a slice. */
  #lastSliced = -1;
  #submitted = 0;
  /** Mean tokens that were computed of a sequence when a step was last formed. */
  #context = 0;
  #target = 0;

  /** @param timing Is told of steps, and asked how many and how large they should be. */
  constructor(limits: SchedulerLimits, timing: StepTiming = unmeasured) {
    this.#limits = limits;
    this.#timing = timing;
    this.#pool = new BlockPool(limits.blockCount);
    this.#blocks = new SequenceBlocks(this.#pool, limits.prefixLength);
    const blocksFor = (tokens: number) => this.#blocks.countFor(tokens);
    this.#forecast = new ReplyForecast(limits.firstExpectedReply, blocksFor);
    const { stages, prefillChunk } = limits;
    this.#slices = stages === undefined ? null : new ContextSlices(stages, prefillChunk);
    this.#drafts = limits.speculation === true ? new StepDrafts(timing, limits.prefixLength) : null;
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

  /** Steps that are kept on their way, one per sequence at most. */
  get microBatchTarget(): number {
    return this.#target;
  }

  /** Blocks that no sequence holds, kept for those that begin alike. */
  get blocksKept(): number {
    return this.#pool.kept;
  }

  get blocksUsed(): number {
    return this.#pool.used;
  }

  /** How many of a new sequence's tokens stand in blocks that it could take over now (SequenceBlocks). */
  heldTokens(tokens: TokenIds, options: SequenceOptions): number {
    return this.#blocks.heldTokens(tokens, options);
  }

  /** Sequences that are admitted before a new one of this class. */
  waitingBefore(ofClass: RequestClass): number {
    return ofClass === "batch" ? this.#waiting.size : this.#waiting.sizeOf(ofClass);
  }

  /** Whether the blocks of so many tokens are there. */
  hasRoomFor(tokens: number): boolean {
    return this.#blocks.countFor(tokens) <= this.#pool.available;
  }

  /** Whether a sequence could ever run, with all blocks to itself. The last token drawn needs no slot. */
  fits(promptLength: number, maxTokens: number): boolean {
    return this.#blocks.countFor(promptLength + Math.max(0, maxTokens - 1)) <= this.#limits.blockCount;
  }

  /** @param maxTokens Tokens to generate at most; 0 runs the prompt only. */
  submit(id: SequenceId, promptTokens: TokenIds, maxTokens: number, options: SequenceOptions = {}): void {
    if (promptTokens.length === 0) throw new Error("Scheduler.submit: empty prompt");
    if (!this.fits(promptTokens.length, maxTokens)) throw new Error("Scheduler.submit: never fits");
    const { tenant = defaultTenant, class: ofClass = "interactive" } = options;
    const { whole = 0, salt = "", everyRow = false, prompt = null, rulesChangeAt = 0 } = options;
    this.#waiting.add(id, tenant, ofClass, {
      tokens: promptTokens,
      promptLength: promptTokens.length,
      longest: promptTokens.length + Math.max(0, maxTokens - 1),
      generates: maxTokens > 0,
      order: this.#submitted++,
      paid: 0,
      tenant,
      class: ofClass,
      whole,
      salt,
      everyRow,
      prompt,
      rulesChangeAt,
    });
  }

  /** Ends a sequence wherever it is. Unknown ids are those that ended before: nothing happens. */
  remove(id: SequenceId): void {
    if (this.#waiting.remove(id) !== null) return;
    const sequence = this.#running.get(id);
    if (sequence === undefined) return;
    if (sequence.inStep === null) this.#end(sequence);
    else sequence.afterStep = "end";
  }

  /**
   * A token was decided for a sequence: it becomes a row of one of the next steps, unless it was one already, as
   * the next one of a draft. To be called for every token drawn, in order, before the next step is formed.
   */
  append(id: SequenceId, token: number): void {
    const running = this.#running.get(id);
    if (running?.afterStep === "end") return;
    if (running !== undefined) {
      running.tokens.push(token);
      this.#charges.drawn(running.tab, running);
      this.#settleDraft(running, token);
      return;
    }
    const preempted = this.#waiting.preempted(id);
    if (preempted === undefined) return;
    preempted.what.tokens = [...preempted.what.tokens, token];
    this.#charges.drawn(preempted.tab, preempted.what);
  }

  /**
   * A step has left the last stage: its sequences may be scheduled again, ended ones give back their blocks.
   * @param measured How long it took, where that is known.
   */
  complete(step: number, measured?: MeasuredStep): void {
    const inFlight = this.#steps.get(step);
    if (inFlight === undefined) throw new Error(`Scheduler.complete: step ${step} is not in flight`);
    this.#steps.delete(step);
    this.#slices?.complete(step);
    this.#pool.release(inFlight.copied, 0);
    if (measured !== undefined) this.#timing.finished(step, measured);
    const { sequences, sliced } = inFlight;
    for (const id of sliced === null || sequences.includes(sliced) ? sequences : [...sequences, sliced]) {
      const sequence = this.#running.get(id)!;
      if (sequence.inStep !== step) continue; // a later slice is still on its way
      sequence.inStep = null;
      if (sequence.afterStep === "end") this.#end(sequence);
      else if (sequence.afterStep === "wait") this.#preempt(sequence);
    }
  }

  /** Forms the next step, or null when nothing can be sent now. */
  next(): ScheduledStep | null {
    this.#admit();
    this.#target = this.#chooseMicroBatches();
    if (this.#steps.size >= this.#target) return null;
    for (const { sequence, source } of this.#sharedPrompts.forks()) this.#blocks.fork(sequence, source);
    const survey = surveyOf(this.#running.values());
    this.#context = survey.context;
    const step = this.#lastStep + 1;
    const rows: ScheduledRows[] = [];
    const copies: BlockCopy[] = [];
    const batch = this.#newBatch(survey);
    const take = (sequence: SequenceState) => {
      const whole = sequence.computed < sequence.whole ? sequence.whole : 0;
      const decodes = isDecode(sequence);
      const scheduled = this.#schedule(sequence, batch);
      if (scheduled === null) return;
      if (sequence.copy !== null) copies.push(sequence.copy);
      sequence.copy = null;
      this.#depart(sequence, step);
      batch.add(scheduled.start, scheduled.tokens.length, whole, decodes);
      rows.push(scheduled);
    };
    for (const sequence of survey.ready) {
      if (batch.full) break;
      // Preempted for one before it.
      if (!this.#running.has(sequence.id)) continue;
      if (!this.#sharedPrompts.waits(sequence) && batch.admits(sequence)) take(sequence);
    }
    // Behind the decodes, which have the first right to blocks.
    const slice = this.#nextSlice(survey.ready, batch);
    if (slice?.last && batch.budget > 0) take(this.#running.get(slice.sequence)!);
    if (rows.length === 0 && slice === null) return null;
    const yielded = batch.size.rows + this.#addDrafts(rows, batch);
    this.#lastStep = step;
    const sequences = rows.map(({ sequence }) => sequence);
    const { size, decodes } = batch;
    const copied = copies.map(({ from }) => from);
    const sliced = slice?.sequence ?? null;
    this.#steps.set(step, { sequences, decodes, sliced, copied, size, yielded });
    const sliceSize = slice && this.#slices!.sent(step, slice);
    if (slice !== null) this.#lastSliced = step;
    this.#timing.sent(step, size, sliceSize, !batch.hasPrompt);
    const [ended, preempted] = [this.#ended, this.#preemptedSinceStep];
    this.#ended = [];
    this.#preemptedSinceStep = [];
    return { step, copies, slice, rows, ended, preempted };
  }

  /** A slice for this step, of a context that decodes would have to wait for if it came whole. */
  #nextSlice(ready: readonly SequenceState[], batch: StepBatch): ScheduledSlice | null {
    const slices = this.#slices;
    if (slices === null || batch.hasContext) return null;
    const unread = ready.find(
      (sequence) =>
        sequence.computed < sequence.whole &&
        !slices.has(sequence.id) &&
        this.#running.has(sequence.id) &&
        !this.#sharedPrompts.waits(sequence),
    );
    if (slices.count === 0 && unread === undefined) return null;
    if (unread !== undefined && !batch.limits.wholeContexts && slices.hasRoom && this.#drawContext(unread)) {
      slices.begin(unread.id, unread.whole);
    }
    const { microBatches } = batch.limits;
    const crowded = this.#someDecode();
    // There could be one in every step for ever, and nothing would be measured. A step without rows tells nothing.
    const owesPlainStep = this.#timing.lacksPlainSteps && this.#lastSliced === this.#lastStep;
    if (crowded && owesPlainStep && batch.size.rows > 0) return null;
    const limits = {
      crowded,
      microBatches,
      workOf: (stage: number) => this.#timing.sliceWork({ has: batch.size, stage, microBatches }),
    };
    const slice = slices.next(limits, (id) => this.#running.get(id)!.afterStep !== "go on");
    if (slice === null) return null;
    const sequence = this.#running.get(slice.sequence)!;
    sequence.inStep = this.#lastStep + 1;
    const first = sequence.announced === 0;
    const newBlocks = sequence.blocks.slice(sequence.announced);
    sequence.announced = sequence.blocks.length;
    const { whole: rowCount } = sequence;
    const last = slice.layerEnd === slices.layerCount;
    if (last) {
      sequence.computed = rowCount;
      sequence.sent = rowCount;
    }
    const tokens = first ? sequence.tokens.slice(0, rowCount) : [];
    return { ...slice, rowCount, tokens, newBlocks, first, last };
  }

  /** Somebody waits for the next token of a sequence whose context has been read. */
  #someDecode(): boolean {
    for (const { generates, afterStep, computed, whole } of this.#running.values()) {
      if (generates && afterStep === "go on" && computed > 0 && computed >= whole) return true;
    }
    return false;
  }

  /** Blocks for a context. @returns false when it has to wait for them. */
  #drawContext(sequence: SequenceState): boolean {
    if (!this.#draw(sequence, this.#blocks.countFor(sequence.whole))) return false;
    this.#charges.computed(sequence, 0, sequence.whole);
    return true;
  }

  #chooseMicroBatches(): number {
    const running = this.#running.size;
    if (running === 0) return 1;
    const { microBatches, stageCount } = this.#limits;
    const wanted =
      microBatches ?? this.#timing.microBatches({ running, context: this.#context }) ?? stageCount;
    return Math.max(1, Math.min(wanted, running, maxMicroBatchesInFlight));
  }

  /** Sequences and decodes are divided evenly: each micro-batch reads the weights, however few rows it has. */
  #newBatch({ decoding, interactiveDecoding }: Survey<SequenceState>): StepBatch {
    const microBatches = this.#target;
    const inFlight = [...this.#steps.values()];
    const sequences = inFlight.map((step) => step.sequences.length);
    const decodes = inFlight.map((step) => step.decodes);
    return new StepBatch({
      rows: this.#limits.maxStepRows,
      share: evenShare(this.#running.size, microBatches, sequences),
      decodeShare: evenShare(decoding, microBatches, decodes),
      microBatches,
      decoding: interactiveDecoding,
      // Nobody's next token waits for it.
      wholeContexts: this.#slices === null || (this.#slices.count === 0 && !this.#someDecode()),
    });
  }

  /**
   * Waiting sequences start, each in its turn, while the pool has the blocks of their tokens, and of what they and
   * the running ones are taken to need for their replies. That is less than they may need: when blocks run out, the
   * youngest sequence of the lowest class gives its own to those before it.
   */
  #admit(): void {
    for (let next = this.#waiting.first(); next !== null; next = this.#waiting.first()) {
      const { id, what } = next;
      const reservation = this.#blocks.countFor(what.tokens.length);
      const growth = this.#forecast.growthOf({ ...what, blocks: [], reservation });
      if (!this.#makeRoom(what, reservation + growth)) return;
      if (!this.#pool.reserve(reservation)) return;
      this.#start(id, what, reservation);
    }
  }

  /** Sequences of later classes give their blocks to it, at once or when the step they are in has come back. */
  #makeRoom({ class: of }: Submitted, blocks: number): boolean {
    const growthOf = (sequence: SequenceState) => this.#forecast.growthOf(sequence);
    // With nobody beside it, it needs no more than there is.
    while (this.#running.size > 0) {
      const { available } = this.#pool;
      const room = roomFor({ running: this.#running.values(), class: of, blocks, available, growthOf });
      if (room === "yes") return true;
      if (room === "later") return false;
      this.#giveUp(room);
    }
    return true;
  }

  #start(id: SequenceId, submitted: Submitted, reservation: number): void {
    const tab = this.#waiting.remove(id)!;
    const prepaid = this.#charges.admit(tab, submitted);
    this.#runningOf[submitted.class]++;
    const node = this.#blocks.root(submitted);
    const sequence = begin(id, submitted, { tab, prepaid, node, reservation });
    this.#running.set(id, sequence);
    this.#sharedPrompts.add(sequence);
  }

  /** @returns null when it has to wait, for blocks or because other prompts fill the step. */
  #schedule(sequence: SequenceState, batch: StepBatch): ScheduledRows | null {
    this.#blocks.takeOver(sequence);
    const start = sequence.computed;
    const left = sequence.tokens.length - start;
    const whole = start < sequence.whole ? sequence.whole : 0;
    const most = Math.min(left - whole, this.#limits.prefillChunk, batch.budget);
    const isChunk = whole === 0 && left > 1;
    const count = whole + (isChunk ? this.#chunkRows(sequence.class, start, most, batch) : most);
    if (count === 0) return null;
    const { blocks, announced } = sequence;
    if (!this.#draw(sequence, this.#blocks.countFor(start + count) - blocks.length)) return null;
    const rows = {
      sequence: sequence.id,
      first: announced === 0,
      reused: start - sequence.sent,
      start,
      tokens: count === 1 ? [sequence.tokens[start]!] : sequence.tokens.slice(start, start + count),
      newBlocks: announced === blocks.length ? noBlocks : blocks.slice(announced),
      sample: sequence.generates && count === left,
      draftRows: 0,
    };
    this.#charges.computed(sequence, start, start + count);
    sequence.computed = start + count;
    sequence.sent = sequence.computed;
    sequence.announced = blocks.length;
    this.#blocks.makeKnown(sequence);
    return rows;
  }

  #chunkRows(of: RequestClass, start: number, most: number, batch: StepBatch): number {
    return this.#timing.chunkRows({
      has: batch.size,
      start,
      most,
      first: this.#limits.prefillChunk,
      microBatches: batch.limits.microBatches,
      alone: this.#running.size === 1,
      decoding: batch.limits.decoding,
      mayBeNone: batch.hasPrompt,
      fills: of === "batch" && this.#runningOf.interactive > 0,
    });
  }

  /**
   * More blocks: from its reservation, then from what is free, then from sequences behind it.
   * @returns false when it must wait for them.
   */
  #draw(sequence: SequenceState, count: number): boolean {
    if (count <= 0) return true;
    const reserved = Math.min(count, sequence.reservation);
    while (count - reserved > this.#pool.available) {
      if (!this.#preemptBehind(sequence)) return false;
    }
    sequence.reservation -= reserved;
    sequence.blocks.push(...this.#pool.take(reserved));
    if (count > reserved) sequence.blocks.push(...(this.#pool.grow(count - reserved) ?? []));
    return true;
  }

  /** @returns false when nobody behind the sequence has blocks to give now. */
  #preemptBehind(sequence: SequenceState): boolean {
    let last = sequence;
    for (const other of this.#running.values()) {
      if (other.afterStep !== "go on") return false; // its blocks come back soon
      if (isBehind(other, last)) last = other;
    }
    return last !== sequence && this.#giveUp(last);
  }

  /** @returns false when its blocks come back only after the step that it travels in. */
  #giveUp(sequence: SequenceState): boolean {
    if (sequence.inStep === null) {
      this.#preempt(sequence);
      return true;
    }
    sequence.afterStep = "wait";
    return false;
  }

  /** Its blocks go to others; it waits and is computed again, from the tokens that it has. */
  #preempt(sequence: SequenceState): void {
    this.#free(sequence);
    this.#preemptedSinceStep.push(sequence.id);
    this.#waiting.putBack(sequence.id, sequence.tab, sequence.order, submittedAgain(sequence));
  }

  /**
   * Guesses travel behind the decodes of a step, as far as they pay and its budget reaches.
   * @returns how many rows of them are expected to be kept.
   */
  #addDrafts(rows: readonly ScheduledRows[], batch: StepBatch): number {
    if (this.#drafts === null) return 0;
    const sequenceOf = (id: SequenceId) => this.#running.get(id)!;
    const spareBlocks = this.#pool.available >= this.#running.size;
    const inFlight = [...this.#steps.values()];
    const { drafts, kept } = this.#drafts.plan({ rows, inFlight, batch, sequenceOf, spareBlocks });
    for (const { entry, sequence, tokens } of drafts) {
      this.#addDraft(entry, sequence, tokens);
      batch.addDraft(sequence.computed, tokens.length);
    }
    return kept;
  }

  /**
   * Its rows are not counted as computed: the next rows begin behind those that held, and overwrite the others.
   * A block of rows that did not hold stays with the sequence for its next ones.
   */
  #addDraft(entry: ScheduledRows, sequence: SequenceState, draft: readonly number[]): void {
    const missing = this.#blocks.countFor(sequence.computed + draft.length) - sequence.blocks.length;
    if (!this.#draw(sequence, Math.max(0, missing))) throw new Error("Scheduler: no block for a draft");
    entry.newBlocks = [...entry.newBlocks, ...sequence.blocks.slice(sequence.announced)];
    sequence.announced = sequence.blocks.length;
    entry.tokens.push(...draft);
    entry.draftRows = draft.length;
  }

  /** The newest token of a sequence may have had a row already, as the next one of its draft. */
  #settleDraft(sequence: SequenceState, token: number): void {
    if (this.#drafts?.settle(sequence, token) !== true) return;
    sequence.computed++;
    sequence.sent = sequence.computed;
    this.#blocks.makeKnown(sequence);
  }

  /** Marks a sequence as travelling and puts it behind the others, so that none is passed over for ever. */
  #depart(sequence: SequenceState, step: number): void {
    sequence.inStep = step;
    this.#running.delete(sequence.id);
    this.#running.set(sequence.id, sequence);
  }

  #end(sequence: SequenceState): void {
    if (sequence.generates) this.#forecast.ended(sequence.tokens.length - sequence.promptLength);
    this.#free(sequence);
  }

  #free(sequence: SequenceState): void {
    this.#running.delete(sequence.id);
    this.#slices?.drop(sequence.id);
    this.#sharedPrompts.remove(sequence);
    if (sequence.copy !== null) this.#pool.release([sequence.copy.from], 0);
    this.#runningOf[sequence.class]--;
    this.#charges.leave(sequence);
    this.#pool.release(sequence.blocks, sequence.reservation);
    this.#ended.push(sequence.id);
  }
}
