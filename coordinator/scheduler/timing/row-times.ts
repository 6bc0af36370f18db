/**
 * How long decode steps of few rows take, by their exact number: kernels compute rows in tiles, so that a fourth row
 * may cost nothing and a fifth as much as four. The line of stage-fit.ts goes through the middle of such stairs,
 * which is good enough for prompts and not for a guess or two. Attention is left out, as the line has it.
 */
import { averaged } from "./average.js";

/** Beyond it stairs are lost in the sum. */
const mostRows = 32;
/** Steps that an average remembers. */
const memory = 32;
/** Of fewer steps nothing is believed. */
const leastSteps = 4;
/** What was measured longer ago is measured again. */
const keptSteps = 2_048;

interface Measured {
  steps: number;
  lastStep: number;
  us: number;
}

/** Of one stage. */
export class RowTimes {
  readonly #byRows = new Map<number, Measured>();
  #steps = 0;

  add(rows: number, us: number): void {
    this.#steps++;
    if (rows > mostRows) return;
    const found = this.#byRows.get(rows);
    const kept = found !== undefined && !this.#isOld(found) ? found : { steps: 0, us, lastStep: 0 };
    const steps = Math.min(kept.steps + 1, memory);
    this.#byRows.set(rows, { steps, lastStep: this.#steps, us: averaged(kept.us, us, steps) });
  }

  /**
   * Where this number was not measured: between its neighbours, or as many rows away from the nearest one.
   * @param rowUs Of a row, by the line.
   * @returns null for more rows, and while nothing was measured.
   */
  us(rows: number, rowUs: number): number | null {
    if (rows > mostRows) return null;
    let below: [number, number] | null = null;
    let above: [number, number] | null = null;
    for (const [count, measured] of this.#byRows) {
      if (measured.steps < leastSteps || this.#isOld(measured)) continue;
      if (count <= rows && (below === null || count > below[0])) below = [count, measured.us];
      if (count >= rows && (above === null || count < above[0])) above = [count, measured.us];
    }
    if (below === null && above === null) return null;
    if (below === null) return Math.max(0, above![1] - (above![0] - rows) * rowUs);
    if (above === null || above[0] === below[0]) return below[1] + (rows - below[0]) * rowUs;
    const part = (rows - below[0]) / (above[0] - below[0]);
    return below[1] + part * (above[1] - below[1]);
  }

  #isOld({ lastStep }: Measured): boolean {
    return this.#steps - lastStep > keptSteps;
  }
}
