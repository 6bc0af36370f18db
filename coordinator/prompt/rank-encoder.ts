/**
 * Byte-pair encoding by ranks, as tiktoken does it, id for id. A regex cuts the text into pieces (words
 * with the space before them, numbers, runs of punctuation, whitespace). A piece that is a token is taken
 * whole; in any other the neighbours whose joint token has the lowest rank are merged, the leftmost
 * first, beginning with single bytes, until none are left. Possible merges wait in a heap, so that a
 * piece of a million letters takes no longer than its share.
 */
import { RelayError } from "../../common/errors.js";
import { MergeQueue } from "./merge-queue.js";
import { PairTable } from "./pair-table.js";

export class RankEncoder {
  readonly #pattern: RegExp;
  /** Bytes of a token, one per character U+0000 to U+00FF, to its rank. */
  readonly #ranks: Map<string, number>;
  readonly #byteRanks: Int32Array;
  /** (left token, right token) -> their joint token. */
  readonly #merges: PairTable;
  readonly #queue = new MergeQueue();

  // The piece at hand: tokens, -1 once merged into the left neighbour, and links to both neighbours.
  #symbols = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);

  /**
   * @param tokens  Bytes of each token as a string of one character per byte, by rank.
   * @param pattern The authors' regex, in the syntax of Python's regex package and of Rust.
   */
  constructor(tokens: readonly string[], pattern: string) {
    this.#pattern = new RegExp(javascriptPattern(pattern), "gu");
    this.#ranks = new Map(tokens.map((token, rank) => [token, rank]));
    this.#byteRanks = Int32Array.from(
      { length: 256 },
      (_, byte) => this.#ranks.get(String.fromCharCode(byte))!,
    );
    // cl100k_base has 2.33 of them per token, o200k_base 2.23.
    this.#merges = new PairTable(tokens.length * 2.5);
    for (const [rank, token] of tokens.entries()) {
      for (let cut = 1; cut < token.length; cut++) {
        const left = this.#ranks.get(token.slice(0, cut));
        if (left === undefined) continue;
        const right = this.#ranks.get(token.slice(cut));
        if (right !== undefined) this.#merges.set(left, right, rank);
      }
    }
  }

  /**
   * Token ids of the text; lone surrogates count as U+FFFD.
   * @throws RelayError invalid_value for a single word of some millions of characters.
   */
  encode(text: string): number[] {
    const ids: number[] = [];
    this.#pattern.lastIndex = 0;
    for (;;) {
      const piece = this.#nextPiece(text);
      if (piece === null) return ids;
      const bytes = Buffer.from(piece);
      const whole = this.#ranks.get(bytes.toString("latin1"));
      if (whole !== undefined) ids.push(whole);
      else this.#mergePiece(bytes, ids);
    }
  }

  /** V8 keeps its way back in 64 MB: enough for five million CJK characters without a break. */
  #nextPiece(text: string): string | null {
    try {
      return this.#pattern.exec(text)?.[0] ?? null;
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      const message = `a text has a word of millions of characters (at ${this.#pattern.lastIndex}), which is too long to encode`;
      throw new RelayError("invalid_value", message, { cause });
    }
  }

  #mergePiece(bytes: Uint8Array, ids: number[]): void {
    const { length } = bytes;
    this.#reserve(length);
    const [symbols, next, previous, queue] = [this.#symbols, this.#next, this.#previous, this.#queue];
    for (let index = 0; index < length; index++) {
      symbols[index] = this.#byteRanks[bytes[index]!]!;
      next[index] = index + 1;
      previous[index] = index - 1;
      if (index > 0) this.#offer(index - 1, index);
    }
    while (queue.pop()) {
      const { left, right, merged } = queue;
      // A neighbour may have been merged elsewhere since; the pair as it is now was offered then.
      if (symbols[left] === -1 || symbols[right] === -1) continue;
      if (this.#merges.get(symbols[left]!, symbols[right]!) !== merged) continue;
      symbols[left] = merged;
      symbols[right] = -1;
      const after = next[right]!;
      next[left] = after;
      if (after < length) previous[after] = left;
      if (previous[left]! >= 0) this.#offer(previous[left]!, left);
      if (after < length) this.#offer(left, after);
    }
    for (let index = 0; index < length; index = next[index]!) ids.push(symbols[index]!);
  }

  #offer(left: number, right: number): void {
    const merged = this.#merges.get(this.#symbols[left]!, this.#symbols[right]!);
    if (merged >= 0) this.#queue.push(merged, left, right, merged);
  }

  #reserve(length: number): void {
    if (length <= this.#symbols.length) return;
    const capacity = 2 ** Math.ceil(Math.log2(length));
    this.#symbols = new Int32Array(capacity);
    this.#next = new Int32Array(capacity);
    this.#previous = new Int32Array(capacity);
  }
}

/**
 * The same regex for JavaScript's `u` mode: `\s` is Unicode's White_Space there, which has U+0085 and not
 * U+FEFF, and `(?i:...)` is written out. Ignoring case, an s is also U+017F, the long s. What is a letter is
 * up to the Unicode version of Node, as elsewhere to that of the library.
 */
export function javascriptPattern(pattern: string): string {
  return pattern
    .replaceAll(/\(\?i:([^()]*)\)/g, (_, group: string) => {
      const letters = group.replaceAll(/[a-z]/gi, (c) => {
        return `[${c.toLowerCase()}${c.toUpperCase()}${c.toLowerCase() === "s" ? "\u017f" : ""}]`;
      });
      return `(?:${letters})`;
    })
    .replaceAll("\\s", "\\p{White_Space}")
    .replaceAll("\\S", "\\P{White_Space}");
}
