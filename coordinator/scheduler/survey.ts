/** Looks over what runs before a step is formed. */
import type { RequestClass } from "../request-class.js";

/** Of a running sequence. */
export interface Runner {
  tokens: ArrayLike<number>;
  computed: number;
  /** The step that it travels in, or null. */
  inStep: number | null;
  class: RequestClass;
}

/** Of one class, sequences whose next rows can be computed now. */
interface Ready<T> {
  decodes: T[];
  prefills: T[];
}

export interface Survey<T> {
  /** Whose next rows can be computed now, in the order in which they should be. */
  ready: T[];
  /** Sequences that are past their prompt, on their way or ready. */
  decoding: number;
  /** Somebody waits for a next token. */
  interactiveDecoding: boolean;
  /** Mean tokens that are computed of a sequence. */
  context: number;
}

/** Its next row is that of its newest token. */
export const isDecode = ({ tokens, computed }: Runner): boolean => tokens.length - computed <= 1;

/**
 * Interactive sequences first, batch gets what they leave of the step. Within a class decodes first: each is
 * one row and someone waits for it; then prefill, longest in the system first.
 */
export function surveyOf<T extends Runner>(running: Iterable<T>): Survey<T> {
  const interactive: Ready<T> = { decodes: [], prefills: [] };
  const batch: Ready<T> = { decodes: [], prefills: [] };
  let [count, decoding, computed] = [0, 0, 0];
  let interactiveDecoding = false;
  for (const sequence of running) {
    count++;
    computed += sequence.computed;
    const decodes = isDecode(sequence);
    if (decodes) {
      decoding++;
      interactiveDecoding ||= sequence.class === "interactive";
    }
    if (sequence.inStep !== null || sequence.computed === sequence.tokens.length) continue;
    const ready = sequence.class === "batch" ? batch : interactive;
    (decodes ? ready.decodes : ready.prefills).push(sequence);
  }
  return {
    ready: interactive.decodes.concat(interactive.prefills, batch.decodes, batch.prefills),
    decoding,
    interactiveDecoding,
    context: count === 0 ? 0 : computed / count,
  };
}
