/**
 * A map from two small whole numbers to one: open addressing in typed arrays. A JavaScript Map would
 * need one string or one large number per key, and encoding asks several times per character.
 */
export class PairTable {
  #left: Int32Array;
  #right: Int32Array;
  #value: Int32Array;
  #size = 0;

  /** @param expected Entries; the table grows beyond it. */
  constructor(expected = 1024) {
    const capacity = 2 ** Math.ceil(Math.log2(Math.max(16, expected * 2)));
    this.#left = new Int32Array(capacity);
    this.#right = new Int32Array(capacity);
    this.#value = new Int32Array(capacity).fill(-1);
  }

  /** @param value At least 0. */
  set(left: number, right: number, value: number): void {
    if (this.#size * 2 >= this.#value.length) this.#grow();
    const slot = this.#slot(left, right);
    if (this.#value[slot] === -1) this.#size++;
    this.#left[slot] = left;
    this.#right[slot] = right;
    this.#value[slot] = value;
  }

  /** -1 when absent. */
  get(left: number, right: number): number {
    return this.#value[this.#slot(left, right)]!;
  }

  /** Where the pair lies or would lie; the table is at most half full, so a free slot ends the walk. */
  #slot(left: number, right: number): number {
    const mask = this.#value.length - 1;
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    hash ^= hash >>> 15;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      if (this.#value[slot] === -1) return slot;
      if (this.#left[slot] === left && this.#right[slot] === right) return slot;
    }
  }

  #grow(): void {
    const [left, right, value] = [this.#left, this.#right, this.#value];
    this.#left = new Int32Array(value.length * 2);
    this.#right = new Int32Array(value.length * 2);
    this.#value = new Int32Array(value.length * 2).fill(-1);
    this.#size = 0;
    for (let slot = 0; slot < value.length; slot++) {
      if (value[slot] !== -1) this.set(left[slot]!, right[slot]!, value[slot]!);
    }
  }
}
