/** Whether a sequence finds the blocks that it needs to start, and who would have to give some. Pure. */
import { goesBefore, type RequestClass } from "../request-class.js";
import { isBehind, type SequenceState } from "./sequence.js";

export interface RoomQuestion {
  running: Iterable<SequenceState>;
  /** Class of the sequence that wants to start. */
  class: RequestClass;
  /** Blocks that it needs, its growth included. */
  blocks: number;
  /** Blocks that nobody has or has reserved. */
  available: number;
  growthOf(sequence: SequenceState): number;
}

/**
 * Blocks are there when they are beside what the running sequences are taken to need. Those of later classes give
 * theirs, the youngest of the lowest class first.
 * @returns "yes"; "later", when enough are on their way back or nothing would help; else who has to give up its own.
 */
export function roomFor({
  running,
  class: of,
  blocks,
  available,
  growthOf,
}: RoomQuestion): "yes" | "later" | SequenceState {
  let missing = blocks - available;
  let givable = 0;
  let last: SequenceState | null = null;
  let leaving = 0;
  for (const sequence of running) {
    const held = sequence.blocks.length + sequence.reservation;
    if (sequence.afterStep !== "go on") {
      leaving += held;
      continue;
    }
    const growth = growthOf(sequence);
    missing += growth;
    if (sequence.class === of || goesBefore(sequence.class, of)) continue;
    givable += held + growth;
    if (last === null || isBehind(sequence, last)) last = sequence;
  }
  if (missing <= 0) return "yes";
  return missing <= leaving || last === null || missing > leaving + givable ? "later" : last;
}
