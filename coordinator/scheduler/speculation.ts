/**
 * Drafts for decoding sequences, looked up in their own text, and how many of them a step carries. A draft that
 * does not hold costs the time of its rows, and nothing else: what is drawn is the same with and without it.
 *
 * The rule. A step's rows are its yield, since each brings a token or a part of a prompt forward; a row of a draft
 * yields the chance that it is kept. Rows are added in the order of their chances, and as many as give the most yield
 * per time, if that is worth it: of all steps on their way together, because a long step makes all of them wait, and
 * beside a long one a row may cost nothing. Times are those of steps with as many rows (timing/row-times.ts); before
 * there are any, a step of r rows takes time in proportion to knee + r: reading the weights, and the hops, take as
 * long as computing `knee` rows (timing/cycle.ts). So an idle pipeline drafts boldly, a full one only what is all but
 * certain, and a sequence whose guesses fail drafts nothing. The chance of a draft's j-th row is the product of the
 * measured chances (acceptance.ts) along it.
 */
import { maxDraftRows } from "../../common/limits.js";
import { Acceptance } from "./acceptance.js";
import { NgramLookup } from "./ngram-lookup.js";

/**
 * Before rows were measured. With int4 weights, AVX2 and one thread, 2 rows of a 6B-shaped model take 1.16 times as
 * long as one, 4 rows 1.56 times, 8 rows 3.2 times and 16 rows 6.1 times: the knee is 4 for the first rows and 2 for
 * more of them.
 */
const firstKneeRows = 3;

/** A step whose threshold is higher is not worth a look: even sure guesses would gain a tenth at most. */
const mostThreshold = 0.9;

/** A row that is less likely kept is not sent, however cheap: it gains less than measured times may be wrong. */
const leastChance = 0.2;

/** Drafts must promise that much more yield per time: chances and times are only measured. */
const leastGain = 0.05;
/** By the line, a row below this share of the chance that pays is not worth a look: stairs are not that high. */
const leastShare = 0.6;
/** A tile of rows, and the next one: so many more rows may cost what one does. */
const widestStair = 8;

/** More tokens than one step brings have come while nobody asked: a prompt, or what a full pipeline brought. */
const observedTokens = maxDraftRows + 1;

/** The guesses of one sequence. */
export class Drafter {
  readonly #lookup: NgramLookup;
  readonly #own: Acceptance;
  readonly #overall: Acceptance;
  readonly #chances: number[] = [];
  /** The newest draft, and how many of it tokens have confirmed; its length once one was not as guessed. */
  #draft: readonly number[] = [];
  #confirmed = 0;

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
    if (this.#draft[this.#confirmed] === token) {
      this.#confirmed++;
      return true;
    }
    this.#confirmed = this.#draft.length;
    return false;
  }

  /**
   * @param threshold Chances up to it are of no interest.
   * @returns how likely each row of a draft of at most `limit` is kept, descending; valid until the next call.
   */
  chances(limit: number, threshold: number): readonly number[] {
    this.#chances.length = 0;
    this.#catchUp();
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
    this.#draft = this.#lookup.draft(count);
    this.#confirmed = 0;
    return this.#draft;
  }

  /** Tokens are read, and what was expected is compared with them, when somebody asks for guesses. */
  #catchUp(): void {
    if (this.#lookup.behind > observedTokens) this.#lookup.catchUp();
    while (this.#lookup.behind > 0) {
      const { matchLength } = this.#lookup;
      const held = this.#lookup.advance();
      if (matchLength === 0) continue;
      this.#own.observe(matchLength, held);
      this.#overall.observe(matchLength, held);
    }
  }
}

/** A sequence that may have a draft in the step being formed. */
export interface DraftCandidate {
  drafter: Drafter;
  /** Rows of its draft at most. */
  limit: number;
}

/** The step that drafts are planned for. */
export interface PlannedStep {
  /** Rows that it has without drafts. */
  rows: number;
  /** Rows that it may have beside them. */
  budget: number;
  /** Rows that take as long as what a step takes whatever its rows; null while that is not known. */
  knee: number | null;
  /** What the other steps of a cycle bring. */
  otherYield: number;
  /** Time of a cycle in which this step has so many rows of drafts; null while that is not known. */
  timeOf: ((draftRows: number) => number) | null;
}

export interface PlannedDrafts {
  /** Of each candidate's draft. */
  lengths: number[];
  /** Rows of them that are expected to be kept. */
  kept: number;
}

/** How many of the most likely rows give the most yield per time; 0 where that is not worth it. */
function bestCount(chances: readonly number[], { rows, knee, otherYield, timeOf }: PlannedStep): number {
  const known = knee !== null && timeOf !== null;
  const time = known ? timeOf : (count: number) => (knee ?? firstKneeRows) + rows + count;
  let yielded = known ? otherYield + rows : rows;
  let best = { count: 0, rate: ((1 + leastGain) * yielded) / time(0) };
  for (const [index, chance] of chances.entries()) {
    const count = index + 1;
    if (count > best.count + widestStair) break;
    yielded += chance;
    const rate = yielded / time(count);
    if (rate > best.rate) best = { count, rate };
  }
  return best.count;
}

export class Speculation {
  readonly #overall = Acceptance.overall();

  drafter(tokens: readonly number[], capacity: number): Drafter {
    return new Drafter(tokens, capacity, this.#overall);
  }

  /** Whether a step of so many rows may carry drafts at all. @param knee As in `plan`. */
  mayPay(rows: number, knee: number | null): boolean {
    return rows < mostThreshold * ((knee ?? firstKneeRows) + rows);
  }

  plan(candidates: readonly DraftCandidate[], step: PlannedStep): PlannedDrafts {
    const lengths = candidates.map(() => 0);
    const { rows, knee } = step;
    const fixed = knee ?? firstKneeRows;
    const threshold = Math.max(leastChance, (leastShare * rows) / (fixed + rows));
    const offers: { candidate: number; chance: number }[] = [];
    for (const [candidate, { drafter, limit }] of candidates.entries()) {
      const most = Math.min(limit, maxDraftRows);
      for (const chance of drafter.chances(most, threshold)) offers.push({ candidate, chance });
    }
    // Stable: of one candidate's rows with equal chances the earlier one goes first.
    offers.sort((a, b) => b.chance - a.chance);
    const chances = offers.slice(0, Math.max(0, step.budget)).map(({ chance }) => chance);
    let kept = 0;
    for (const { candidate, chance } of offers.slice(0, bestCount(chances, step))) {
      lengths[candidate]!++;
      kept += chance;
    }
    return { lengths, kept };
  }
}
