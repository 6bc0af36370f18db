/**
 * SentencePiece's BPE encoding, id for id. A text becomes a list of symbols (characters, and
 * user-defined pieces as wholes); then the neighbours whose joint piece has the highest score are
 * merged, again and again. Three things make it near-linear:
 * - symbols are numbers, and a table built once says which two make which piece;
 * - possible merges wait in a heap, symbols form a linked list (symbol-run.ts, as in SentencePiece);
 * - where two neighbouring characters are neighbours in no piece at all, no merge can ever reach
 *   across, so the text falls into independent runs (words, mostly) and the heap stays small.
 */
import type { Piece, SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { PairTable } from "./pair-table.js";
import { PieceIds } from "./piece-ids.js";
import { PieceMatcher } from "./piece-matcher.js";
import { SymbolRun } from "./symbol-run.js";

export class BpeEncoder {
  readonly #file: SentencePieceFile;
  /** A character that is no piece is the symbol #characterBase + code point; pieces are their ids. */
  readonly #characterBase: number;
  readonly #bmpSymbols: Int32Array;
  readonly #astralSymbols = new Map<number, number>();
  /** (left symbol, right symbol) -> piece. */
  readonly #merges = new PairTable(1 << 16);
  /** Pairs of character symbols that are neighbours within some piece. */
  readonly #neighbours = new PairTable(1 << 16);
  readonly #userDefined: PieceMatcher;
  readonly #ids: PieceIds;
  readonly #hasUnused: boolean;
  readonly #run: SymbolRun;

  constructor(file: SentencePieceFile) {
    const { pieces } = file;
    this.#file = file;
    this.#userDefined = new PieceMatcher(file);
    this.#ids = new PieceIds(file);
    this.#characterBase = pieces.length;
    this.#bmpSymbols = Int32Array.from({ length: 0x10000 }, (_, code) => pieces.length + code);
    this.#hasUnused = pieces.some(({ type }) => type === "unused");
    const scores = [...new Set(pieces.map(({ score }) => score))].sort((a, b) => b - a);
    const rankOf = new Map(scores.map((score, rank) => [score, rank]));
    // Equal scores have equal ranks, 0 for the highest.
    const ranks = Int32Array.from(pieces, ({ score }) => rankOf.get(score)!);
    this.#run = new SymbolRun(this.#merges, ranks);
    for (const [id, { text, type }] of pieces.entries()) {
      if (type !== "userDefined" && isOneCharacter(text)) this.#setCharacter(text.codePointAt(0)!, id);
    }
    this.#addMerges(pieces);
  }

  /** @param text Normalised and well-formed. */
  encode(text: string): number[] {
    let last = -1;
    for (let i = 0; i < text.length; ) {
      const whole = this.#userDefined.at(text, i);
      const code = text.codePointAt(i)!;
      const symbol = whole?.id ?? this.#characterSymbol(code);
      i += whole ? whole.text.length : code > 0xffff ? 2 : 1;
      // With unused pieces a run is the whole text: which split of an unused piece SentencePiece
      // remembers depends on the order of all merges.
      if (last >= 0 && !this.#hasUnused && this.#neighbours.get(last, symbol) < 0) this.#endRun();
      this.#run.append(symbol);
      last = symbol;
    }
    this.#endRun();
    return this.#ids.take();
  }

  #setCharacter(code: number, symbol: number): void {
    if (code > 0xffff) this.#astralSymbols.set(code, symbol);
    else this.#bmpSymbols[code] = symbol;
  }

  #characterSymbol(code: number): number {
    if (code > 0xffff) return this.#astralSymbols.get(code) ?? this.#characterBase + code;
    return this.#bmpSymbols[code]!;
  }

  /**
   * Every way to make a piece of two symbols. User-defined pieces take no part: they are matched
   * before any merge and never split or extended.
   */
  #addMerges(pieces: Piece[]): void {
    const mergeable = new Map<string, number>();
    for (const [id, { text, type }] of pieces.entries()) {
      if (type === "normal" || type === "unused") mergeable.set(text, id);
    }
    const symbolOf = (text: string): number | undefined =>
      mergeable.get(text) ?? (isOneCharacter(text) ? this.#characterSymbol(text.codePointAt(0)!) : undefined);
    for (const [text, id] of mergeable) {
      let previous = -1;
      for (let i = 0; i < text.length; ) {
        const code = text.codePointAt(i)!;
        const character = this.#characterSymbol(code);
        if (previous >= 0) {
          this.#neighbours.set(previous, character, 0);
          const left = symbolOf(text.slice(0, i));
          const right = symbolOf(text.slice(i));
          if (left !== undefined && right !== undefined) this.#merges.set(left, right, id);
        }
        previous = character;
        i += code > 0xffff ? 2 : 1;
      }
    }
  }

  /** Merges the run, adds its ids and leaves it empty. */
  #endRun(): void {
    if (!this.#hasUnused) {
      this.#run.drain((symbol) => this.#emit(symbol, null));
      return;
    }
    const splits = new Map<number, [number, number]>();
    const remember = (left: number, right: number, merged: number): void => {
      if (this.#file.pieces[merged]!.type === "unused") splits.set(merged, [left, right]);
    };
    this.#run.drain((symbol) => this.#emit(symbol, splits), remember);
  }

  #emit(symbol: number, splits: Map<number, [number, number]> | null): void {
    const split = splits?.get(symbol);
    if (split) {
      // An unused piece is a step of merging, never a result.
      this.#emit(split[0], splits);
      this.#emit(split[1], splits);
      return;
    }
    const { unknownId, pieces } = this.#file;
    if (symbol >= this.#characterBase)
      this.#ids.addUnknown(String.fromCodePoint(symbol - this.#characterBase));
    else if (symbol === unknownId) this.#ids.addUnknown(pieces[unknownId]!.text);
    else this.#ids.add(symbol);
  }
}

function isOneCharacter(text: string): boolean {
  return text.length === 1 || (text.length === 2 && text.codePointAt(0)! > 0xffff);
}
