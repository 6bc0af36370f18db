/**
 * The books of the KV cache: which block ids are free, held or kept. Workers hold the memory, every stage under
 * the same ids. A sequence reserves the blocks of its prompt at admission; ids are drawn from the reservation
 * only when its tokens reach them. What its reply needs is drawn from what nobody has reserved.
 *
 * A full block of a causal sequence is known by its tokens and all before them. Sequences that begin alike share
 * it; when the last one lets go it is kept, until its memory is needed: the one longest unused goes first.
 */
import { kvBlockSize } from "../../common/limits.js";

/** Of so many token slots. */
export const blocksFor = (tokens: number): number => Math.ceil(tokens / kvBlockSize);

/** A full block's tokens and all before them; the root stands for none yet. Never used again once forgotten. */
export interface PrefixNode {
  readonly id: string;
}

interface CachedNode extends PrefixNode {
  readonly key: string;
  readonly block: number;
}

export class BlockPool {
  readonly blockCount: number;
  readonly #free: number[];
  /** Sequences that hold a block. */
  readonly #holders: Int32Array;
  readonly #nodes = new Map<string, CachedNode>();
  readonly #nodeOfBlock = new Map<number, CachedNode>();
  /** Blocks that no sequence holds and that may be shared again; the longest unused first. */
  readonly #kept = new Set<number>();
  #reserved = 0;
  #nodeCount = 0;

  constructor(blockCount: number) {
    this.blockCount = blockCount;
    this.#free = Array.from({ length: blockCount }, (_, index) => blockCount - 1 - index);
    this.#holders = new Int32Array(blockCount);
  }

  /** Blocks that sequences hold now. */
  get used(): number {
    return this.blockCount - this.#free.length - this.#kept.size;
  }

  /** Blocks that are only kept in case a sequence begins alike. */
  get kept(): number {
    return this.#kept.size;
  }

  /** Blocks that a new sequence may still reserve. */
  get available(): number {
    return this.#free.length + this.#kept.size - this.#reserved;
  }

  /** @returns false when fewer than `count` blocks are available; nothing is reserved then. */
  reserve(count: number): boolean {
    if (count > this.available) return false;
    this.#reserved += count;
    return true;
  }

  /** Draws `count` ids from an earlier reservation. */
  take(count: number): number[] {
    if (count > this.#reserved || count > this.#free.length + this.#kept.size) {
      throw new Error(`BlockPool.take(${count}): ${this.#reserved} reserved, ${this.#free.length} free`);
    }
    this.#reserved -= count;
    return Array.from({ length: count }, () => {
      const block = this.#free.pop() ?? this.#evict();
      this.#holders[block] = 1;
      return block;
    });
  }

  /** Draws `count` ids that nobody has reserved, or returns null. */
  grow(count: number): number[] | null {
    return this.reserve(count) ? this.take(count) : null;
  }

  /** Gives back ids and what is left of the reservation they came from. */
  release(blocks: readonly number[], unusedReservation: number): void {
    this.#reserved -= unusedReservation;
    if (this.#reserved < 0) throw new Error("BlockPool.release: more given back than was reserved");
    // The end of a sequence is of less use than its beginning: it goes first.
    for (let index = blocks.length - 1; index >= 0; index--) this.#letGo(blocks[index]!);
  }

  /** Where the chain of a sequence begins: sequences of different tenants or salts share nothing. */
  root(tenant: string, salt: string): PrefixNode {
    return { id: `root ${JSON.stringify([tenant, salt])}` };
  }

  /** Whether a block has these tokens behind `parent`; nothing changes. @returns where the chain goes on. */
  find(parent: PrefixNode, tokens: readonly number[]): PrefixNode | null {
    return this.#nodes.get(keyOf(parent, tokens)) ?? null;
  }

  /**
   * The block of these tokens behind `parent`, held from now on in place of one that was reserved.
   * @returns null when there is none.
   */
  share(parent: PrefixNode, tokens: readonly number[]): { block: number; node: PrefixNode } | null {
    const node = this.#nodes.get(keyOf(parent, tokens));
    if (node === undefined) return null;
    if (this.#reserved < 1) throw new Error("BlockPool.share: no block was reserved");
    this.#reserved -= 1;
    this.#kept.delete(node.block);
    this.#holders[node.block]! += 1;
    return { block: node.block, node };
  }

  /** One more holder of a held block. */
  hold(block: number): void {
    if (this.#holders[block] === 0) throw new Error(`BlockPool.hold: block ${block} is not held`);
    this.#holders[block]! += 1;
  }

  /** Another sequence's block, in place of one that was reserved. */
  holdReserved(block: number): void {
    if (this.#reserved < 1) throw new Error("BlockPool.holdReserved: no block was reserved");
    this.#reserved -= 1;
    this.hold(block);
  }

  /** Makes a held, full block known by its tokens. @returns where the chain goes on. */
  know(parent: PrefixNode, tokens: readonly number[], block: number): PrefixNode {
    const key = keyOf(parent, tokens);
    const known = this.#nodes.get(key);
    // Another block has the same tokens already: the chain goes on from there, and this one stays unknown.
    if (known !== undefined) return known;
    const node = { id: `${this.#nodeCount++}`, key, block };
    this.#nodes.set(key, node);
    this.#nodeOfBlock.set(block, node);
    return node;
  }

  #letGo(block: number): void {
    const holders = --this.#holders[block]!;
    if (holders < 0) throw new Error(`BlockPool.release: block ${block} was not held`);
    if (holders > 0) return;
    if (this.#nodeOfBlock.has(block)) this.#kept.add(block);
    else this.#free.push(block);
  }

  #evict(): number {
    const [block] = this.#kept;
    if (block === undefined) throw new Error("BlockPool: nothing is free and nothing is kept");
    this.#kept.delete(block);
    const node = this.#nodeOfBlock.get(block)!;
    this.#nodes.delete(node.key);
    this.#nodeOfBlock.delete(block);
    return block;
  }
}

const keyOf = (parent: PrefixNode, tokens: readonly number[]): string => `${parent.id}|${tokens.join(",")}`;
