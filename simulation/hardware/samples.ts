/** Percentiles of many times, of which at most so many are kept. */
import type { Random } from "../random.js";

/** Beyond it every new value takes the place of one drawn among them all: the same distribution. */
const samplesMax = 1_000_000;

export interface Percentiles {
  count: number;
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  max: number;
}

export class Samples {
  readonly #random: Random;
  readonly #values: number[] = [];
  #count = 0;
  #sum = 0;
  #max = 0;

  constructor(random: Random) {
    this.#random = random;
  }

  add(value: number): void {
    this.#count++;
    this.#sum += value;
    this.#max = Math.max(this.#max, value);
    if (this.#values.length < samplesMax) {
      this.#values.push(value);
      return;
    }
    const place = this.#random.integer(0, this.#count - 1);
    if (place < samplesMax) this.#values[place] = value;
  }

  /** null without a value. */
  get percentiles(): Percentiles | null {
    if (this.#count === 0) return null;
    const sorted = Float64Array.from(this.#values).sort();
    const at = (percent: number) => sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)]!;
    return {
      count: this.#count,
      mean: this.#sum / this.#count,
      p50: at(50),
      p90: at(90),
      p99: at(99),
      max: this.#max,
    };
  }
}
