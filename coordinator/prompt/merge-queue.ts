/**
 * The merges that are possible now, best first: a binary heap in typed arrays. The best merge has the
 * highest score; among equals the leftmost one wins, as in SentencePiece.
 */
export class MergeQueue {
  /** rank * 2^31 + left, exact in a double while rank < 2^22. */
  #keys = new Float64Array(256);
  #right = new Int32Array(256);
  #merged = new Int32Array(256);
  #size = 0;

  /** Of the merge that pop() took out. */
  left = 0;
  right = 0;
  merged = 0;

  /** @param rank Of the score, 0 for the highest. @param left Index of the left symbol. */
  push(rank: number, left: number, right: number, merged: number): void {
    if (this.#size === this.#keys.length) this.#grow();
    const [keys, rights, mergeds] = [this.#keys, this.#right, this.#merged];
    const key = rank * 2 ** 31 + left;
    let hole = this.#size++;
    while (hole > 0) {
      const parent = (hole - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[hole] = keys[parent]!;
      rights[hole] = rights[parent]!;
      mergeds[hole] = mergeds[parent]!;
      hole = parent;
    }
    keys[hole] = key;
    rights[hole] = right;
    mergeds[hole] = merged;
  }

  /** Takes the best merge out into left, right and merged; false when none is left. */
  pop(): boolean {
    if (this.#size === 0) return false;
    const [keys, rights, mergeds] = [this.#keys, this.#right, this.#merged];
    this.left = keys[0]! % 2 ** 31;
    this.right = rights[0]!;
    this.merged = mergeds[0]!;
    const last = --this.#size;
    const key = keys[last]!;
    let hole = 0;
    for (let child = 1; child < last; child = 2 * hole + 1) {
      if (child + 1 < last && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= key) break;
      keys[hole] = keys[child]!;
      rights[hole] = rights[child]!;
      mergeds[hole] = mergeds[child]!;
      hole = child;
    }
    keys[hole] = key;
    rights[hole] = rights[last]!;
    mergeds[hole] = mergeds[last]!;
    return true;
  }

  #grow(): void {
    const [keys, right, merged] = [this.#keys, this.#right, this.#merged];
    this.#keys = new Float64Array(keys.length * 2);
    this.#right = new Int32Array(keys.length * 2);
    this.#merged = new Int32Array(keys.length * 2);
    this.#keys.set(keys);
    this.#right.set(right);
    this.#merged.set(merged);
  }
}
