/**
 * SentencePiece's unigram encoding, id for id: of all ways to cut a text into pieces the most probable one,
 * found from left to right (Viterbi). The sums of logarithms are rounded as SentencePiece 0.2.2 and later
 * rounds them, to single precision after each addition: that decides between ways of equal probability, such
 * as "..", "." and ".", "..". (Up to 0.2.1 a sum was compared before it was rounded, and the choice among
 * equals could be the other one.)
 */
import type { SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { PairTable } from "./pair-table.js";
import { PieceIds } from "./piece-ids.js";

/** Below the least probable piece. */
const unknownPenalty = 10;
/** Per byte but one of a user-defined piece: every other score is negative, so that the longest is taken. */
const userDefinedBonus = 0.1;
/** The largest number of single precision, where the search for the lowest score begins. */
const maxSingle = (2 - 2 ** -23) * 2 ** 127;

export class UnigramEncoder {
  readonly #unknownId: number;
  readonly #unknownScore: number;
  /** By piece. */
  readonly #scores: Float32Array;
  /** Where the first unit of a text leads to, from there on #children: a trie of all pieces. */
  readonly #roots = new Int32Array(0x10000).fill(-1);
  readonly #children: PairTable;
  /** Piece that ends at a place of the trie, or -1. */
  readonly #pieceAt: Int32Array;
  readonly #ids: PieceIds;

  constructor(file: SentencePieceFile) {
    const { pieces, unknownId } = file;
    this.#unknownId = unknownId;
    this.#ids = new PieceIds(file);
    let lowest = maxSingle;
    let units = 0;
    for (const { text, score, type } of pieces) {
      units += text.length;
      if (type === "normal") lowest = Math.min(lowest, score);
    }
    this.#unknownScore = Math.fround(lowest - unknownPenalty);
    this.#scores = Float32Array.from(pieces, ({ text, score, type }) =>
      type === "userDefined" ? userDefinedBonus * (Buffer.byteLength(text) - 1) : score,
    );
    this.#pieceAt = new Int32Array(units + 1).fill(-1);
    this.#children = new PairTable(units / 2);
    let places = 0;
    for (const [id, { text, type }] of pieces.entries()) {
      if (type !== "normal" && type !== "userDefined") continue;
      let place = this.#roots[text.charCodeAt(0)]!;
      if (place < 0) {
        place = places++;
        this.#roots[text.charCodeAt(0)] = place;
      }
      for (let i = 1; i < text.length; i++) {
        const unit = text.charCodeAt(i);
        const known = this.#children.get(place, unit);
        if (known < 0) this.#children.set(place, unit, places);
        place = known < 0 ? places++ : known;
      }
      this.#pieceAt[place] = id;
    }
  }

  /** @param text Normalised and well-formed. */
  encode(text: string): number[] {
    const { length } = text;
    // The best way to each place: its score, where its last piece begins, and which piece that is.
    const best = new Float32Array(length + 1);
    const beginOf = new Int32Array(length + 1).fill(-1);
    const pieceOf = new Int32Array(length + 1);
    for (let begin = 0; begin < length; ) {
      const firstUnit = text.charCodeAt(begin);
      const next = begin + (firstUnit >= 0xd800 && firstUnit < 0xdc00 ? 2 : 1);
      const before = best[begin]!;
      let characterIsPiece = false;
      let place = this.#roots[firstUnit]!;
      for (let end = begin + 1; place >= 0; end++) {
        const piece = this.#pieceAt[place]!;
        if (piece >= 0) {
          const score = Math.fround(this.#scores[piece]! + before);
          if (beginOf[end]! < 0 || score > best[end]!) {
            best[end] = score;
            beginOf[end] = begin;
            pieceOf[end] = piece;
          }
          if (end === next) characterIsPiece = true;
        }
        if (end >= length) break;
        place = this.#children.get(place, text.charCodeAt(end));
      }
      if (!characterIsPiece) {
        const score = Math.fround(this.#unknownScore + before);
        if (beginOf[next]! < 0 || score > best[next]!) {
          best[next] = score;
          beginOf[next] = begin;
          pieceOf[next] = this.#unknownId;
        }
      }
      begin = next;
    }
    return this.#emit(text, beginOf, pieceOf);
  }

  #emit(text: string, beginOf: Int32Array, pieceOf: Int32Array): number[] {
    const ends: number[] = [];
    for (let end = text.length; end > 0; end = beginOf[end]!) ends.push(end);
    for (let index = ends.length - 1; index >= 0; index--) {
      const end = ends[index]!;
      const piece = pieceOf[end]!;
      if (piece === this.#unknownId) this.#ids.addUnknown(text.slice(beginOf[end], end));
      else this.#ids.add(piece);
    }
    return this.#ids.take();
  }
}
