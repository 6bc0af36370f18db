/**
 * Byte-pair encoding by ranks, as tiktoken does it, id for id. A regex cuts the text into pieces (words
 * with the space before them, numbers, runs of punctuation, whitespace). A piece that is a token is taken
 * whole; in any other the neighbours whose joint token has the lowest rank are merged, the leftmost
 * first, beginning with single bytes, until none are left.
 */
import { RelayError } from "../../common/errors.js";
import { PairTable } from "./pair-table.js";
import { SymbolRun } from "./symbol-run.js";

export class RankEncoder {
  readonly #pattern: RegExp;
  /** Bytes of a token, one per character U+0000 to U+00FF, to its rank. */
  readonly #ranks: Map<string, number>;
  readonly #byteRanks: Int32Array;
  readonly #run: SymbolRun;

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
    const merges = new PairTable(tokens.length * 2.5);
    for (const [rank, token] of tokens.entries()) {
      for (let cut = 1; cut < token.length; cut++) {
        const left = this.#ranks.get(token.slice(0, cut));
        if (left === undefined) continue;
        const right = this.#ranks.get(token.slice(cut));
        if (right !== undefined) merges.set(left, right, rank);
      }
    }
    this.#run = new SymbolRun(
      merges,
      Int32Array.from(tokens, (_, rank) => rank),
    );
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
      else {
        for (const byte of bytes) this.#run.append(this.#byteRanks[byte]!);
        this.#run.drain((rank) => ids.push(rank));
      }
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
