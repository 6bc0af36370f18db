/**
 * What tenants have been charged for their sequences' tokens, which decides whose turn it is (fair-queue.ts): each
 * computed prompt token and each drawn one once, whatever is computed again. Pure.
 */
import type { SequenceState, Submitted } from "./sequence.js";
import type { Tab, WaitingSet } from "./waiting-set.js";

export class Charges {
  readonly #tabs: Pick<WaitingSet<Submitted>, "chargePrompt" | "chargeGenerated">;

  constructor(tabs: Pick<WaitingSet<Submitted>, "chargePrompt" | "chargeGenerated">) {
    this.#tabs = tabs;
  }

  /**
   * A sequence is admitted. All that it has to compute is charged at once, or a tenant could take many places before a
   * row of them is counted.
   * @returns The tokens that were charged in advance: SequenceState.prepaid.
   */
  admit(tab: Tab, { tokens, paid }: Pick<Submitted, "tokens" | "paid">): number {
    const prepaid = tokens.length - paid;
    this.#tabs.chargePrompt(tab, prepaid);
    return prepaid;
  }

  /** The last of its tokens was drawn, for a sequence that runs or for one that was preempted. */
  drawn(tab: Tab, sequence: Pick<Submitted, "tokens" | "paid">): void {
    sequence.paid = sequence.tokens.length;
    this.#tabs.chargeGenerated(tab, 1);
  }

  /**
   * Its rows [start, end) are computed now. Of what was charged in advance, those that others had computed cost
   * nothing, and so do rows that are computed again.
   */
  computed(sequence: SequenceState, start: number, end: number): void {
    const { paid, prepaid, sent } = sequence;
    const charged = paid + prepaid;
    const free = Math.max(0, Math.min(start, charged) - Math.max(sent, paid));
    this.#tabs.chargePrompt(sequence.tab, -free);
    sequence.paid = Math.max(paid, Math.min(end, charged));
    sequence.prepaid = charged - sequence.paid;
  }

  /** It runs no more: what was charged in advance and not computed is given back. */
  leave({ tab, prepaid }: SequenceState): void {
    this.#tabs.chargePrompt(tab, -prepaid);
  }
}
