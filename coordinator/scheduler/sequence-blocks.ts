/** Which blocks hold the tokens of a sequence, and which of them it shares with others that begin alike. Pure. */
import { kvBlockSize } from "../../common/limits.js";
import type { TokenIds } from "../inference.js";
import { defaultTenant } from "../request-class.js";
import { type BlockPool, blocksFor, type PrefixNode } from "./block-pool.js";
import type { SequenceOptions, SequenceState } from "./sequence.js";
import { sharedLength } from "./shared-prompts.js";

/** Where several pipelines hold the beginning of a prompt, more of it does not matter for the choice between them. */
const maxProbedTokens = 16_384;

export class SequenceBlocks {
  readonly #pool: BlockPool;
  readonly #prefixLength: number;

  /** @param prefixLength KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  constructor(pool: BlockPool, prefixLength: number) {
    this.#pool = pool;
    this.#prefixLength = prefixLength;
  }

  /** Of a sequence with so many tokens. */
  countFor(tokens: number): number {
    return blocksFor(this.#prefixLength + tokens);
  }

  /** Where the chain of a sequence's blocks begins; null when it shares none. */
  root({ whole, tenant, salt }: Required<SequenceOptions>): PrefixNode | null {
    return this.#shares(whole) ? this.#pool.root(tenant, salt) : null;
  }

  /**
   * How many of a new sequence's tokens stand in blocks that it could take over now, of the first
   * maxProbedTokens; nothing changes.
   */
  heldTokens(tokens: TokenIds, options: SequenceOptions): number {
    const { tenant = defaultTenant, whole = 0, salt = "", everyRow = false } = options;
    if (everyRow || !this.#shares(whole)) return 0;
    const most = Math.min(tokens.length - 1, maxProbedTokens);
    let held = 0;
    let node: PrefixNode | null = this.#pool.root(tenant, salt);
    for (let end = kvBlockSize; end <= most; end += kvBlockSize) {
      const block = Array.from({ length: kvBlockSize }, (_, index) => tokens[held + index]!);
      node = this.#pool.find(node, block);
      if (node === null) break;
      held = end;
    }
    return held;
  }

  /**
   * Takes over the full blocks that others have computed from the same tokens, up to the last token, which is
   * computed in any case: what follows it is drawn from its row. Steps reach every stage in order, so rows that
   * are still on their way are there before these.
   */
  takeOver(sequence: SequenceState): void {
    while (!sequence.everyRow && sequence.node !== null && sequence.known === sequence.blocks.length) {
      const begin = sequence.known * kvBlockSize;
      const end = begin + kvBlockSize;
      if (end >= sequence.tokens.length || sequence.reservation === 0) return;
      const shared = this.#pool.share(sequence.node, sequence.tokens.slice(begin, end));
      if (shared === null) return;
      sequence.blocks.push(shared.block);
      sequence.reservation--;
      sequence.node = shared.node;
      sequence.known++;
      sequence.computed = end;
    }
  }

  /**
   * Takes over the prompt that it shares with a sequence whose blocks hold it, up to the last token, which is
   * computed in any case. What either writes behind it must not reach the other: the block in which it ends is
   * copied, the full ones before it are shared.
   */
  fork(sequence: SequenceState, source: SequenceState): void {
    const length = sharedLength(sequence);
    const slots = this.#prefixLength + length;
    const full = Math.floor(slots / kvBlockSize);
    while (sequence.blocks.length < full) {
      const block = source.blocks[sequence.blocks.length]!;
      this.#pool.holdReserved(block);
      sequence.blocks.push(block);
      sequence.reservation--;
    }
    sequence.computed = length;
    if (slots % kvBlockSize === 0) return;
    const from = source.blocks[full]!;
    const [to] = this.#pool.take(1);
    sequence.blocks.push(to!);
    sequence.reservation--;
    this.#pool.hold(from);
    sequence.copy = { from, to: to! };
  }

  /** Blocks that its rows have filled may serve others from now on. */
  makeKnown(sequence: SequenceState): void {
    while (sequence.node !== null && (sequence.known + 1) * kvBlockSize <= sequence.computed) {
      const begin = sequence.known * kvBlockSize;
      const tokens = sequence.tokens.slice(begin, begin + kvBlockSize);
      sequence.node = this.#pool.know(sequence.node, tokens, sequence.blocks[sequence.known]!);
      sequence.known++;
    }
  }

  /**
   * A context's keys and values depend on what comes after them. Behind a prefix encoder's slots tokens do not
   * begin with a block, and each sequence writes those slots itself.
   */
  #shares(whole: number): boolean {
    return whole === 0 && this.#prefixLength === 0;
  }
}
