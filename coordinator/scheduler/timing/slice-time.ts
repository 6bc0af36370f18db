/** What slices of contexts take, per row and layer, learned from finished ones: one figure per stage. */

/** Layers of one stage for all rows of one context. */
export interface SliceSize {
  /** Number of the stage. */
  stage: number;
  /** Rows times layers. */
  work: number;
}

/** Slices that the average remembers. */
const memory = 16;
/** One that took so many times the average was disturbed: it counts as that much. */
const outlierRatio = 3;

export class SliceTime {
  readonly #stages = new Map<number, { us: number; slices: number }>();

  /** Microseconds per row and layer; null before the first slice on that stage. */
  us(stage: number): number | null {
    return this.#stages.get(stage)?.us ?? null;
  }

  /** @param us Compute time of the slice alone. */
  add({ stage, work }: SliceSize, us: number): void {
    if (work < 1) return;
    const known = this.#stages.get(stage) ?? { us: Number.POSITIVE_INFINITY, slices: 0 };
    const slices = Math.min(known.slices + 1, memory);
    const sample = Math.min(Math.max(0, us) / work, known.us * outlierRatio);
    this.#stages.set(stage, { us: slices === 1 ? sample : known.us + (sample - known.us) / slices, slices });
  }
}
