/** Calls in tags, as GLM-4.5 writes them: any number, with content in front of and between them. */
import type { TaggedCalls } from "../../../models/card.js";
import { begunLength, content, type ReplyPart, type ReplyReader, type ToolSignature } from "./parts.js";

type Rules = TaggedCalls & { tools: ToolSignature[] };

export class TaggedCallReader implements ReplyReader {
  readonly #rules: Rules;
  /** Whitespace that a call may follow, and what may be the beginning of one. */
  #held = "";
  #called = false;

  constructor(rules: Rules) {
    this.#rules = rules;
  }

  push(text: string): ReplyPart[] {
    this.#held += text;
    const [begin, end] = this.#rules.call;
    const parts: ReplyPart[] = [];
    for (;;) {
      const at = this.#held.indexOf(begin);
      if (at < 0) {
        const open = this.#held.slice(0, this.#held.length - begunLength(this.#held, begin));
        parts.push(...content(this.#take(open.trimEnd().length)));
        return parts;
      }
      parts.push(...content(this.#take(this.#held.slice(0, at).trimEnd().length)));
      const from = this.#held.indexOf(begin) + begin.length;
      const to = this.#held.indexOf(end, from);
      if (to < 0) return parts;
      const call = readTaggedCall(this.#held.slice(from, to), this.#rules);
      const whole = this.#take(to + end.length);
      parts.push(...(call ? [call] : content(whole)));
      this.#called ||= call !== null;
    }
  }

  finish(): ReplyPart[] {
    const rest = this.#take(this.#held.length);
    return this.#called && rest.trim() === "" ? [] : content(rest);
  }

  #take(length: number): string {
    const text = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return text;
  }
}

/** What stands between the tags of a call; null when it is none. */
function readTaggedCall(text: string, { name: key, value, tools }: Rules): ReplyPart | null {
  const nameEnd = text.search(/\n|$/);
  const keyBegin = text.indexOf(key[0]);
  const end = keyBegin < 0 ? nameEnd : Math.min(nameEnd, keyBegin);
  const name = text.slice(0, end).trim();
  const tool = tools.find((one) => one.name === name);
  if (tool === undefined) return null;
  const members = new Map<string, string>();
  let rest = text.slice(end).trimStart();
  while (rest !== "") {
    const given = between(rest, key);
    const meant = given && between(given.rest, value);
    if (given === null || meant === null || members.has(given.inner.trim())) return null;
    const argument = given.inner.trim();
    members.set(
      argument,
      isText(tool, argument, meant.inner) ? JSON.stringify(meant.inner) : asJson(meant.inner),
    );
    rest = meant.rest;
  }
  const list = Array.from(members, ([argument, json]) => `${JSON.stringify(argument)}:${json}`);
  return { kind: "call", name, arguments: `{${list.join(",")}}` };
}

function isText({ texts, nullable }: ToolSignature, argument: string, value: string): boolean {
  return texts.includes(argument) && !(value === "null" && nullable.includes(argument));
}

/** @returns null when the text does not begin with the first tag, or lacks the second. */
function between(text: string, [begin, end]: readonly [string, string]) {
  if (!text.startsWith(begin)) return null;
  const at = text.indexOf(end, begin.length);
  if (at < 0) return null;
  return { inner: text.slice(begin.length, at), rest: text.slice(at + end.length).trimStart() };
}

/** The value itself where it is JSON, else a text. */
function asJson(text: string): string {
  try {
    JSON.parse(text);
    return text.trim();
  } catch {
    return JSON.stringify(text);
  }
}
