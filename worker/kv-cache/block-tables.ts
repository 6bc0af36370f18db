/**
 * The block tables of one stage in one epoch: which KV blocks each sequence has, in order of position.
 * The coordinator keeps the books and sends only what changed; the engine owns the memory. Pure.
 */
import { RelayError } from "../../common/errors.js";

/** A coordinator that forgets to end sequences shows as an error here, not as memory. */
const maxTrackedSequences = 65_536;

/** What a step says about one sequence. */
export interface TableChange {
  sequence: number;
  /** The request's name in the logs; comes with the first rows only. */
  requestId: string;
  /** Tokens whose KV entries hold: the truth, also when it is less than before (truncation). */
  validLength: number;
  rowCount: number;
  /** Appended to the table before the rows are computed. */
  newBlocks: Int32Array;
}

/** A table with room to grow: long sequences get one block every few steps. */
interface BlockTable {
  ids: Int32Array;
  count: number;
  readonly requestId: string;
}

export class BlockTables {
  readonly #blockCount: number;
  readonly #blockSize: number;
  readonly #prefixLength: number;
  readonly #tables = new Map<number, BlockTable>();

  /** @param prefixLength Slots in front of every sequence that hold a prefix encoder's keys and values. */
  constructor(blockCount: number, blockSize: number, prefixLength = 0) {
    this.#blockCount = blockCount;
    this.#blockSize = blockSize;
    this.#prefixLength = prefixLength;
  }

  get sequenceCount(): number {
    return this.#tables.size;
  }

  /** The request that a sequence belongs to; empty for a sequence that is not known here. */
  requestIdOf(sequence: number): string {
    return this.#tables.get(sequence)?.requestId ?? "";
  }

  /**
   * Drops ended sequences, then appends the new blocks of a step.
   * @param slice Comes in front of the others, which may go on with the same sequence.
   * @returns per change, the slice's first, the block ids that cover [0, validLength + rowCount); views that
   *   hold until the next call.
   * @throws RelayError corrupt_message when the header contradicts the tables; nothing has changed.
   */
  apply(
    ended: readonly number[],
    changes: readonly TableChange[],
    slice: TableChange | null = null,
  ): Int32Array[] {
    this.#check(new Set(ended), changes, slice);
    for (const sequence of ended) this.#tables.delete(sequence);
    return inOrder(changes, slice).map((change) => {
      const table = append(this.#tables.get(change.sequence), change);
      this.#tables.set(change.sequence, table);
      return table.ids.subarray(0, this.#blocksFor(change));
    });
  }

  /** @throws RelayError corrupt_message for blocks that the stage does not have. */
  checkCopies(copies: readonly { from: number; to: number }[]): void {
    for (const { from, to } of copies) {
      if (from < this.#blockCount && to < this.#blockCount && from !== to) continue;
      throw corrupt(
        `block ${from} is to be copied to ${to}: expected two different ones of ${this.#blockCount}`,
      );
    }
  }

  #check(ended: ReadonlySet<number>, changes: readonly TableChange[], slice: TableChange | null): void {
    const seen = new Set<number>();
    /** Blocks of the sequences of this step, with those that it brings. */
    const counts = new Map<number, number>();
    let added = 0;
    for (const change of inOrder(changes, slice)) {
      const name = `sequence ${change.sequence}`;
      if (seen.has(change.sequence)) throw corrupt(`${name} appears twice in a step`);
      if (change !== slice) seen.add(change.sequence);
      const before = ended.has(change.sequence) ? undefined : this.#tables.get(change.sequence)?.count;
      const known = counts.get(change.sequence) ?? before;
      if (known === undefined) added += 1;
      if (change.rowCount < 1) throw corrupt(`${name} has ${change.rowCount} rows: expected at least 1`);
      for (const block of change.newBlocks) {
        if (block < 0 || block >= this.#blockCount) {
          throw corrupt(`${name} names block ${block}: the stage has ${this.#blockCount} blocks`);
        }
      }
      const blocks = (known ?? 0) + change.newBlocks.length;
      counts.set(change.sequence, blocks);
      if (blocks > this.#blockCount) {
        throw corrupt(`${name} has ${blocks} blocks: the stage has ${this.#blockCount}`);
      }
      if (this.#blocksFor(change) > blocks) {
        const prefix = this.#prefixLength === 0 ? "" : `a prefix of ${this.#prefixLength}, `;
        throw corrupt(
          `${name} needs slots for ${prefix}${change.validLength} valid tokens and ${change.rowCount} rows: ` +
            `its table of ${blocks} blocks holds ${blocks * this.#blockSize}`,
        );
      }
    }
    const dropped = [...ended].filter((sequence) => this.#tables.has(sequence)).length;
    const total = this.#tables.size - dropped + added;
    if (total > maxTrackedSequences) {
      throw corrupt(`${total} sequences were begun and not ended: the limit is ${maxTrackedSequences}`);
    }
  }

  #blocksFor(change: TableChange): number {
    return Math.ceil((this.#prefixLength + change.validLength + change.rowCount) / this.#blockSize);
  }
}

function inOrder(changes: readonly TableChange[], slice: TableChange | null): readonly TableChange[] {
  return slice === null ? changes : [slice, ...changes];
}

function append(table: BlockTable | undefined, { newBlocks: blocks, requestId }: TableChange): BlockTable {
  const count = (table?.count ?? 0) + blocks.length;
  let ids = table?.ids ?? new Int32Array(count);
  if (count > ids.length) {
    const larger = new Int32Array(Math.max(count, ids.length * 2));
    larger.set(ids);
    ids = larger;
  }
  ids.set(blocks, count - blocks.length);
  return { ids, count, requestId: table?.requestId ?? requestId };
}

function corrupt(message: string): RelayError {
  return new RelayError("corrupt_message", message);
}
