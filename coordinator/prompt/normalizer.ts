/**
 * SentencePiece's normaliser, character for character: texts are replaced by the file's character map,
 * the longest that fits; extra spaces go; a space may come in front; and U+2581 stands for each space.
 * User-defined pieces are taken as they are.
 */
import type { CharacterMap } from "../../checkpoint/charsmap.js";
import type { SentencePieceFile } from "../../checkpoint/sentencepiece.js";
import { PieceMatcher } from "./piece-matcher.js";

const space = "\u2581";
const loneSurrogates = /\p{Surrogate}/gu;

export class Normalizer {
  readonly #file: SentencePieceFile;
  readonly #userDefined: PieceMatcher;
  /** By UTF-16 unit: a character that begins with it may be more than copied. */
  readonly #special = new Uint8Array(0x10000);
  /** Neither replaces nor drops anything: spaces alone are to be written in their way. */
  readonly #plain: boolean;

  constructor(file: SentencePieceFile) {
    this.#file = file;
    this.#userDefined = new PieceMatcher(file);
    this.#plain = file.characterMap === null && !file.removeExtraWhitespaces;
    this.#special[0x20] = 1;
    for (const unit of this.#userDefined.firstUnits) this.#special[unit] = 1;
    if (file.characterMap) this.#markReplaced(file.characterMap);
  }

  #markReplaced(characterMap: CharacterMap): void {
    for (let unit = 0; unit < 0x10000; unit++) {
      const isSurrogate = unit >= 0xd800 && unit < 0xe000;
      if (isSurrogate || characterMap.begins(unit)) this.#special[unit] = 1;
    }
  }

  /** Lone surrogates count as U+FFFD. */
  normalize(text: string): string {
    if (text === "") return "";
    const { addDummyPrefix, removeExtraWhitespaces } = this.#file;
    const wellFormed = text.replace(loneSurrogates, "\ufffd");
    const prefix = addDummyPrefix ? space : "";
    if (this.#plain) return prefix + wellFormed.replaceAll(" ", space);
    const normalized = prefix + this.#replaced(wellFormed);
    return removeExtraWhitespaces ? withoutEnd(normalized) : normalized;
  }

  #replaced(text: string): string {
    const { characterMap, removeExtraWhitespaces } = this.#file;
    let normalized = "";
    let afterSpace = removeExtraWhitespaces;
    let copied = 0;
    for (let i = 0; i < text.length; ) {
      if (this.#special[text.charCodeAt(i)] === 0) {
        afterSpace = false;
        i++;
        continue;
      }
      normalized += text.slice(copied, i);
      let piece = this.#userDefined.at(text, i)?.text;
      if (piece !== undefined) i += piece.length;
      else if (characterMap?.match(text, i)) {
        piece = characterMap.replacement;
        i += characterMap.length;
      } else {
        piece = String.fromCodePoint(text.codePointAt(i)!);
        i += piece.length;
      }
      copied = i;
      if (afterSpace) piece = piece.replace(/^ +/, "");
      // What is nothing leaves it as it was.
      if (piece !== "") afterSpace = removeExtraWhitespaces && piece.endsWith(" ");
      normalized += piece.replaceAll(" ", space);
    }
    return normalized + text.slice(copied);
  }
}

function withoutEnd(text: string): string {
  let end = text.length;
  while (end > 0 && text[end - 1] === space) end--;
  return text.slice(0, end);
}
