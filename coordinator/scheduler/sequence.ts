/** What the scheduler knows of a sequence, from its arrival to its end. */
import type { SequenceId } from "../../common/ids.js";
import type { TokenIds } from "../inference.js";
import { goesBefore, type RequestClass } from "../request-class.js";
import type { PrefixNode } from "./block-pool.js";
import type { BlockCopy } from "./scheduled-step.js";
import type { Drafter } from "./speculation.js";
import type { Tab } from "./waiting-set.js";

/** How a sequence is run; what is not said is the plain causal way. */
export interface SequenceOptions {
  /** Sequences of another one never share blocks. */
  tenant?: string;
  class?: RequestClass;
  /**
   * Tokens at the beginning that are read as a whole: in one step, which may then have as many rows beside its
   * usual ones, or in slices of layers. 0 for causal attention.
   */
  whole?: number;
  /** Sequences of a tenant with another one never share blocks. */
  salt?: string;
  /** Every row is wanted: nothing that others have computed is taken over. */
  everyRow?: boolean;
  /**
   * Its tokens begin with these. Of sequences that name the same array one computes them, and the others take them
   * over, all but the last one. null: nobody else has them.
   */
  prompt?: TokenIds | null;
  /** From so many tokens on others may be drawn than before: a draft is drawn from by the rules of one side. */
  rulesChangeAt?: number;
}

export interface Submitted extends Required<SequenceOptions> {
  /** The prompt, and behind it what was generated before it was preempted. */
  tokens: TokenIds;
  promptLength: number;
  /** Tokens that it may have at most. */
  longest: number;
  /** False when only its prompt is scored: nothing is drawn at the end. */
  generates: boolean;
  /** Arrival order, kept when it is preempted. */
  order: number;
  /** Tokens at its beginning that its tenant was charged for, because they were computed or drawn. */
  paid: number;
}

export interface SequenceState extends Submitted {
  id: SequenceId;
  /** Where its work is charged. */
  tab: Tab;
  /** Tokens behind `paid` that were charged in advance. */
  prepaid: number;
  tokens: number[];
  /** Tokens whose KV entries are written once the steps in flight are done. */
  computed: number;
  /** The same after its last rows; what was added since was taken over. */
  sent: number;
  blocks: number[];
  /** Blocks that the stages know of. */
  announced: number;
  /** The last full block that is known by its tokens; null for a sequence that shares nothing. */
  node: PrefixNode | null;
  /** Blocks up to that one. */
  known: number;
  /** To be made with its first rows; the block it reads is held until that step has come back. */
  copy: BlockCopy | null;
  /** Blocks it may still draw. */
  reservation: number;
  /** Guesses at its next tokens; null without speculation, and before a token is drawn for it. */
  drafter: Drafter | null;
  /** The newest step it travels in, or null. Its rows are in one step at a time, slices of its context in several. */
  inStep: number | null;
  /** What happens to it when the step that it travels in has come back. */
  afterStep: "go on" | "end" | "wait";
}

/** Of two that want the same blocks: classes in order, then arrival. */
export const isBehind = (one: SequenceState, other: SequenceState): boolean =>
  one.class === other.class ? one.order > other.order : goesBefore(other.class, one.class);

/**
 * A sequence that starts. Field by field: an object that begins as a copy of another one keeps its other fields apart
 * from itself, and every step reads those of every sequence.
 */
export function begin(
  id: SequenceId,
  submitted: Submitted,
  given: Pick<SequenceState, "tab" | "prepaid" | "node" | "reservation">,
): SequenceState {
  return {
    id,
    tenant: submitted.tenant,
    class: submitted.class,
    promptLength: submitted.promptLength,
    longest: submitted.longest,
    generates: submitted.generates,
    order: submitted.order,
    paid: submitted.paid,
    whole: submitted.whole,
    salt: submitted.salt,
    everyRow: submitted.everyRow,
    prompt: submitted.prompt,
    rulesChangeAt: submitted.rulesChangeAt,
    tab: given.tab,
    prepaid: given.prepaid,
    tokens: Array.from(submitted.tokens),
    computed: 0,
    sent: 0,
    blocks: [],
    announced: 0,
    node: given.node,
    known: 0,
    copy: null,
    reservation: given.reservation,
    drafter: null,
    inStep: null,
    afterStep: "go on",
  };
}

/** What a sequence needs to start again, from the tokens that it has. */
export function submittedAgain(sequence: SequenceState): Submitted {
  const { tokens, promptLength, longest, generates, order, paid } = sequence;
  const { tenant, class: ofClass, whole, salt, everyRow, prompt, rulesChangeAt } = sequence;
  const options = { tenant, class: ofClass, whole, salt, everyRow, prompt, rulesChangeAt };
  return { tokens, promptLength, longest, generates, order, paid, ...options };
}
