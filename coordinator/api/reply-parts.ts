/** The parts of a chat reply as they are given out: what the call did not ask for is left out. */
import { type ReplyPart, type ReplyReader, type ReplyRules, replyReader } from "../output/reply/reply.js";
import type { AnswerEvent } from "./answer.js";

export interface ReplyOptions {
  /** null: a reply is content alone. */
  reply: ReplyRules | null;
  /** False: only the first call of a reply is given out. */
  parallelCalls: boolean;
  /** False: thoughts are not given out. */
  reasoning: boolean;
}

export type CallPart = Extract<ReplyPart, { kind: "call" }>;
export type TextPart = Exclude<ReplyPart, CallPart>;

/** One choice's reply; keeps where it is in it. */
export class ReplyParts {
  readonly #options: ReplyOptions;
  readonly #reader: ReplyReader | null;
  #calls = 0;

  constructor(options: ReplyOptions) {
    this.#options = options;
    this.#reader = options.reply && replyReader(options.reply);
  }

  /** Calls that were given out. */
  get calls(): number {
    return this.#calls;
  }

  /** What the event adds. */
  of(event: Exclude<AnswerEvent, { type: "prompt" }>): ReplyPart[] {
    const text = event.text === "" ? [] : this.#read(event.text);
    return event.type === "finish" ? [...text, ...this.#end()] : text;
  }

  /** The parts of a whole reply. */
  whole(text: string): ReplyPart[] {
    return [...this.#read(text), ...this.#end()];
  }

  #read(text: string): ReplyPart[] {
    if (this.#reader === null) return text === "" ? [] : [{ kind: "content", text }];
    return this.#given(this.#reader.push(text));
  }

  #end(): ReplyPart[] {
    return this.#reader === null ? [] : this.#given(this.#reader.finish());
  }

  #given(parts: ReplyPart[]): ReplyPart[] {
    return parts.filter((part) => {
      if (part.kind === "reasoning") return this.#options.reasoning;
      if (part.kind === "content") return true;
      const isGiven = this.#calls === 0 || this.#options.parallelCalls;
      if (isGiven) this.#calls++;
      return isGiven;
    });
  }
}

export function textOf(parts: ReplyPart[], kind: TextPart["kind"]): string {
  return parts.map((part) => (part.kind === kind ? part.text : "")).join("");
}

/** A reply that was cut off is not complete, whatever it called before. */
export function finishReason(reason: "stop" | "length", calls: number): string {
  return reason === "stop" && calls > 0 ? "tool_calls" : reason;
}
