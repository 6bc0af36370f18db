/** Finds user-defined pieces in a text: the longest one that begins at a place. */
import type { SentencePieceFile } from "../../checkpoint/sentencepiece.js";

interface UserDefined {
  text: string;
  /** Index of the piece. */
  id: number;
}

export class PieceMatcher {
  /** By first UTF-16 unit, longest first. */
  readonly #pieces = new Map<number, UserDefined[]>();

  constructor({ pieces }: SentencePieceFile) {
    for (const [id, { text, type }] of pieces.entries()) {
      if (type !== "userDefined") continue;
      const unit = text.charCodeAt(0);
      const others = this.#pieces.get(unit) ?? [];
      others.push({ text, id });
      this.#pieces.set(unit, others);
    }
    for (const others of this.#pieces.values()) others.sort((a, b) => b.text.length - a.text.length);
  }

  get firstUnits(): Iterable<number> {
    return this.#pieces.keys();
  }

  at(text: string, index: number): UserDefined | undefined {
    return this.#pieces.get(text.charCodeAt(index))?.find((piece) => text.startsWith(piece.text, index));
  }
}
