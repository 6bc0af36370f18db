/**
 * What a step asks of one stage: bytes that are read and operations that are done. Of a group of matrices the bytes
 * are read once for all rows; of attention they are the keys and values that the rows see.
 */
import type { LayerRange } from "../../coordinator/placement/cut.js";
import type { LayerWork, SimulatedModel } from "./model-work.js";
import { type SliceWork, type StepWork, sizeOf } from "./step-work.js";

/** Experts that at least one of so many rows is sent to, if rows choose independently. */
export const expertsRead = (count: number, perToken: number, rows: number): number =>
  count * (1 - (1 - perToken / count) ** rows);

/** Of a group of matrices, or of attention, so many times. */
export type Add = (bytes: number, flops: number, count: number) => void;

/** All layers of one kind on a stage. */
interface Kind {
  work: LayerWork;
  count: number;
}

export class StageWork {
  readonly #model: SimulatedModel;
  readonly #layers: LayerRange;
  readonly #kinds: readonly Kind[];
  readonly #hasHead: boolean;

  constructor(model: SimulatedModel, layers: LayerRange) {
    this.#model = model;
    this.#layers = layers;
    this.#kinds = kindsOf(model.layers, layers);
    this.#hasHead = layers.layerEnd === model.layers.length;
  }

  /** Logits are computed here, of so many rows. */
  sampled(work: StepWork): number {
    return this.#hasHead ? work.sampled : 0;
  }

  /** Layers that the step's rows pass here, and once more those that the rows of its slice pass. */
  layersPassed(work: StepWork): number {
    const { layerBegin, layerEnd } = this.#layers;
    return (work.rows > 0 ? layerEnd - layerBegin : 0) + this.sliceLayers(work.slice);
  }

  /** Layers of this stage that the slice's rows pass. */
  sliceLayers(slice: SliceWork | null): number {
    const { layerBegin, layerEnd } = this.#sliceRange(slice);
    return Math.max(0, layerEnd - layerBegin);
  }

  each(work: StepWork, add: Add): void {
    if (work.rows > 0) this.#eachOf(this.#kinds, work, add);
    const { bytes, flopsPerRow } = this.#model.head;
    const sampled = this.sampled(work);
    if (sampled > 0) add(bytes, sampled * flopsPerRow, 1);
    if (work.slice === null || this.sliceLayers(work.slice) === 0) return;
    this.#eachOf(kindsOf(this.#model.layers, this.#sliceRange(work.slice)), sizeOf([work.slice]), add);
  }

  #eachOf(
    kinds: readonly Kind[],
    { rows, keyPairs, keyReads }: Pick<StepWork, "rows" | "keyPairs" | "keyReads">,
    add: Add,
  ): void {
    const { keyFlops, kvBytesPerToken } = this.#model;
    for (const { work, count } of kinds) {
      add(keyReads * kvBytesPerToken, keyPairs * keyFlops, count);
      for (const { bytes, flopsPerRow } of work.matrices) add(bytes, rows * flopsPerRow, count);
      if (work.experts === null) continue;
      const { bytes, flopsPerRow, count: all, perToken } = work.experts;
      add((bytes * expertsRead(all, perToken, rows)) / all, rows * flopsPerRow, count);
    }
  }

  #sliceRange(slice: SliceWork | null): LayerRange {
    if (slice === null) return { layerBegin: 0, layerEnd: 0 };
    const { layerBegin, layerEnd } = this.#layers;
    return {
      layerBegin: Math.max(slice.layerBegin, layerBegin),
      layerEnd: Math.min(slice.layerEnd, layerEnd),
    };
  }
}

function kindsOf(layers: readonly LayerWork[], { layerBegin, layerEnd }: LayerRange): Kind[] {
  const counts = new Map<LayerWork, number>();
  for (const work of layers.slice(layerBegin, layerEnd)) counts.set(work, (counts.get(work) ?? 0) + 1);
  return [...counts].map(([work, count]) => ({ work, count }));
}
