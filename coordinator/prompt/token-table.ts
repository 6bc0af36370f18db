/**
 * What each token id stands for. Built in a thread from the tokenizer's file, whose reading takes
 * longer than the coordinator may stand still, and handed over as a few large values: 65,000 objects
 * would take as long to receive as the file to read.
 */
import { isUtf8 } from "node:buffer";
import { pieceByte, type SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { addedTokensOf, type TokenizerFile } from "../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import type { LeadingSpaces, Replacement, TokenText, TokenTexts } from "./detokenizer.js";
import { whitespaceOfMarks } from "./whitespace.js";

const kinds = ["text", "verbatim", "control", "bytes", "special"] as const;

interface Entry {
  kind: (typeof kinds)[number];
  text: string;
}

export interface TokenTableData {
  /**
   * The texts of all tokens, one after the other, spaces as they are read; of the kind "bytes" one
   * character U+0000 to U+00FF for each byte.
   */
  texts: string;
  /** Where each token's text ends in `texts`. */
  ends: Int32Array;
  /** Index into `kinds`. */
  kinds: Uint8Array;
  leadingSpaces: LeadingSpaces;
  replacement: Replacement;
}

export function tokenTableData(file: TokenizerFile, card: ModelCard): TokenTableData {
  const tokens =
    file.kind === "tiktoken"
      ? file.tokens.map((text): Entry => ({ kind: "bytes", text }))
      : pieceEntries(file, card.tokenizer);
  for (const { name, visible } of addedTokensOf(file, card)) {
    tokens.push({ kind: visible ? "text" : "special", text: name });
  }
  let end = 0;
  return {
    texts: tokens.map(({ text }) => text).join(""),
    ends: Int32Array.from(tokens, ({ text }) => {
      end += text.length;
      return end;
    }),
    kinds: Uint8Array.from(tokens, ({ kind }) => kinds.indexOf(kind)),
    leadingSpaces: file.kind === "tiktoken" ? "keep" : leadingSpaces(file),
    replacement: file.kind === "tiktoken" ? "perSequence" : "perByte",
  };
}

function leadingSpaces({ addDummyPrefix, removeExtraWhitespaces }: SentencePieceFile): LeadingSpaces {
  if (removeExtraWhitespaces) return "dropOnePerToken";
  return addDummyPrefix ? "dropOne" : "keep";
}

function pieceEntries(file: SentencePieceFile, facts: ModelCard["tokenizer"]): Entry[] {
  const { whitespace, firstPieceId = 0 } = facts.kind === "sentencepiece" ? facts : {};
  const marks = whitespaceOfMarks(whitespace);
  const entries = Array.from(
    { length: firstPieceId },
    (_, id): Entry => ({ kind: "control", text: `<${id}>` }),
  );
  for (const { text, type } of file.pieces) {
    const mark = type === "userDefined" ? marks.get(text) : undefined;
    if (type === "byte") entries.push({ kind: "bytes", text: String.fromCharCode(pieceByte(text)!) });
    else if (type === "control") entries.push({ kind: type, text });
    else if (type === "unknown") entries.push({ kind: "verbatim", text: file.unknownSurface });
    else if (mark !== undefined) entries.push({ kind: "verbatim", text: mark });
    else entries.push({ kind: "text", text: text.replaceAll("\u2581", " ") });
  }
  return entries;
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

  get leadingSpaces(): LeadingSpaces {
    return this.data.leadingSpaces;
  }

  get replacement(): Replacement {
    return this.data.replacement;
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
    if (kind === "bytes") return { kind, bytes: Buffer.from(text, "latin1") };
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
    if (token.kind === "bytes") return token.bytes;
    return Buffer.from("text" in token ? token.text : token.name);
  }

  /** The token for people: bytes that are no text by themselves are named, like <0xE4><0xBD>. */
  tokenString(id: number): string {
    const token = this.tokenText(id);
    if (token.kind === "bytes") return isUtf8(token.bytes) ? token.bytes.toString() : byteNames(token.bytes);
    return "text" in token ? token.text : token.name;
  }

  #text(id: number): string {
    const { texts, ends } = this.data;
    return texts.slice(id === 0 ? 0 : ends[id - 1], ends[id]);
  }
}

function byteNames(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
}
