/**
 * The books of the KV cache: which block ids are free. Workers hold the memory, every stage under
 * the same ids. A sequence reserves at admission what it can grow to, so a running sequence never
 * finds the pool empty; ids are drawn from the reservation only when its tokens reach them.
 */
export class BlockPool {
  readonly blockCount: number;
  readonly #free: number[];
  #reserved = 0;

  constructor(blockCount: number) {
    this.blockCount = blockCount;
    this.#free = Array.from({ length: blockCount }, (_, index) => blockCount - 1 - index);
  }

  /** Blocks that hold a sequence's tokens now. */
  get used(): number {
    return this.blockCount - this.#free.length;
  }

  /** Blocks that a new sequence may still reserve. */
  get available(): number {
    return this.#free.length - this.#reserved;
  }

  /** @returns false when fewer than `count` blocks are available; nothing is reserved then. */
  reserve(count: number): boolean {
    if (count > this.available) return false;
    this.#reserved += count;
    return true;
  }

  /** Draws `count` ids from an earlier reservation. */
  take(count: number): number[] {
    if (count > this.#reserved || count > this.#free.length) {
      throw new Error(`BlockPool.take(${count}): ${this.#reserved} reserved, ${this.#free.length} free`);
    }
    this.#reserved -= count;
    return this.#free.splice(this.#free.length - count, count).reverse();
  }

  /** Gives back ids and what is left of the reservation they came from. */
  release(blocks: readonly number[], unusedReservation: number): void {
    this.#reserved -= unusedReservation;
    for (let index = blocks.length - 1; index >= 0; index--) this.#free.push(blocks[index]!);
    if (this.#reserved < 0 || this.#free.length > this.blockCount) {
      throw new Error("BlockPool.release: more given back than was taken");
    }
  }
}
