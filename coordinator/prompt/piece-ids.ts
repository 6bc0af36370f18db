/** Collects the ids of a text's pieces, where what is no piece becomes its bytes or the unknown token. */
import { pieceByte, type SentencePieceFile } from "../../checkpoint/sentencepiece.js";

export class PieceIds {
  readonly #unknownId: number;
  /** By byte; null where unknown characters are the unknown token. */
  readonly #byteIds: Int32Array | null;
  #ids: number[] = [];

  constructor({ pieces, unknownId, byteFallback }: SentencePieceFile) {
    this.#unknownId = unknownId;
    this.#byteIds = byteFallback ? new Int32Array(256) : null;
    for (const [id, { text, type }] of pieces.entries()) {
      if (this.#byteIds && type === "byte") this.#byteIds[pieceByte(text)!] = id;
    }
  }

  add(id: number): void {
    this.#ids.push(id);
  }

  addUnknown(text: string): void {
    if (this.#byteIds) {
      for (const byte of Buffer.from(text)) this.#ids.push(this.#byteIds[byte]!);
    } else if (this.#ids.at(-1) !== this.#unknownId) {
      // A run of unknown characters is one unknown token.
      this.#ids.push(this.#unknownId);
    }
  }

  /** All since the last call. */
  take(): number[] {
    const ids = this.#ids;
    this.#ids = [];
    return ids;
  }
}
