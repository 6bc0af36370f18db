/**
 * What a sequence may go on with, looked up in its own text (prompt lookup): where the last tokens stood before,
 * the token behind them is likely to follow again. The index is a hash chain over pairs of tokens, as in LZ77: it
 * grows with the text, costs 8 bytes per token of the window, and finds the longest match among the most recent
 * candidates. Pure; every answer depends on the tokens alone.
 */

/** Tokens that are searched, the most recent ones. */
export const lookupWindow = 16_384;
/** Earlier occurrences of the last pair that are compared, the most recent first. */
const candidateLimit = 32;
/** Shorter matches say nothing: the index knows pairs. */
export const shortestMatch = 2;
/** Matches are told apart up to this length. */
export const longestMatch = 8;

const hashMultiplier = 0x9e37_79b1;

export class NgramLookup {
  /** The sequence's own tokens: the caller's array, which only grows. */
  readonly #tokens: readonly number[];
  readonly #mask: number;
  /** By hash of a pair: where the token behind its last occurrence stands; 0: nowhere, no pair ends that early. */
  readonly #heads: Int32Array;
  /** By that place, within the window: the place before it in the same chain. */
  readonly #previous: Int32Array;
  /** Tokens up to this one have been read. */
  #read = 0;
  /** Where the token that is expected next stands; -1: none is. */
  #at = -1;
  #length = 0;

  /** @param capacity Tokens that the sequence can grow to. */
  constructor(tokens: readonly number[], capacity: number) {
    this.#tokens = tokens;
    const slots = 2 ** Math.ceil(Math.log2(Math.min(Math.max(capacity, 2), lookupWindow)));
    this.#mask = slots - 1;
    this.#heads = new Int32Array(slots);
    this.#previous = new Int32Array(slots);
  }

  /** Tokens that the sequence has grown by since they were last read. */
  get behind(): number {
    return this.#tokens.length - this.#read;
  }

  /** Tokens that match before it: shortestMatch to longestMatch; 0 without a match. */
  get matchLength(): number {
    return this.#at < 0 ? 0 : Math.min(this.#length, longestMatch);
  }

  /** Reads the next token, of which one is there. @returns whether it was the expected one. */
  advance(): boolean {
    const token = this.#tokens[this.#read]!;
    const held = this.#at >= 0 && this.#tokens[this.#at] === token;
    if (held) {
      this.#at++;
      this.#length++;
      this.#read++;
      this.#insert(this.#read);
    } else {
      this.#readTo(this.#read + 1);
    }
    return held;
  }

  /** @returns the `count` tokens expected next. A match that ends with the text goes on with what it expects itself. */
  draft(count: number): number[] {
    const draft: number[] = [];
    if (this.#at < 0) return draft;
    for (let source = this.#at; draft.length < count; source++) {
      draft.push(source < this.#read ? this.#tokens[source]! : draft[source - this.#read]!);
    }
    return draft;
  }

  /** Reads all tokens that are there, at once. */
  catchUp(): void {
    this.#readTo(this.#tokens.length);
  }

  /** Takes in the tokens up to `end` and finds the match of the last ones. */
  #readTo(end: number): void {
    for (let place = Math.max(this.#read + 1, end - lookupWindow); place < end; place++) this.#insert(place);
    this.#read = end;
    this.#find();
    this.#insert(end);
  }

  #find(): void {
    const end = this.#read;
    this.#at = -1;
    this.#length = shortestMatch - 1;
    if (end < shortestMatch) return;
    const oldest = end - this.#previous.length;
    let place = this.#heads[this.#slotOf(end)]!;
    for (let tried = 0; tried < candidateLimit && place > Math.max(0, oldest); tried++) {
      const length = this.#commonLength(place, end);
      if (length > this.#length) {
        this.#at = place;
        this.#length = length;
        if (length === longestMatch) return;
      }
      place = this.#previous[place & this.#mask]!;
    }
  }

  /** Tokens that are the same before both places, up to longestMatch. */
  #commonLength(place: number, end: number): number {
    let length = 0;
    while (
      length < longestMatch &&
      length < place &&
      this.#tokens[place - 1 - length] === this.#tokens[end - 1 - length]
    ) {
      length++;
    }
    return length;
  }

  /** The pair that ends before `place` is found there from now on. */
  #insert(place: number): void {
    if (place < shortestMatch) return;
    const slot = this.#slotOf(place);
    this.#previous[place & this.#mask] = this.#heads[slot]!;
    this.#heads[slot] = place;
  }

  #slotOf(place: number): number {
    const hash = Math.imul(this.#tokens[place - 2]!, hashMultiplier) + this.#tokens[place - 1]!;
    return (Math.imul(hash, hashMultiplier) >>> 15) & this.#mask;
  }
}
