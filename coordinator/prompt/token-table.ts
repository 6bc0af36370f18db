/**
 * What each token id stands for. Built in a thread from the tokenizer's file, whose reading takes
 * longer than the coordinator may stand still, and handed over as a few large values: 65,000 objects
 * would take as long to receive as the file to read.
 */
import { pieceByte, type SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { RelayError } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import type { TokenText, TokenTexts } from "./detokenizer.js";

const kinds = ["text", "unknown", "control", "byte", "special"] as const;

export interface TokenTableData {
  /** The texts of all tokens, one after the other, spaces as they are read; a byte's is its name. */
  texts: string;
  /** Where each token's text ends in `texts`. */
  ends: Int32Array;
  /** Index into `kinds`. */
  kinds: Uint8Array;
  /** Whether SentencePiece would swallow the space in front of the first piece when decoding. */
  addDummyPrefix: boolean;
}

export function tokenTableData(file: SentencePieceFile, card: ModelCard): TokenTableData {
  const tokens = file.pieces.map(({ text, type }): { kind: (typeof kinds)[number]; text: string } => {
    if (type === "byte" || type === "control") return { kind: type, text };
    if (type === "unknown") return { kind: type, text: file.unknownSurface };
    return { kind: "text", text: text.replaceAll("\u2581", " ") };
  });
  for (const text of card.tokenizer.specialTokens) tokens.push({ kind: "special", text });
  let end = 0;
  return {
    texts: tokens.map(({ text }) => text).join(""),
    ends: Int32Array.from(tokens, ({ text }) => {
      end += text.length;
      return end;
    }),
    kinds: Uint8Array.from(tokens, ({ kind }) => kinds.indexOf(kind)),
    addDummyPrefix: file.addDummyPrefix,
  };
}

export class TokenTable implements TokenTexts {
  /** Ids from here on do not exist. */
  readonly tokenCount: number;
  /** Shared with whoever gets the table: not to be changed. */
  readonly data: TokenTableData;

  constructor(data: TokenTableData) {
    this.data = data;
    this.tokenCount = data.kinds.length;
  }

  get addDummyPrefix(): boolean {
    return this.data.addDummyPrefix;
  }

  /** @throws RelayError invalid_value for an id that does not exist. */
  tokenText(id: number): TokenText {
    const kind = kinds[this.data.kinds[id] ?? -1];
    if (kind === undefined) {
      throw new RelayError(
        "invalid_value",
        `token id ${id} does not exist, expected a whole number from 0 to ${this.tokenCount - 1}`,
        { param: "tokens" },
      );
    }
    const text = this.#text(id);
    if (kind === "byte") return { kind, byte: pieceByte(text)! };
    if (kind === "control" || kind === "special") return { kind, name: text };
    return { kind, text };
  }

  /** True for tokens that stand for no text: role tokens, <s>, </s>. */
  isSpecial(id: number): boolean {
    const { kind } = this.tokenText(id);
    return kind === "special" || kind === "control";
  }

  /** The token's own bytes; special tokens are written by name. */
  pieceBytes(id: number): Uint8Array {
    const token = this.tokenText(id);
    if (token.kind === "byte") return Uint8Array.of(token.byte);
    return Buffer.from("text" in token ? token.text : token.name);
  }

  /** The token for people: a byte that is no character by itself keeps its name, like <0xE4>. */
  tokenString(id: number): string {
    const token = this.tokenText(id);
    if (token.kind === "byte") return token.byte < 0x80 ? String.fromCharCode(token.byte) : this.#text(id);
    return "text" in token ? token.text : token.name;
  }

  #text(id: number): string {
    const { texts, ends } = this.data;
    return texts.slice(id === 0 ? 0 : ends[id - 1], ends[id]);
  }
}
