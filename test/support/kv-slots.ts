/** What stands in the KV slots of a stage that takes steps in order: the token of each row that was computed. */
import { expect } from "vitest";
import type { SequenceId } from "../../common/ids.js";
import { kvBlockSize } from "../../common/limits.js";
import type { ScheduledStep } from "../../coordinator/scheduler/scheduled-step.js";

export class KvSlots {
  readonly #prefixLength: number;
  readonly #tables = new Map<SequenceId, number[]>();
  readonly #slots = new Map<number, number>();
  /** Blocks that were copied. */
  copies = 0;

  constructor(prefixLength: number) {
    this.#prefixLength = prefixLength;
  }

  /**
   * Rows go behind what their sequence has in its slots, whoever computed it.
   * @param tokensOf All tokens of a sequence that are decided.
   */
  take(step: ScheduledStep, tokensOf: (sequence: SequenceId) => readonly number[]): void {
    for (const sequence of step.ended) this.#tables.delete(sequence);
    for (const { from, to } of step.copies) {
      this.copies++;
      for (let at = 0; at < kvBlockSize; at++) {
        this.#slots.set(to * kvBlockSize + at, this.#slots.get(from * kvBlockSize + at)!);
      }
    }
    const { slice } = step;
    if (slice !== null) {
      this.#append(slice.sequence, slice.newBlocks);
      if (slice.last) this.#write(slice.sequence, 0, tokensOf(slice.sequence).slice(0, slice.rowCount));
    }
    for (const { sequence, start, tokens, newBlocks } of step.rows) {
      this.#append(sequence, newBlocks);
      const found = Array.from({ length: start }, (_, at) => this.#slots.get(this.#slot(sequence, at)));
      expect(found).toEqual(tokensOf(sequence).slice(0, start));
      this.#write(sequence, start, tokens);
    }
  }

  /** Of a sequence. */
  blockCountOf(sequence: SequenceId): number {
    return this.#tables.get(sequence)?.length ?? 0;
  }

  #append(sequence: SequenceId, blocks: readonly number[]): void {
    this.#tables.set(sequence, [...(this.#tables.get(sequence) ?? []), ...blocks]);
  }

  #write(sequence: SequenceId, start: number, tokens: readonly number[]): void {
    for (const [index, token] of tokens.entries()) {
      const slot = this.#slot(sequence, start + index);
      const block = Math.floor(slot / kvBlockSize);
      for (const [other, table] of this.#tables) {
        // Nobody writes into a block that another sequence reads.
        if (other !== sequence) expect(table).not.toContain(block);
      }
      this.#slots.set(slot, token);
    }
  }

  #slot(sequence: SequenceId, position: number): number {
    const at = this.#prefixLength + position;
    return this.#tables.get(sequence)![Math.floor(at / kvBlockSize)]! * kvBlockSize + (at % kvBlockSize);
  }
}
