/** Text to the ids of a SentencePiece model, as the authors' code does it around SentencePiece itself. */
import type { SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import type { SentencePieceFacts } from "../../models/card.js";
import { BpeEncoder } from "./bpe.js";
import { Normalizer } from "./normalizer.js";
import { UnigramEncoder } from "./unigram.js";
import { markWhitespace } from "./whitespace.js";

export class PieceEncoder {
  readonly #facts: SentencePieceFacts;
  readonly #normalizer: Normalizer;
  readonly #pieces: BpeEncoder | UnigramEncoder;

  constructor(file: SentencePieceFile, facts: SentencePieceFacts) {
    this.#facts = facts;
    this.#normalizer = new Normalizer(file);
    this.#pieces = file.modelType === "bpe" ? new BpeEncoder(file) : new UnigramEncoder(file);
  }

  encode(text: string): number[] {
    const { whitespace, firstPieceId = 0 } = this.#facts;
    const ids = this.#pieces.encode(this.#normalizer.normalize(markWhitespace(text, whitespace)));
    return firstPieceId === 0 ? ids : ids.map((id) => firstPieceId + id);
  }

  /**
   * As if the text went on from another one: without the space that SentencePiece writes in front. icetk
   * has its way for it: a newline goes in front, and the ids of the space and of the newline are dropped.
   */
  encodeContinued(text: string): number[] {
    return this.encode(`\n${text}`).slice(2);
  }
}
