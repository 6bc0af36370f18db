/**
 * Reads a call with keyword arguments that are Python literals, `tool_call(city='Beijing', days=3)`, into
 * JSON. A grammar of its own: what a model writes is never run.
 */

/** Lists and dictionaries within each other. */
const maxDepth = 64;

/** @returns The arguments as a JSON object; null for anything but one such call. */
export function pythonArguments(source: string, callee: string): string | null {
  try {
    return new PythonReader(source).call(callee);
  } catch (cause) {
    if (cause instanceof NotPython) return null;
    throw cause;
  }
}

class NotPython extends Error {}

const words: Record<string, string> = { True: "true", False: "false", None: "null" };
const escapes: Record<string, string> = {
  "\n": "",
  "\\": "\\",
  "'": "'",
  '"': '"',
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};
const hexEscapes: Record<string, number> = { x: 2, u: 4, U: 8 };

class PythonReader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  call(callee: string): string {
    if (this.#match(/[\p{L}_][\p{L}\p{N}_]*/uy) !== callee) throw new NotPython();
    this.#expect("(");
    const members = new Map<string, string>();
    while (!this.#skip(")")) {
      const name = this.#match(/[\p{L}_][\p{L}\p{N}_]*/uy);
      if (name === null || members.has(name)) throw new NotPython();
      this.#expect("=");
      members.set(name, this.#value(0));
      if (this.#skip(",")) continue;
      this.#expect(")");
      break;
    }
    this.#space();
    if (this.#at < this.#text.length) throw new NotPython();
    return object(members);
  }

  #value(depth: number): string {
    if (depth > maxDepth) throw new NotPython();
    this.#space();
    const next = this.#text[this.#at];
    if (next === "[") return this.#list("[", "]", depth).text;
    if (next === "(") {
      const { text, elements, comma } = this.#list("(", ")", depth);
      // Brackets around one value only group it; a comma makes a tuple.
      return elements.length === 1 && !comma ? elements[0]! : text;
    }
    if (next === "{") return this.#dictionary(depth);
    if (this.#atString()) return JSON.stringify(this.#strings());
    const word = this.#match(/[A-Za-z]+/y);
    if (word !== null) return words[word] ?? fail();
    return this.#number();
  }

  #list(open: string, close: string, depth: number) {
    this.#expect(open);
    const elements: string[] = [];
    let comma = false;
    while (!this.#skip(close)) {
      elements.push(this.#value(depth + 1));
      comma = this.#skip(",");
      if (comma) continue;
      this.#expect(close);
      break;
    }
    return { text: `[${elements.join(",")}]`, elements, comma };
  }

  #dictionary(depth: number): string {
    this.#expect("{");
    const members = new Map<string, string>();
    while (!this.#skip("}")) {
      this.#space();
      const key = this.#atString() ? this.#strings() : fail();
      this.#expect(":");
      // As in Python the last of two equal keys counts.
      members.set(key, this.#value(depth + 1));
      if (this.#skip(",")) continue;
      this.#expect("}");
      break;
    }
    return object(members);
  }

  #number(): string {
    const text = this.#match(/[+-]?(0[xX][\da-fA-F_]+|[\d_]*\.?[\d_]*([eE][+-]?\d+)?)/y) ?? fail();
    if (/[\w.]/.test(this.#text[this.#at] ?? "")) fail();
    const plain = text.replaceAll("_", "").replace(/^\+/, "");
    if (!/^-?(0[xX][\da-fA-F]+|(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)$/.test(plain)) fail();
    // Digits stay as they are: an integer may be longer than a number of JavaScript holds.
    if (/^-?(0|[1-9]\d*)$/.test(plain)) return plain;
    const negative = plain.startsWith("-");
    const value = Number(negative ? plain.slice(1) : plain);
    return Number.isFinite(value) ? JSON.stringify(negative ? -value : value) : fail();
  }

  #atString(): boolean {
    return /[rRuU]?['"]/y.test(this.#text.slice(this.#at, this.#at + 2));
  }

  /** Strings that follow one another are one. */
  #strings(): string {
    let text = "";
    do {
      text += this.#string();
      this.#space();
    } while (this.#atString());
    return text;
  }

  #string(): string {
    const raw = /[rR]/.test(this.#match(/[rRuU]/y) ?? "");
    const quote = this.#match(/'''|"""|'|"/y) ?? fail();
    let text = "";
    for (;;) {
      if (this.#text.startsWith(quote, this.#at)) {
        this.#at += quote.length;
        return text;
      }
      const character = this.#text[this.#at++];
      if (character === undefined || (character === "\n" && quote.length === 1)) throw new NotPython();
      text += character === "\\" ? this.#escape(raw) : character;
    }
  }

  #escape(raw: boolean): string {
    const character = this.#text[this.#at++] ?? fail();
    if (raw) return `\\${character}`;
    const digits = hexEscapes[character];
    if (digits !== undefined) {
      const hex = this.#text.slice(this.#at, this.#at + digits);
      const code = /^[0-9a-fA-F]+$/.test(hex) && hex.length === digits ? Number.parseInt(hex, 16) : fail();
      this.#at += digits;
      return code <= 0x10ffff ? String.fromCodePoint(code) : fail();
    }
    // An unknown escape keeps its backslash.
    return escapes[character] ?? `\\${character}`;
  }

  #skip(mark: string): boolean {
    this.#space();
    if (!this.#text.startsWith(mark, this.#at)) return false;
    this.#at += mark.length;
    return true;
  }

  #expect(mark: string): void {
    if (!this.#skip(mark)) throw new NotPython();
  }

  #match(sticky: RegExp): string | null {
    this.#space();
    sticky.lastIndex = this.#at;
    const match = sticky.exec(this.#text);
    if (match === null) return null;
    this.#at += match[0].length;
    return match[0];
  }

  #space(): void {
    while (/\s/.test(this.#text[this.#at] ?? "")) this.#at++;
  }
}

function fail(): never {
  throw new NotPython();
}

function object(members: ReadonlyMap<string, string>): string {
  return `{${Array.from(members, ([name, json]) => `${JSON.stringify(name)}:${json}`).join(",")}}`;
}
