/**
 * Keeps the names of special tokens in a client's texts apart from those that a template writes. Before
 * rendering, every character with which some name begins is exchanged for a stand-in, so that no name can
 * begin in a client's text, however the template cuts, strips and joins it. Where a text could complete a
 * name that the template began, a guard is put in front of it. Stand-ins are as long as what they stand for
 * and are no whitespace, so that strip(), lengths and splits at other characters work as ever; a template
 * that looks for `<` in a message does not find it. Both are private-use characters that occur nowhere in
 * the input, and rendered text gets its characters back when the names have been found.
 */
import { RelayError } from "../../common/errors.js";

const privateBegin = 0xe000;
const privateEnd = 0xf900;

export class ProtectedText {
  readonly #names: readonly string[];
  readonly #standIns = new Map<string, string>();
  readonly #originals = new Map<string, string>();
  readonly #guard: string;
  readonly #beginnings: RegExp | null = null;
  readonly #restorable: RegExp;

  /**
   * @param names Of special tokens.
   * @param taken Everything that will be rendered, in which stand-ins must not occur.
   * @throws RelayError invalid_value when all private-use characters are taken.
   */
  constructor(names: readonly string[], taken: string) {
    this.#names = names;
    const free = freeCharacters(taken);
    const take = (): string => {
      const { value } = free.next();
      if (value !== undefined) return value;
      const problem = "messages hold every private-use character from U+E000 on, expected fewer";
      throw new RelayError("invalid_value", problem, { param: "messages" });
    };
    this.#guard = take();
    const beginnings = [...new Set(names.map((name) => name.charAt(0)))];
    for (const character of beginnings) {
      const standIn = take();
      this.#standIns.set(character, standIn);
      for (const form of [standIn, escaped(standIn)]) this.#originals.set(form, character);
    }
    for (const form of [this.#guard, escaped(this.#guard)]) this.#originals.set(form, "");
    const listed = (characters: Iterable<string>) => Array.from(characters, escaped).join("");
    if (beginnings.length > 0) this.#beginnings = new RegExp(`[${listed(beginnings)}]`, "g");
    const marks = [this.#guard, ...this.#standIns.values()];
    this.#restorable = new RegExp(marks.flatMap((mark) => [mark, `\\${escaped(mark)}`]).join("|"), "g");
  }

  protect(text: string): string {
    const safe =
      this.#beginnings === null
        ? text
        : text.replace(this.#beginnings, (character) => this.#standIns.get(character)!);
    const begin = safe.length - safe.trimStart().length;
    if (!this.#mayComplete(safe.slice(begin))) return safe;
    return safe.slice(0, begin) + this.#guard + safe.slice(begin);
  }

  /** Every text in the value, keys of objects included. */
  protectAll(value: unknown): unknown {
    if (typeof value === "string") return this.protect(value);
    if (Array.isArray(value)) return value.map((element) => this.protectAll(element));
    if (typeof value !== "object" || value === null) return value;
    const entries = Object.entries(value).map(([key, member]) => [
      this.protect(key),
      this.protectAll(member),
    ]);
    return Object.fromEntries(entries);
  }

  /** Rendered text without names in it, as the client and the template wrote it. */
  restore(text: string): string {
    return text.replace(this.#restorable, (mark) => this.#originals.get(mark)!);
  }

  /** Whether a name whose beginning stands in front of the text would go on in it. */
  #mayComplete(text: string): boolean {
    if (text === "") return false;
    return this.#names.some((name) => {
      for (let cut = 1; cut < name.length; cut++) {
        const rest = name.slice(cut);
        if (text.startsWith(rest) || rest.startsWith(text)) return true;
      }
      return false;
    });
  }
}

function* freeCharacters(taken: string): Generator<string, undefined> {
  const used = new Set(taken.match(/[\ue000-\uf8ff]/g));
  // A template may write JSON in ASCII, where the characters become escapes.
  for (const [, digits] of taken.matchAll(/\\u([ef][0-9a-f]{3})/gi)) {
    used.add(String.fromCharCode(Number.parseInt(digits!, 16)));
  }
  for (let code = privateBegin; code < privateEnd; code++) {
    const character = String.fromCharCode(code);
    if (!used.has(character)) yield character;
  }
}

/** As JSON in ASCII and regular expressions write it. */
function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}
