/**
 * How long each stage takes for a step, learned from finished ones: t = base + row * rows + key * keys, with
 * the rows and keys of step-size.ts. The last part is what attention costs, so that a late chunk of a long
 * prompt costs more than an early one.
 *
 * A pipeline sees the same few sizes again and again, often one for minutes. A running regression would forget
 * there what the others were; so measurements are averaged per kind of step (rows and context by powers of
 * two), and the line is drawn through these averages. A kind that does not come any more loses weight slowly.
 */
import { averaged } from "./average.js";
import { leastSquares } from "./least-squares.js";
import type { StepSize } from "./step-size.js";

/** Of one stage, in microseconds; none is negative. */
export interface StageTime {
  baseUs: number;
  rowUs: number;
  keyUs: number;
}

/** Steps that the average of a kind remembers. */
const kindMemory = 32;
/** After so many steps without it, a kind counts half. */
const halfLifeSteps = 2_048;
/** It never counts less than this: it may be all that is known of large steps. */
const leastWeight = 1e-3;

/** Steps of about the same size. */
interface Kind {
  steps: number;
  lastStep: number;
  rows: number;
  keys: number;
  /** Per stage. */
  us: number[];
}

export class StageFit {
  readonly #stageCount: number;
  /** At most 12 by 18: rows and context by powers of two. */
  readonly #kinds = new Map<number, Kind>();
  #steps = 0;

  constructor(stageCount: number) {
    this.#stageCount = stageCount;
  }

  /** @param stageUs Compute time of the step, one per stage. */
  add({ rows, keys }: StepSize, stageUs: readonly number[]): void {
    if (rows < 1) return;
    this.#steps++;
    const name = Math.floor(Math.log2(rows)) * 64 + Math.floor(Math.log2(1 + keys / rows));
    const kind = this.#kinds.get(name) ?? { steps: 0, lastStep: 0, rows, keys, us: [...stageUs] };
    this.#kinds.set(name, kind);
    kind.steps = Math.min(kind.steps + 1, kindMemory);
    kind.lastStep = this.#steps;
    const weight = 1 / kind.steps;
    kind.rows += weight * (rows - kind.rows);
    kind.keys += weight * (keys - kind.keys);
    for (let stage = 0; stage < this.#stageCount; stage++) {
      kind.us[stage] = averaged(kind.us[stage]!, stageUs[stage]!, kind.steps);
    }
  }

  /** The line through all averages, per stage. */
  fit(): StageTime[] {
    const kinds = [...this.#kinds.values()];
    const weights = kinds.map(({ steps, lastStep }) => {
      const faded = 2 ** ((lastStep - this.#steps) / halfLifeSteps);
      return steps * Math.max(leastWeight, faded);
    });
    const sizes = kinds.map(({ rows, keys }) => [1, rows, keys]);
    return Array.from({ length: this.#stageCount }, (_, stage) => {
      const points = kinds.map(({ us }, index) => ({ x: sizes[index]!, y: us[stage]! }));
      const [baseUs = 0, rowUs = 0, keyUs = 0] = leastSquares(points, weights);
      return { baseUs, rowUs, keyUs };
    });
  }
}
