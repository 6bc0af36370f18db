/**
 * Calls by a metadata line, as ChatGLM3 and GLM-4 write them: the tool's name, a newline, and what it is to
 * do. A reply may have several segments, each with a metadata line of its own, which is empty for prose.
 */
import type { JsonCalls, PythonCalls } from "../../../models/card.js";
import { begunLength, content, type ReplyPart, type ReplyReader, type ToolSignature } from "./parts.js";
import { pythonArguments } from "./python-call.js";

type Rules = (PythonCalls | JsonCalls) & { segment: string; tools: ToolSignature[] };

const fence = "```";

export class LineCallReader implements ReplyReader {
  readonly #rules: Rules;
  readonly #names: readonly string[];
  /** Of the segment: what may become a call; of prose: what may be the beginning of another segment. */
  #held = "";
  #prose = false;

  constructor(rules: Rules) {
    this.#rules = rules;
    this.#names = rules.tools.map(({ name }) => name);
  }

  push(text: string): ReplyPart[] {
    this.#held += text;
    const parts: ReplyPart[] = [];
    const { segment } = this.#rules;
    for (let at = this.#held.indexOf(segment); at >= 0; at = this.#held.indexOf(segment)) {
      const whole = this.#take(at);
      this.#take(segment.length);
      parts.push(...this.#end(whole));
    }
    const certain = this.#held.length - begunLength(this.#held, segment);
    if (!this.#prose) this.#prose = !this.#mayBeCall(this.#held.slice(0, certain));
    if (this.#prose) parts.push(...content(this.#take(certain)));
    return parts;
  }

  finish(): ReplyPart[] {
    return this.#end(this.#take(this.#held.length));
  }

  /** The segment is complete. */
  #end(text: string): ReplyPart[] {
    const call = this.#prose ? null : this.#readCall(text);
    this.#prose = false;
    return call ? [call] : content(text);
  }

  #mayBeCall(text: string): boolean {
    const begun = text.trimStart();
    const lineEnd = begun.indexOf("\n");
    if (lineEnd < 0) {
      const name = begun.trimEnd();
      // Behind a name nothing but whitespace may stand on its line.
      return this.#names.some((known) => (begun === name ? known.startsWith(name) : known === name));
    }
    if (!this.#names.includes(begun.slice(0, lineEnd).trim())) return false;
    const body = begun.slice(lineEnd).trimStart();
    const mark = this.#rules.kind === "json" ? "{" : fence;
    return body.startsWith(mark) || mark.startsWith(body);
  }

  #readCall(text: string): ReplyPart | null {
    const begun = text.trim();
    const lineEnd = begun.indexOf("\n");
    if (lineEnd < 0) return null;
    const name = begun.slice(0, lineEnd).trim();
    if (!this.#names.includes(name)) return null;
    const body = begun.slice(lineEnd).trim();
    const given = this.#rules.kind === "json" ? jsonObject(body) : fencedArguments(body, name, this.#rules);
    return given === null ? null : { kind: "call", name, arguments: given };
  }

  #take(length: number): string {
    const text = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return text;
  }
}

function jsonObject(text: string): string | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? text : null;
  } catch {
    return null;
  }
}

/** The lines between the fences: code, or one call. */
function fencedArguments(body: string, name: string, { callee, code }: PythonCalls): string | null {
  const lines = body.split("\n");
  if (lines.length < 3 || !/^```\w*\s*$/.test(lines[0]!) || lines.at(-1)!.trim() !== fence) return null;
  const source = lines.slice(1, -1).join("\n");
  if (name === code.tool) return JSON.stringify({ [code.argument]: source });
  return pythonArguments(source, callee);
}
