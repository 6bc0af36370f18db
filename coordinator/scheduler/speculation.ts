/**
 * Drafts for decoding sequences, looked up in their own text, and how many of them a step carries. A draft that
 * does not hold costs the time of its rows, and nothing else: what is drawn is the same with and without it.
 *
 * The rule. A step of r rows takes time in proportion to knee + r: reading the weights takes as long as computing
 * `knee` rows. Its rows are its yield, since each brings a token or a part of a prompt forward. One more row, kept
 * with chance p, raises the yield per time exactly if p > yield / (knee + r). Rows are taken in the order of
 * their chances until that fails. So an idle pipeline drafts boldly, a full one only what is all but certain, and
 * a sequence whose guesses fail drafts nothing. The chance of a draft's j-th row is the product of the measured
 * chances (acceptance.ts) along it.
 */
import { maxDraftRows } from "../../common/limits.js";
import { Acceptance } from "./acceptance.js";
import { NgramLookup } from "./ngram-lookup.js";

/** How speculation is run; see the rule above. */
export interface SpeculationLimits {
  /** Rows whose computation takes as long as reading the weights once. */
  kneeRows: number;
}

/**
 * Of the AVX2 kernels on int4 weights: 2 rows take 1.0 times, 4 rows 1.7 times and 8 rows 2.6 times as long as one,
 * which is (4 + rows) / 5 but for the second row, which is cheaper still. Float weights have a higher knee.
 */
export const defaultKneeRows = 4;

/** The guesses of one sequence. */
export class Drafter {
  readonly #lookup: NgramLookup;
  readonly #own: Acceptance;
  readonly #overall: Acceptance;
  readonly #chances: number[] = [];
  /** Of the newest draft: what no token has confirmed yet; empty once one was not as guessed. */
  #pending: readonly number[] = [];

  /**
   * @param tokens The sequence's own tokens: the caller's array, which only grows.
   * @param capacity Tokens that it can grow to.
   */
  constructor(tokens: readonly number[], capacity: number, overall: Acceptance) {
    this.#lookup = new NgramLookup(tokens, capacity);
    this.#own = overall.forSequence();
    this.#overall = overall;
  }

  /**
   * To be called for every token that the sequence has grown by, in order.
   * @returns whether it was the next one of the newest draft, so that its row has travelled.
   */
  settle(token: number): boolean {
    const { matchLength } = this.#lookup;
    const held = this.#lookup.advance();
    if (matchLength > 0) {
      this.#own.observe(matchLength, held);
      this.#overall.observe(matchLength, held);
    }
    const drafted = this.#pending.length > 0 && this.#pending[0] === token;
    this.#pending = drafted ? this.#pending.slice(1) : [];
    return drafted;
  }

  /**
   * @param threshold Chances up to it are of no interest.
   * @returns how likely each row of a draft of at most `limit` is kept, descending; valid until the next call.
   */
  chances(limit: number, threshold: number): readonly number[] {
    this.#chances.length = 0;
    const { matchLength } = this.#lookup;
    if (matchLength === 0) return this.#chances;
    for (let chance = 1; this.#chances.length < limit; ) {
      chance *= this.#own.chance(matchLength + this.#chances.length);
      if (chance <= threshold) break;
      this.#chances.push(chance);
    }
    return this.#chances;
  }

  /** @returns the `count` tokens that are guessed to come next. */
  draft(count: number): readonly number[] {
    this.#pending = this.#lookup.draft(count);
    return this.#pending;
  }
}

/** A sequence that may have a draft in the step being formed. */
export interface DraftCandidate {
  drafter: Drafter;
  /** Rows of its draft at most. */
  limit: number;
}

export class Speculation {
  readonly #limits: SpeculationLimits;
  readonly #overall = Acceptance.overall();

  constructor(limits: SpeculationLimits) {
    this.#limits = limits;
  }

  drafter(tokens: readonly number[], capacity: number): Drafter {
    return new Drafter(tokens, capacity, this.#overall);
  }

  /**
   * @param rows Rows that the step has without drafts.
   * @param budget Rows that it may have beside them.
   * @returns the length of each candidate's draft.
   */
  plan(candidates: readonly DraftCandidate[], rows: number, budget: number): number[] {
    const lengths = candidates.map(() => 0);
    const knee = this.#limits.kneeRows;
    const offers: { candidate: number; chance: number }[] = [];
    for (const [candidate, { drafter, limit }] of candidates.entries()) {
      const most = Math.min(limit, maxDraftRows);
      for (const chance of drafter.chances(most, rows / (knee + rows))) offers.push({ candidate, chance });
    }
    // Stable: of one candidate's rows with equal chances the earlier one goes first.
    offers.sort((a, b) => b.chance - a.chance);
    let time = knee + rows;
    let yielded = rows;
    for (const { candidate, chance } of offers.slice(0, Math.max(0, budget))) {
      if (chance * time <= yielded) break;
      lengths[candidate]!++;
      yielded += chance;
      time++;
    }
    return lengths;
  }
}
