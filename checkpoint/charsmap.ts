/**
 * The `precompiled_charsmap` of a SentencePiece normaliser: a double-array trie (in the form of Darts-clone)
 * from texts in UTF-8 to places in a block of NUL-terminated replacements. All of it is walked once when
 * it is read, so that encoding never meets what damage could have left there.
 */
import { isUtf8 } from "node:buffer";
import { RelayError } from "../common/errors.js";

/** NFKC's longest text has 10 bytes; this bounds the work per character. */
const maxKeyBytes = 64;

type Refuse = (problem: string) => never;

/** @throws RelayError invalid_model for a map that is damaged, wherever that is. */
export function parseCharsmap(bytes: Uint8Array, path: string): CharacterMap {
  const refuse: Refuse = (problem) => {
    throw new RelayError("invalid_model", `${path}: the normalizer's character map ${problem}`);
  };
  if (bytes.length < 4) refuse(`has ${bytes.length} bytes, expected at least 4`);
  const trieBytes = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (trieBytes === 0 || trieBytes % 4 !== 0 || trieBytes >= bytes.length - 4) {
    const expected = `a multiple of 4 below ${bytes.length - 4}`;
    refuse(`says that its trie has ${trieBytes} bytes, expected ${expected}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset + 4, trieBytes);
  const units = Uint32Array.from({ length: trieBytes / 4 }, (_, index) => view.getUint32(index * 4, true));
  const replacements = Buffer.from(bytes.subarray(4 + trieBytes));
  if (replacements.at(-1) !== 0) refuse("ends within a replacement, expected a NUL after it");
  if (!isUtf8(replacements)) refuse("has a replacement that is not UTF-8");
  new TrieCheck(units, replacements, refuse).visit(0, 0, 0);
  return new CharacterMap(units, replacements);
}

/** What a normaliser writes instead of a text; the longest text that fits is replaced. */
export class CharacterMap {
  readonly #units: Uint32Array;
  readonly #replacements: Buffer;
  readonly #texts = new Map<number, string>();

  /** Of the match that match() found: how many UTF-16 units it replaces, and by what. */
  length = 0;
  replacement = "";

  constructor(units: Uint32Array, replacements: Buffer) {
    this.#units = units;
    this.#replacements = replacements;
  }

  /** @param text Well-formed. @param index Of a character's first unit. */
  match(text: string, index: number): boolean {
    let place = 0;
    let leaf = -1;
    for (let next = index; next < text.length && place >= 0; ) {
      const code = text.codePointAt(next)!;
      next += code > 0xffff ? 2 : 1;
      place = this.#step(place, code);
      if (place < 0 || !hasLeaf(this.#units[place]!)) continue;
      leaf = place ^ offsetOf(this.#units[place]!);
      this.length = next - index;
    }
    if (leaf < 0) return false;
    this.replacement = this.#text(this.#units[leaf]! - leafMark);
    return true;
  }

  /** Whether a text that begins with this character may be replaced. */
  begins(code: number): boolean {
    return this.#step(0, code) >= 0;
  }

  /** Where the character's bytes lead to; -1 where they lead nowhere. */
  #step(from: number, code: number): number {
    if (code < 0x80) return this.#byte(from, code);
    if (code < 0x800) return this.#byte(this.#byte(from, 0xc0 | (code >> 6)), 0x80 | (code & 63));
    const last = 0x80 | (code & 63);
    const before = 0x80 | ((code >> 6) & 63);
    if (code < 0x10000) return this.#byte(this.#byte(this.#byte(from, 0xe0 | (code >> 12)), before), last);
    const first = this.#byte(this.#byte(from, 0xf0 | (code >> 18)), 0x80 | ((code >> 12) & 63));
    return this.#byte(this.#byte(first, before), last);
  }

  #byte(from: number, byte: number): number {
    // NUL is no part of a text: what it leads to is the value.
    if (from < 0 || byte === 0) return -1;
    return childOf(this.#units, from, byte);
  }

  #text(begin: number): string {
    let text = this.#texts.get(begin);
    if (text === undefined) {
      text = this.#replacements.toString("utf8", begin, this.#replacements.indexOf(0, begin));
      this.#texts.set(begin, text);
    }
    return text;
  }
}

/** Follows every way through the trie, parts that several texts share once. */
class TrieCheck {
  readonly #units: Uint32Array;
  readonly #replacements: Buffer;
  readonly #refuse: Refuse;
  /** Bytes that may follow; and bytes of a character still missing at the place. */
  readonly #seen = new Map<number, { height: number; missing: number }>();
  readonly #open = new Set<number>();

  constructor(units: Uint32Array, replacements: Buffer, refuse: Refuse) {
    this.#units = units;
    this.#replacements = replacements;
    this.#refuse = refuse;
  }

  /**
   * @param missing Bytes of a character still to come.
   * @returns How many bytes the longest text has from here on.
   */
  visit(place: number, depth: number, missing: number): number {
    const known = this.#seen.get(place);
    if (this.#open.has(place)) this.#refuse(`leads in a circle at unit ${place}`);
    if (known && known.missing !== missing) this.#refuse(`has texts that are not UTF-8 at unit ${place}`);
    const height = known?.height ?? this.#height(place, depth, missing);
    if (depth + height > maxKeyBytes) this.#refuse(`has a text of more than ${maxKeyBytes} bytes`);
    return height;
  }

  #height(place: number, depth: number, missing: number): number {
    if (depth > maxKeyBytes) this.#refuse(`has a text of more than ${maxKeyBytes} bytes`);
    const unit = this.#units[place]!;
    if (hasLeaf(unit)) this.#checkValue(place ^ offsetOf(unit), depth === 0 || missing > 0);
    this.#open.add(place);
    let height = 0;
    for (let byte = 1; byte < 256; byte++) {
      const child = childOf(this.#units, place, byte);
      if (child < 0) continue;
      const continues = (byte & 0xc0) === 0x80;
      if (continues !== missing > 0 || byte >= 0xf8) {
        this.#refuse(`has the byte 0x${byte.toString(16)} at unit ${child}, expected UTF-8`);
      }
      const left = continues ? missing - 1 : byte < 0xc0 ? 0 : byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
      height = Math.max(height, 1 + this.visit(child, depth + 1, left));
    }
    this.#open.delete(place);
    this.#seen.set(place, { height, missing });
    return height;
  }

  /** A replacement may be the end of another one, but does not begin within a character. */
  #checkValue(leaf: number, withinCharacter: boolean): void {
    const unit = this.#units[leaf];
    if (withinCharacter) this.#refuse(`replaces a part of a character at unit ${leaf}`);
    if (unit === undefined || unit < leafMark) this.#refuse(`leads to no value at unit ${leaf}`);
    const begin = unit! - leafMark;
    const first = this.#replacements[begin];
    if (first !== undefined && (first & 0xc0) !== 0x80) return;
    const size = this.#replacements.length;
    this.#refuse(`has a replacement at byte ${begin} of ${size}, expected a character's beginning`);
  }
}

// A unit of Darts-clone: bits 0-7 the byte that leads here, bit 8 whether a value follows, bit 9 whether
// the offset counts in 256, bits 10-30 the offset to XOR with the own place; bit 31 marks a value.
const leafMark = 2 ** 31;

function hasLeaf(unit: number): boolean {
  return ((unit >>> 8) & 1) === 1;
}

function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}

/** -1 where the byte leads nowhere. A value is never taken for a byte: its bit 31 is compared too. */
function childOf(units: Uint32Array, place: number, byte: number): number {
  const child = place ^ offsetOf(units[place]!) ^ byte;
  // Of a damaged unit the place may be negative or too large.
  const unit = units[child];
  return unit !== undefined && (unit & (leafMark | 0xff)) === byte ? child : -1;
}
