/**
 * A run of symbols whose neighbours are merged, the pair of lowest rank first and of equal ranks the
 * leftmost: the step that every byte-pair encoding shares. Possible merges wait in a heap and the symbols
 * form a linked list, so that a run of a million symbols takes no longer than its share.
 */
import { MergeQueue } from "./merge-queue.js";
import type { PairTable } from "./pair-table.js";

export class SymbolRun {
  readonly #merges: PairTable;
  readonly #rankOf: Int32Array;
  readonly #queue = new MergeQueue();

  // Symbols, -1 once merged into the left neighbour, and links to both neighbours.
  #symbols = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #length = 0;

  /**
   * @param merges (left symbol, right symbol) -> the symbol that they make.
   * @param rankOf Symbol that two others make -> rank, the lowest of which is merged first.
   */
  constructor(merges: PairTable, rankOf: Int32Array) {
    this.#merges = merges;
    this.#rankOf = rankOf;
  }

  append(symbol: number): void {
    const index = this.#length++;
    if (index === this.#symbols.length) {
      this.#symbols = grown(this.#symbols);
      this.#next = grown(this.#next);
      this.#previous = grown(this.#previous);
    }
    this.#symbols[index] = symbol;
    this.#next[index] = index + 1;
    this.#previous[index] = index - 1;
  }

  /**
   * Merges until nothing can be merged, hands the symbols left to `take` in order, and is empty again.
   * @param offered Told of each possible merge as it enters the heap.
   */
  drain(take: (symbol: number) => void, offered?: Offered): void {
    const length = this.#length;
    this.#length = 0;
    if (length > 1) this.#merge(length, offered);
    for (let index = 0; index < length; index = this.#next[index]!) take(this.#symbols[index]!);
  }

  #merge(length: number, offered: Offered | undefined): void {
    const [symbols, next, previous, queue] = [this.#symbols, this.#next, this.#previous, this.#queue];
    for (let index = 1; index < length; index++) this.#offer(index - 1, index, offered);
    while (queue.pop()) {
      const { left, right, merged } = queue;
      // A neighbour may have been merged elsewhere since; the pair as it is now was offered then.
      if (symbols[left] === -1 || symbols[right] === -1) continue;
      if (this.#merges.get(symbols[left]!, symbols[right]!) !== merged) continue;
      symbols[left] = merged;
      symbols[right] = -1;
      const after = next[right]!;
      next[left] = after;
      if (after < length) previous[after] = left;
      if (previous[left]! >= 0) this.#offer(previous[left]!, left, offered);
      if (after < length) this.#offer(left, after, offered);
    }
  }

  #offer(left: number, right: number, offered: Offered | undefined): void {
    const [a, b] = [this.#symbols[left]!, this.#symbols[right]!];
    const merged = this.#merges.get(a, b);
    if (merged < 0) return;
    this.#queue.push(this.#rankOf[merged]!, left, right, merged);
    offered?.(a, b, merged);
  }
}

export type Offered = (left: number, right: number, merged: number) => void;

function grown(array: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(array.length * 2);
  larger.set(array);
  return larger;
}
