/**
 * How often the token that a lookup expects is the one that is drawn, by the length of the match. It is counted
 * for every token that is drawn while one was expected, also when no draft travelled: so it costs no rows, and
 * speculation that did not pay begins again by itself when the text turns repetitive. Pure.
 */
import { longestMatch, shortestMatch } from "./ngram-lookup.js";

/** A sequence forgets within tens of tokens: text turns from prose to a table and back. */
const sequenceWeight = 1 / 16;
/** What all sequences know together is where a new one begins. */
const overallWeight = 1 / 256;
/** Of a pipeline that has drawn nothing yet: enough for a first guess where rows are cheap, and one miss undoes it. */
const firstChance = 0.4;
/** What the others have seen so far is worth so many observations of a new sequence. */
const startCount = 4;

export class Acceptance {
  readonly #chances: Float64Array;
  /** Observations per length; the first ones count more, so that what is assumed at the start is soon forgotten. */
  readonly #counts: Uint32Array;
  readonly #weight: number;

  private constructor(chances: Float64Array, counts: Uint32Array, weight: number) {
    this.#chances = chances;
    this.#counts = counts;
    this.#weight = weight;
  }

  /** Of all sequences of a pipeline. */
  static overall(): Acceptance {
    const lengths = longestMatch - shortestMatch + 1;
    return new Acceptance(
      new Float64Array(lengths).fill(firstChance),
      new Uint32Array(lengths),
      overallWeight,
    );
  }

  /** Of a new sequence: as the others have it so far, and soon its own. */
  forSequence(): Acceptance {
    const counts = new Uint32Array(this.#counts.length).fill(startCount);
    return new Acceptance(this.#chances.slice(), counts, sequenceWeight);
  }

  /** @param matchLength shortestMatch to longestMatch. @param held Whether the expected token was drawn. */
  observe(matchLength: number, held: boolean): void {
    const index = matchLength - shortestMatch;
    const weight = Math.max(this.#weight, 1 / (this.#counts[index]! + 2));
    this.#counts[index]!++;
    this.#chances[index]! += ((held ? 1 : 0) - this.#chances[index]!) * weight;
  }

  /** @returns how likely the token expected behind a match of that length is drawn, 0 to 1. */
  chance(matchLength: number): number {
    return this.#chances[Math.min(matchLength, longestMatch) - shortestMatch]!;
  }
}
