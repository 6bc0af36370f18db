/**
 * Text from tokens, as they come: what push() returns is certain, so half a UTF-8 character waits for
 * its other half. All pushed together with flush() is exactly what the authors' tokenizer decodes at
 * once. Of a SentencePiece model:
 * - the space of the dummy prefix is dropped at the beginning of a text, and special tokens begin a
 *   new one;
 * - bytes that are no UTF-8 become one U+FFFD each.
 * Of byte ranks: there is no such space, and bytes that are no UTF-8 become U+FFFD as in Python and on
 * the web, where the begun part of a character counts as one.
 */

/** What a token is when text is made of tokens. */
export type TokenText =
  | { kind: "text"; text: string }
  /** A leading space is part of it, wherever it stands: the unknown token, marks for whitespace. */
  | { kind: "verbatim"; text: string }
  /** Not always a whole character, nor only one. */
  | { kind: "bytes"; bytes: Buffer }
  /** Special tokens stand between texts that were encoded on their own, control pieces within one. */
  | { kind: "special"; name: string }
  | { kind: "control"; name: string };

export interface Detokenizer {
  push(token: number): string;
  /** The rest; the detokenizer can then be used for another text. */
  flush(): string;
}

export interface TokenTexts {
  tokenText(id: number): TokenText;
  readonly leadingSpaces: LeadingSpaces;
  /** How many U+FFFD stand for bytes that are no UTF-8. */
  readonly replacement: Replacement;
}

/**
 * What becomes of spaces at the beginning of a text: that of the dummy prefix goes, or, where a model
 * drops extra whitespace, one of each token until there is text.
 */
export type LeadingSpaces = "keep" | "dropOne" | "dropOnePerToken";

export type Replacement = "perByte" | "perSequence";

export interface DetokenizerOptions {
  skipSpecialTokens: boolean;
  /** Names of special tokens that are written though the others are skipped. */
  keepTokens?: readonly string[];
}

export class StreamDetokenizer implements Detokenizer {
  readonly #tokens: TokenTexts;
  readonly #options: DetokenizerOptions;
  readonly #utf8: Utf8Decoder;
  /** The next piece may still be the first one of its text, whose leading space is dropped. */
  #atBeginning = true;
  #droppedSpace = false;

  constructor(tokens: TokenTexts, options: DetokenizerOptions) {
    this.#tokens = tokens;
    this.#options = options;
    this.#utf8 = tokens.replacement === "perByte" ? new Utf8Assembler() : new WebUtf8Decoder();
  }

  push(token: number): string {
    const item = this.#tokens.tokenText(token);
    if (item.kind === "bytes") {
      const text = this.#utf8.push(item.bytes);
      if (text !== "") this.#atBeginning = false;
      return text;
    }
    const pending = this.#utf8.flush();
    if (item.kind === "special") {
      this.#begin();
      return pending + this.#shown(item.name);
    }
    const { leadingSpaces } = this.#tokens;
    if ((this.#droppedSpace && leadingSpaces === "dropOne") || pending !== "") this.#atBeginning = false;
    if (item.kind === "control") return pending + this.#shown(item.name);
    this.#droppedSpace =
      item.kind === "text" && this.#atBeginning && leadingSpaces !== "keep" && item.text.startsWith(" ");
    const text = this.#droppedSpace ? item.text.slice(1) : item.text;
    if (text !== "") this.#atBeginning = false;
    return pending + text;
  }

  flush(): string {
    this.#begin();
    return this.#utf8.flush();
  }

  #shown(name: string): string {
    const { skipSpecialTokens, keepTokens } = this.#options;
    return skipSpecialTokens && !keepTokens?.includes(name) ? "" : name;
  }

  #begin(): void {
    this.#atBeginning = true;
    this.#droppedSpace = false;
  }
}

/** The whole text of the ids. */
export function decodeTokens(
  tokens: TokenTexts,
  ids: Iterable<number>,
  options: { skipSpecialTokens: boolean },
): string {
  const detokenizer = new StreamDetokenizer(tokens, options);
  const parts: string[] = [];
  for (const id of ids) parts.push(detokenizer.push(id));
  parts.push(detokenizer.flush());
  return parts.join("");
}

/** Characters from bytes; those of a begun character wait. flush() gives what stands for them. */
interface Utf8Decoder {
  push(bytes: Uint8Array): string;
  flush(): string;
}

class WebUtf8Decoder implements Utf8Decoder {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  push(bytes: Uint8Array): string {
    return this.#decoder.decode(bytes, { stream: true });
  }

  flush(): string {
    return this.#decoder.decode();
  }
}

/** Like SentencePiece, and unlike TextDecoder: each wrong byte is one U+FFFD. */
class Utf8Assembler implements Utf8Decoder {
  #pending: number[] = [];

  push(bytes: Uint8Array): string {
    this.#pending.push(...bytes);
    return this.#take(false);
  }

  flush(): string {
    return this.#take(true);
  }

  #take(final: boolean): string {
    let text = "";
    while (this.#pending.length > 0) {
      const size = sequenceLength(this.#pending[0]!);
      const bytes = this.#pending.slice(0, size);
      const wellFormed = bytes.every((byte, index) => index === 0 || (byte & 0xc0) === 0x80);
      if (bytes.length < size && wellFormed && !final) break;
      const code = bytes.length === size && wellFormed ? codePoint(bytes) : -1;
      text += code < 0 ? "\ufffd" : String.fromCodePoint(code);
      this.#pending.splice(0, code < 0 ? 1 : size);
    }
    return text;
  }
}

/** Bytes of the character that this byte leads; 1 also for a byte that leads none. */
function sequenceLength(lead: number): number {
  if (lead >= 0xf0 && lead < 0xf8) return 4;
  if (lead >= 0xe0) return lead < 0xf0 ? 3 : 1;
  return lead >= 0xc0 ? 2 : 1;
}

/** -1 for a stray byte, a longer form than needed, a surrogate and what is beyond U+10FFFF. */
function codePoint(bytes: number[]): number {
  const [lead, ...trail] = bytes as [number, ...number[]];
  if (trail.length === 0) return lead < 0x80 ? lead : -1;
  const code = trail.reduce((value, byte) => (value << 6) | (byte & 0x3f), lead & (0x3f >> trail.length));
  const least = [0x80, 0x800, 0x10000][trail.length - 1]!;
  if (code < least || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return -1;
  return code;
}
