/**
 * Contexts of a prefix-LM that are read in slices: which layers of which of them travel in the next step. A
 * context is read as a whole, so it cannot be cut into rows as a causal prompt is; cut into layers it holds the
 * decodes of others up no longer than a chunk of prefill does. Steps pass every stage in the order sent, so a
 * slice may follow before the one in front of it has come back. Pure.
 */
import type { SequenceId } from "../../common/ids.js";
import type { LayerRange } from "../placement/cut.js";

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

/**
 * Layers of the next slice: as much work as a chunk of causal prefill on the same stage, shared out over the
 * micro-batches in flight, of which each may bring one; at least one layer.
 * @param rows Of the context.
 * @param chunkRows Rows of a chunk.
 */
export function sliceLayers(
  rows: number,
  stageLayers: number,
  chunkRows: number,
  microBatches: number,
): number {
  return Math.max(1, Math.floor((chunkRows * stageLayers) / (rows * microBatches)));
}

export class ContextSlices {
  /** Layers of every stage. */
  readonly #stages: readonly LayerRange[];
  readonly #chunkRows: number;
  /** In the order in which they began, so that none is in a stage behind one that began after it. */
  readonly #contexts = new Map<SequenceId, Context>();
  /** By step, in the order sent: rows times layers of its slice, and on which stage. */
  readonly #inFlight = new Map<number, { stage: LayerRange; work: number }>();

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
   * The next slice, of the context that is furthest ahead and can go on.
   * @param crowded Others decode: the slices in flight on a stage stay below a chunk's work, or are one.
   *   Otherwise a slice is all of the stage that is left.
   * @param microBatches How many may be in flight.
   * @param stopped Contexts that do not go on.
   */
  next(crowded: boolean, microBatches: number, stopped: (sequence: SequenceId) => boolean): Slice | null {
    for (const [sequence, context] of this.#contexts) {
      if (stopped(sequence)) continue;
      const layerEnd = this.#endOf(context, crowded, microBatches);
      if (layerEnd !== null) return { sequence, layerBegin: context.layer, layerEnd };
    }
    return null;
  }

  /** A slice left in a step; with the model's last layer its context is read. */
  sent(step: number, { sequence, layerBegin, layerEnd }: Slice): void {
    const context = this.#contexts.get(sequence)!;
    const stage = this.#stageOf(layerBegin);
    this.#inFlight.set(step, { stage, work: context.rows * (layerEnd - layerBegin) });
    context.layer = layerEnd;
    if (layerEnd === this.layerCount) this.#contexts.delete(sequence);
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
  #endOf({ rows, layer }: Context, crowded: boolean, microBatches: number): number | null {
    const stage = this.#stageOf(layer);
    const stageLayers = stage.layerEnd - stage.layerBegin;
    const left = stage.layerEnd - layer;
    const layers = crowded
      ? Math.min(left, sliceLayers(rows, stageLayers, this.#chunkRows, microBatches))
      : left;
    if (crowded && !this.#hasTime(stage, rows * layers)) return null;
    const next = this.#stages.find(({ layerBegin }) => layerBegin === layer + layers);
    if (layers === left && next !== undefined && !this.#isFree(next)) return null;
    return layer + layers;
  }

  #hasTime(stage: LayerRange, work: number): boolean {
    let before = 0;
    for (const other of this.#inFlight.values()) if (other.stage === stage) before += other.work;
    return before === 0 || before + work <= this.#chunkRows * (stage.layerEnd - stage.layerBegin);
  }

  /** No context's rows are in the stage, behind the slices sent so far. */
  #isFree({ layerBegin, layerEnd }: LayerRange): boolean {
    return [...this.#contexts.values()].every(({ layer }) => layer < layerBegin || layer >= layerEnd);
  }

  #stageOf(layer: number): LayerRange {
    return this.#stages.find(({ layerEnd }) => layer < layerEnd)!;
  }
}
