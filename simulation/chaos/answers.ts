/** What is known from outside of every request: what its answer must be, and how far it is. */
import type { RequestId } from "../../common/ids.js";
import type { GenerationRequest, RequestEvent } from "../../coordinator/inference.js";
import { type Expected, expectedAnswer } from "./model.js";
import type { Invariant } from "./world.js";

/** Follows the events of one request, wherever they pass. */
export class AnswerCheck {
  readonly #expected: readonly Expected[];
  readonly #choices: { tokens: number; text: string; finished: boolean }[];
  #started = 0;
  #failed = false;

  constructor(expected: readonly Expected[]) {
    this.#expected = expected;
    this.#choices = expected.map(() => ({ tokens: 0, text: "", finished: false }));
  }

  /** All choices are finished, or an error came. */
  get ended(): boolean {
    return this.#failed || this.#choices.every(({ finished }) => finished);
  }

  /** @returns What does not hold any more; null when all does. */
  take(event: RequestEvent): { invariant: Invariant; message: string } | null {
    const twice = (message: string) => ({ invariant: "a request ends exactly once" as const, message });
    const wrong = (message: string) => ({ invariant: "tokens are the model's" as const, message });
    if (this.ended) return twice(`${event.type} came behind the end`);
    if (event.type === "started") return this.#started++ === 0 ? null : twice("it started twice");
    if (event.type === "error") {
      this.#failed = true;
      return null;
    }
    const choice = this.#choices[event.choice]!;
    const expected = this.#expected[event.choice]!;
    if (choice.finished) return twice(`${event.type} came behind the end of choice ${event.choice}`);
    if (event.type === "prompt") return null;
    choice.text += event.text;
    const where = `choice ${event.choice}`;
    if (event.type === "tokens") {
      for (const token of event.tokens) {
        const position = choice.tokens++;
        if (token === expected.tokens[position]) continue;
        return wrong(
          `${where}: token ${position} is ${token}, expected ${expected.tokens[position] ?? "no more"}`,
        );
      }
    }
    if (event.type !== "finish") return null;
    choice.finished = true;
    if (choice.tokens !== expected.tokens.length || event.reason !== expected.reason) {
      const got = `${choice.tokens} tokens, ${event.reason}`;
      return wrong(`${where} ended with ${got}: expected ${expected.tokens.length}, ${expected.reason}`);
    }
    return choice.text === expected.text ? null : wrong(`${where}: its text is "${choice.text}"`);
  }
}

/** One request under one id: a client that tries again uses another one. */
export interface Attempt {
  readonly request: GenerationRequest;
  readonly expected: readonly Expected[];
  /** When a coordinator took it, and which one. */
  accepted: { coordinator: string; atMs: number } | null;
  /** The coordinator that took it, or one that followed, has ended it. */
  ended: boolean;
  /** The coordinator that was told that its client has left; null while none was. */
  leftAt: string | null;
}

export class Answers {
  readonly #attempts = new Map<RequestId, Attempt>();
  /** By request without its id: those who try again ask the same. */
  readonly #expected = new Map<string, readonly Expected[]>();

  /** @param name Of what is asked, whatever the id is. */
  add(name: string, request: GenerationRequest): void {
    let expected = this.#expected.get(name);
    if (expected === undefined) {
      expected = request.choices.map(({ promptTokens, context = null, seed }) =>
        expectedAnswer(promptTokens, context, { ...request.sampling, seed }),
      );
      this.#expected.set(name, expected);
    }
    this.#attempts.set(request.id, { request, expected, accepted: null, ended: false, leftAt: null });
  }

  /** undefined for the coordinator's own requests. */
  get(id: RequestId): Attempt | undefined {
    return this.#attempts.get(id);
  }

  attempts(): Iterable<Attempt> {
    return this.#attempts.values();
  }
}
