/**
 * Contexts of a prefix-LM that are read in slices: which layers of which of them travel in the next step. A
 * context is read as a whole, so it cannot be cut into rows as a causal prompt is; cut into layers it holds the
 * decodes of others up no longer than a chunk of prefill does. Steps pass every stage in the order sent, so a
 * slice may follow before the one in front of it has come back. Pure.
 */
import type { SequenceId } from "../../common/ids.js";
import type { LayerRange } from "../placement/cut.js";
import type { SliceSize } from "./timing/slice-time.js";

/** Layers of one stage for all rows of one context. */
export interface Slice extends LayerRange {
  sequence: SequenceId;
}

/** A slice as it travels in a step, in front of the step's rows. */
export interface ScheduledSlice extends Slice {
  /** Rows of the context. */
  rowCount: number;
  /** The context's tokens, with its first slice; else empty. */
  tokens: number[];
  /** Block ids to append to the sequence's block table, with its first slice; else empty. */
  newBlocks: number[];
  /** The first rows of the sequence. */
  first: boolean;
  /** Layers of the model end here: what follows the context may read it. */
  last: boolean;
}

interface Context {
  rows: number;
  /** The first one that no slice was sent for. */
  layer: number;
}

/** What bounds a slice. */
export interface SliceLimits {
  /** Others decode, and wait for it. Otherwise a slice is all of the stage that is left. */
  crowded: boolean;
  /** How many may be in flight. */
  microBatches: number;
  /** Rows times layers that may be in flight on a stage; null: a chunk's. */
  workOf(stage: number): number | null;
}

/**
 * Layers of a slice: the work that may be in flight on a stage is shared out over the micro-batches, of which
 * each may bring a slice; at least one layer.
 * @param rows Of the context.
 * @param work Rows times layers.
 */
export function sliceLayers(rows: number, work: number, microBatches: number): number {
  return Math.max(1, Math.floor(work / (rows * microBatches)));
}

export class ContextSlices {
  /** Layers of every stage. */
  readonly #stages: readonly LayerRange[];
  readonly #chunkRows: number;
  /** In the order in which they began, so that none is in a stage behind one that began after it. */
  readonly #contexts = new Map<SequenceId, Context>();
  /** By step, in the order sent. */
  readonly #inFlight = new Map<number, SliceSize & { sequence: SequenceId }>();

  /** @param chunkRows Rows of a chunk of causal prefill: the measure of a slice. */
  constructor(stages: readonly LayerRange[], chunkRows: number) {
    this.#stages = stages;
    this.#chunkRows = chunkRows;
  }

  get layerCount(): number {
    return this.#stages.at(-1)!.layerEnd;
  }

  /** Contexts that have begun and of which layers are left. */
  get count(): number {
    return this.#contexts.size;
  }

  /** The first stage keeps no rows: another context may begin there. */
  get hasRoom(): boolean {
    return this.#isFree(this.#stages[0]!);
  }

  has(sequence: SequenceId): boolean {
    return this.#contexts.has(sequence);
  }

  begin(sequence: SequenceId, rows: number): void {
    if (!this.hasRoom) throw new Error("ContextSlices.begin: the first stage keeps another context's rows");
    this.#contexts.set(sequence, { rows, layer: 0 });
  }

  /**
   * The next slice, of the context that is furthest ahead and can go on. While others decode, the slices in
   * flight on a stage, and those of one context on all stages, stay within the limit, or are one: a decode
   * behind them waits for them one after the other. Those of several contexts run at the same time.
   * @param stopped Contexts that do not go on.
   */
  next(limits: SliceLimits, stopped: (sequence: SequenceId) => boolean): Slice | null {
    for (const [sequence, context] of this.#contexts) {
      if (stopped(sequence)) continue;
      const layerEnd = this.#endOf(sequence, context, limits);
      if (layerEnd !== null) return { sequence, layerBegin: context.layer, layerEnd };
    }
    return null;
  }

  /** A slice left in a step; with the model's last layer its context is read. @returns its size. */
  sent(step: number, { sequence, layerBegin, layerEnd }: Slice): SliceSize {
    const context = this.#contexts.get(sequence)!;
    const size = { stage: this.#stageOf(layerBegin), work: context.rows * (layerEnd - layerBegin) };
    this.#inFlight.set(step, { ...size, sequence });
    context.layer = layerEnd;
    if (layerEnd === this.layerCount) this.#contexts.delete(sequence);
    return size;
  }

  /** A step has come back. */
  complete(step: number): void {
    this.#inFlight.delete(step);
  }

  /** Its rows are dropped by the stages, in front of any slice that is sent from now on. */
  drop(sequence: SequenceId): void {
    this.#contexts.delete(sequence);
  }

  /** Where the context's next slice ends; null when it has to wait. */
  #endOf(sequence: SequenceId, { rows, layer }: Context, limits: SliceLimits): number | null {
    const { crowded, microBatches, workOf } = limits;
    const stage = this.#stageOf(layer);
    const { layerBegin, layerEnd } = this.#stages[stage]!;
    const left = layerEnd - layer;
    const most = workOf(stage) ?? this.#chunkRows * (layerEnd - layerBegin);
    const layers = crowded ? Math.min(left, sliceLayers(rows, most, microBatches)) : left;
    const before = this.#workInFlight(stage, sequence);
    if (crowded && before > 0 && before + rows * layers > most) return null;
    const next = this.#stages[stage + 1];
    if (layers === left && next !== undefined && !this.#isFree(next)) return null;
    return layer + layers;
  }

  #workInFlight(stage: number, sequence: SequenceId): number {
    let work = 0;
    for (const other of this.#inFlight.values()) {
      if (other.stage === stage || other.sequence === sequence) work += other.work;
    }
    return work;
  }

  /** No context's rows are in the stage, behind the slices sent so far. */
  #isFree({ layerBegin, layerEnd }: LayerRange): boolean {
    return [...this.#contexts.values()].every(({ layer }) => layer < layerBegin || layer >= layerEnd);
  }

  #stageOf(layer: number): number {
    return this.#stages.findIndex(({ layerEnd }) => layer < layerEnd);
  }
}
