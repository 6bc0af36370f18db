/**
 * SentencePiece's BPE encoding, id for id. A text becomes a list of symbols (characters, and
 * user-defined pieces as wholes); then the neighbours whose joint piece has the highest score are
 * merged, again and again. Three things make it near-linear:
 * - symbols are numbers, and a table built once says which two make which piece;
 * - possible merges wait in a heap, symbols form a linked list (symbol-run.ts, as in SentencePiece);
 * - where two neighbouring characters are neighbours in no piece at all, no merge can ever reach
 *   across, so the text falls into independent runs (words, mostly) and the heap stays small.
 */
import { type Piece, pieceByte, type SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { PairTable } from "./pair-table.js";
import { SymbolRun } from "./symbol-run.js";

const space = "\u2581";
const replacementCharacter = 0xfffd;

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
  /** User-defined pieces by first UTF-16 unit, longest first. */
  readonly #userDefined = new Map<number, { text: string; id: number }[]>();
  readonly #byteIds = new Int32Array(256);
  readonly #hasUnused: boolean;
  readonly #run: SymbolRun;

  constructor(file: SentencePieceFile) {
    const { pieces } = file;
    this.#file = file;
    this.#characterBase = pieces.length;
    this.#bmpSymbols = Int32Array.from({ length: 0x10000 }, (_, code) => pieces.length + code);
    this.#hasUnused = pieces.some(({ type }) => type === "unused");
    const scores = [...new Set(pieces.map(({ score }) => score))].sort((a, b) => b - a);
    const rankOf = new Map(scores.map((score, rank) => [score, rank]));
    // Equal scores have equal ranks, 0 for the highest.
    const ranks = Int32Array.from(pieces, ({ score }) => rankOf.get(score)!);
    this.#run = new SymbolRun(this.#merges, ranks);
    for (const [id, { text, type }] of pieces.entries()) {
      if (type === "byte") this.#byteIds[pieceByte(text)!] = id;
      if (type === "userDefined") this.#addUserDefined(text, id);
      else if (isOneCharacter(text)) this.#setCharacter(text.codePointAt(0)!, id);
    }
    this.#addMerges(pieces);
  }

  /** Token ids of the text; lone surrogates count as U+FFFD. */
  encode(text: string): number[] {
    const ids: number[] = [];
    if (text === "") return ids;
    const escaped = (this.#file.addDummyPrefix ? space : "") + text.replaceAll(" ", space);
    let last = -1;
    for (let i = 0; i < escaped.length; ) {
      const whole = this.#userDefinedAt(escaped, i);
      const code = escaped.codePointAt(i)!;
      const symbol = whole?.id ?? this.#characterSymbol(code);
      i += whole ? whole.text.length : code > 0xffff ? 2 : 1;
      // With unused pieces a run is the whole text: which split of an unused piece SentencePiece
      // remembers depends on the order of all merges.
      if (last >= 0 && !this.#hasUnused && this.#neighbours.get(last, symbol) < 0) this.#endRun(ids);
      this.#run.append(symbol);
      last = symbol;
    }
    this.#endRun(ids);
    return ids;
  }

  #setCharacter(code: number, symbol: number): void {
    if (code > 0xffff) this.#astralSymbols.set(code, symbol);
    else this.#bmpSymbols[code] = symbol;
  }

  #characterSymbol(code: number): number {
    if (code > 0xffff) return this.#astralSymbols.get(code) ?? this.#characterBase + code;
    return this.#bmpSymbols[code >= 0xd800 && code < 0xe000 ? replacementCharacter : code]!;
  }

  #addUserDefined(text: string, id: number): void {
    const unit = text.charCodeAt(0);
    const others = this.#userDefined.get(unit) ?? [];
    others.push({ text, id });
    others.sort((a, b) => b.text.length - a.text.length);
    this.#userDefined.set(unit, others);
  }

  #userDefinedAt(text: string, index: number): { text: string; id: number } | undefined {
    if (this.#userDefined.size === 0) return undefined;
    return this.#userDefined.get(text.charCodeAt(index))?.find((piece) => text.startsWith(piece.text, index));
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
  #endRun(ids: number[]): void {
    if (!this.#hasUnused) {
      this.#run.drain((symbol) => this.#emit(symbol, null, ids));
      return;
    }
    const splits = new Map<number, [number, number]>();
    const remember = (left: number, right: number, merged: number): void => {
      if (this.#file.pieces[merged]!.type === "unused") splits.set(merged, [left, right]);
    };
    this.#run.drain((symbol) => this.#emit(symbol, splits, ids), remember);
  }

  #emit(symbol: number, splits: Map<number, [number, number]> | null, ids: number[]): void {
    const split = splits?.get(symbol);
    if (split) {
      // An unused piece is a step of merging, never a result.
      this.#emit(split[0], splits, ids);
      this.#emit(split[1], splits, ids);
      return;
    }
    const { unknownId, pieces } = this.#file;
    if (symbol < this.#characterBase && symbol !== unknownId) {
      ids.push(symbol);
      return;
    }
    if (this.#file.byteFallback) {
      const character =
        symbol === unknownId ? pieces[unknownId]!.text : String.fromCodePoint(symbol - this.#characterBase);
      for (const byte of Buffer.from(character)) ids.push(this.#byteIds[byte]!);
    } else if (ids.at(-1) !== unknownId) {
      // A run of unknown characters is one unknown token.
      ids.push(unknownId);
    }
  }
}

function isOneCharacter(text: string): boolean {
  return text.length === 1 || (text.length === 2 && text.codePointAt(0)! > 0xffff);
}
