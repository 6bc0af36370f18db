/** A thought between tags at the beginning of a reply; what follows is for another reader. */
import { begunLength, type ReplyPart, type ReplyReader, type ReplyRules } from "./parts.js";

/**
 * - beginning: only whitespace, or part of the tag, has come;
 * - thinking: behind the tag; whitespace around the thought is not part of it;
 * - gap: whitespace behind the thought;
 * - after: everything goes to the other reader.
 */
type State = "beginning" | "thinking" | "gap" | "after";

export class ThoughtReader implements ReplyReader {
  readonly #tags: NonNullable<ReplyRules["thinking"]>;
  readonly #rest: ReplyReader;
  #state: State;
  #held = "";
  #thought = false;

  constructor(tags: NonNullable<ReplyRules["thinking"]>, rest: ReplyReader) {
    this.#tags = tags;
    this.#rest = rest;
    this.#state = tags.open ? "thinking" : "beginning";
  }

  push(text: string): ReplyPart[] {
    this.#held += text;
    const parts: ReplyPart[] = [];
    let before: State;
    do {
      before = this.#state;
      parts.push(...this.#step());
    } while (this.#state !== before);
    return parts;
  }

  finish(): ReplyPart[] {
    const held = this.#take(this.#held.length);
    if (this.#state === "thinking") return this.#reasoning(held.trimEnd());
    if (this.#state === "gap") return this.#rest.finish();
    return [...this.#rest.push(held), ...this.#rest.finish()];
  }

  #step(): ReplyPart[] {
    const { begin, end } = this.#tags;
    switch (this.#state) {
      case "beginning": {
        const text = this.#held.trimStart();
        if (text.length < begin.length && begin.startsWith(text)) return [];
        if (!text.startsWith(begin)) {
          this.#state = "after";
          return [];
        }
        this.#held = text.slice(begin.length);
        this.#state = "thinking";
        return [];
      }
      case "thinking": {
        const at = this.#held.indexOf(end);
        if (at >= 0) {
          const thought = this.#take(at).trimEnd();
          this.#take(end.length);
          this.#state = "gap";
          return this.#reasoning(thought);
        }
        const open = this.#held.slice(0, this.#held.length - begunLength(this.#held, end));
        return this.#reasoning(this.#take(open.trimEnd().length));
      }
      case "gap":
        this.#held = this.#held.trimStart();
        if (this.#held !== "") this.#state = "after";
        return [];
      case "after":
        return this.#rest.push(this.#take(this.#held.length));
    }
  }

  #reasoning(text: string): ReplyPart[] {
    const shown = this.#thought ? text : text.trimStart();
    if (shown === "") return [];
    this.#thought = true;
    return [{ kind: "reasoning", text: shown }];
  }

  #take(length: number): string {
    const text = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return text;
  }
}
