/**
 * Sequences that begin with the same prompt, as the choices of a request do: one of them computes it, the others
 * take it over from any that has it. Pure.
 */
import type { TokenIds } from "../inference.js";
import type { SequenceState } from "./sequence.js";

/** Tokens of its prompt that a sequence may have from another one: it draws from the last one's row itself. */
export const sharedLength = ({ prompt }: Pick<SequenceState, "prompt">): number => (prompt?.length ?? 0) - 1;

export class SharedPrompts {
  /** Running sequences by the prompt that they share. */
  readonly #members = new Map<TokenIds, Set<SequenceState>>();

  add(sequence: SequenceState): void {
    const { prompt } = sequence;
    if (prompt === null) return;
    const members = this.#members.get(prompt);
    if (members === undefined) this.#members.set(prompt, new Set([sequence]));
    else members.add(sequence);
  }

  remove(sequence: SequenceState): void {
    const { prompt } = sequence;
    if (prompt === null) return;
    const members = this.#members.get(prompt);
    members?.delete(sequence);
    if (members?.size === 0) this.#members.delete(prompt);
  }

  /**
   * Who may take over its prompt from whom, before a step is formed: stages make copies before they compute, so an
   * earlier step must have filled the blocks.
   */
  forks(): { sequence: SequenceState; source: SequenceState }[] {
    const forks: { sequence: SequenceState; source: SequenceState }[] = [];
    for (const members of this.#members.values()) {
      if (members.size === 1) continue;
      const source = [...members].find(hasPrompt);
      if (source === undefined) continue;
      for (const sequence of members) if (mayFork(sequence)) forks.push({ sequence, source });
    }
    return forks;
  }

  /**
   * Whether a sequence lets another one compute its prompt first. Causal ones need not: each finds the blocks that
   * others have filled by their tokens, also in the same step.
   */
  waits(sequence: SequenceState): boolean {
    const { prompt, node } = sequence;
    if (prompt === null || node !== null || !mayFork(sequence)) return false;
    for (const other of this.#members.get(prompt)!) {
      if (other !== sequence && hasBegun(other) && other.afterStep === "go on") return true;
    }
    return false;
  }
}

/** Rows of it have been sent, or it has the blocks of a context that will be read in slices. */
const hasBegun = ({ announced, blocks, known }: SequenceState): boolean =>
  announced > 0 || blocks.length > known;

const hasPrompt = (sequence: SequenceState): boolean =>
  hasBegun(sequence) && sequence.sent >= sharedLength(sequence);

/** A context is computed with all of its rows, and scores are of rows that are computed. */
const mayFork = (sequence: SequenceState): boolean =>
  !hasBegun(sequence) &&
  sequence.computed < sharedLength(sequence) &&
  sequence.whole <= sharedLength(sequence) &&
  !sequence.everyRow;
