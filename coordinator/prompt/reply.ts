/**
 * What the authors' code does to a chat reply once it is whole, done while it is streamed: whatever may
 * still change waits, and all that came out, put together, is what they return.
 */
import type { ModelCard } from "../../models/card.js";
import type { Detokenizer } from "./detokenizer.js";

/** The card's steps, in the authors' order: strip, replace, then punctuation. */
export function replyDetokenizer(plain: Detokenizer, card: ModelCard): Detokenizer {
  const { replyReplacement, replyStripsEnd = false, replyPunctuation } = card;
  let reply: Detokenizer = new ReplyTrimmer(plain, { atEnd: replyStripsEnd });
  if (replyReplacement) reply = new ReplyReplacer(reply, replyReplacement);
  return replyPunctuation ? new ReplyPunctuation(reply, replyPunctuation) : reply;
}

abstract class ReplyStep implements Detokenizer {
  readonly #inner: Detokenizer;

  constructor(inner: Detokenizer) {
    this.#inner = inner;
  }

  push(token: number): string {
    return this.take(this.#inner.push(token));
  }

  flush(): string {
    return this.take(this.#inner.flush()) + this.end();
  }

  /** What is certain of all text so far and was not given yet. */
  protected abstract take(text: string): string;

  /** The rest, after which another text may begin. */
  protected abstract end(): string;
}

/**
 * Drops the whitespace in front of a chat reply. ChatGLM3 begins a reply with its metadata line,
 * which is empty for prose, and its own code strips the reply; a metadata line with a tool's name
 * stays. The set is that of Python's str.strip, which JavaScript's trimStart does not share.
 */
export class ReplyTrimmer extends ReplyStep {
  readonly #atEnd: boolean;
  #started = false;
  #held: string[] = [];

  constructor(inner: Detokenizer, { atEnd }: { atEnd: boolean } = { atEnd: false }) {
    super(inner);
    this.#atEnd = atEnd;
  }

  protected take(text: string): string {
    let rest = text;
    if (!this.#started) {
      rest = text.replace(leadingWhitespace, "");
      this.#started = rest !== "";
    }
    if (!this.#atEnd || rest === "") return rest;
    const end = trimEnd(rest).length;
    // A list, so that a reply of nothing but spaces costs no more than its length.
    if (end === 0) {
      this.#held.push(rest);
      return "";
    }
    const held = this.#held.join("");
    this.#held = end < rest.length ? [rest.slice(end)] : [];
    return held + rest.slice(0, end);
  }

  protected end(): string {
    this.#started = false;
    this.#held = [];
    return "";
  }
}

/** Replaces a text in a chat reply, also where its parts come one by one: what may begin it waits. */
export class ReplyReplacer extends ReplyStep {
  readonly #text: string;
  readonly #by: string;
  #held = "";

  constructor(inner: Detokenizer, { text, by }: { text: string; by: string }) {
    super(inner);
    this.#text = text;
    this.#by = by;
  }

  protected take(text: string): string {
    const parts = (this.#held + text).split(this.#text);
    const last = parts.pop()!;
    let held = Math.min(last.length, this.#text.length - 1);
    while (!this.#text.startsWith(last.slice(last.length - held))) held--;
    this.#held = last.slice(last.length - held);
    return [...parts, last.slice(0, last.length - held)].join(this.#by);
  }

  protected end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

/** Marks beside Chinese characters become Chinese ones; a mark at the end waits for what comes next. */
export class ReplyPunctuation extends ReplyStep {
  readonly #rule: NonNullable<ModelCard["replyPunctuation"]>;
  #held = "";
  #afterBeside = false;

  constructor(inner: Detokenizer, rule: NonNullable<ModelCard["replyPunctuation"]>) {
    super(inner);
    this.#rule = rule;
  }

  protected take(text: string): string {
    const { marks } = this.#rule;
    const known = this.#held + text;
    this.#held = "";
    let done = "";
    for (let i = 0; i < known.length; i++) {
      const unit = known[i]!;
      const mark = Object.hasOwn(marks, unit) ? marks[unit] : undefined;
      if (mark !== undefined && !this.#afterBeside && i + 1 === known.length) {
        this.#held = unit;
        return done;
      }
      done += mark !== undefined && (this.#afterBeside || this.#isBeside(known, i + 1)) ? mark : unit;
      this.#afterBeside = this.#isBeside(known, i);
    }
    return done;
  }

  protected end(): string {
    const held = this.#held;
    this.#held = "";
    this.#afterBeside = false;
    return held;
  }

  /** The range lies within the units that are characters by themselves. */
  #isBeside(text: string, index: number): boolean {
    const unit = text.charCodeAt(index);
    return unit >= this.#rule.beside[0] && unit <= this.#rule.beside[1];
  }
}

const whitespace = String.raw`\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000`;
const leadingWhitespace = new RegExp(`^[${whitespace}]+`);
const isWhitespace = new RegExp(`^[${whitespace}]$`);

/** Python's str.rstrip. A regex that looks for whitespace up to the end would begin anew at every space. */
export function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && isWhitespace.test(text[end - 1]!)) end--;
  return text.slice(0, end);
}
