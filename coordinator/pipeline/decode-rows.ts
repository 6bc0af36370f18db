/**
 * What headers say of sequences that decode. From one step to the next only token, length and now and then a block
 * change: each sequence has one message, made while the step with the end of its prompt is on its way, and filled in
 * when its token has come. Messages are read when they are sent, and a sequence's rows are in one step at a time, so
 * none changes before it has been read.
 */
import { bytesFromInt32 } from "../../common/bytes.js";
import type { SequenceId } from "../../common/ids.js";
import type { SequenceRows } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { ScheduledRows } from "../scheduler/scheduled-step.js";

export class DecodeRows {
  /** Of running sequences; the scheduler tells which have ended. */
  readonly #messages = new Map<SequenceId, SequenceRows>();

  has(sequence: SequenceId): boolean {
    return this.#messages.has(sequence);
  }

  /** @param message What stays the same in all steps that decode. */
  prepare(sequence: SequenceId, message: SequenceRows): void {
    this.#messages.set(sequence, message);
  }

  end(sequence: SequenceId): void {
    this.#messages.delete(sequence);
  }

  /** The message for these rows; null for a sequence that has none yet. */
  fill({ sequence, start, tokens, newBlocks, draftRows }: ScheduledRows): SequenceRows | null {
    const message = this.#messages.get(sequence);
    if (message === undefined) return null;
    message.validLength = start;
    message.rowCount = tokens.length;
    message.tokenIds = bytesFromInt32(tokens);
    message.newBlocks = bytesFromInt32(newBlocks);
    message.draftRows = draftRows;
    return message;
  }
}
