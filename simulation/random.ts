/** Random numbers from a seed: the same on every machine. */

const twoTo32 = 2 ** 32;

export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A generator of its own, so that what one part draws does not move what another one does. */
  fork(name: string): Random {
    let hash = this.#state ^ 0x9e3779b9;
    for (let index = 0; index < name.length; index++) {
      hash = Math.imul(hash ^ name.charCodeAt(index), 0x01000193) >>> 0;
    }
    return new Random(hash);
  }

  /** 0 <= x < 1 (mulberry32). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / twoTo32;
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  /** An integer from `least` to `most`. */
  integer(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  between(least: number, most: number): number {
    return least + this.next() * (most - least);
  }

  /** Of a distribution without memory. */
  exponential(mean: number): number {
    return -mean * Math.log(1 - this.next());
  }

  /** @param values Not empty. */
  pick<T>(values: readonly T[]): T {
    return values[this.integer(0, values.length - 1)]!;
  }
}
