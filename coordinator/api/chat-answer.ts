/** How a chat answer is written: one object, or chunks with deltas. */
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoice } from "./answer.js";
import { Later, Slices } from "./json-text.js";
import { chatLogprobs, type TokenNames } from "./logprobs.js";
import type { Usage } from "./usage.js";

export interface ChatAnswerOptions {
  logprobs: boolean;
  /** Give the ids of prompt and answer beside the text. */
  tokenIds: boolean;
  names: TokenNames;
}

interface ChunkChoice {
  delta: { role?: "assistant"; content?: string };
  logprobs?: object;
  token_ids?: number[];
  finish_reason?: string;
  stop_reason?: string | number | null;
}

export class ChatAnswer implements Answer {
  readonly #service: InferenceService;
  readonly #id: string;
  readonly #choices: GenerationRequest["choices"];
  readonly #options: ChatAnswerOptions;
  readonly #started: boolean[];
  #envelope: Envelope | undefined;

  constructor(
    service: InferenceService,
    id: string,
    choices: GenerationRequest["choices"],
    options: ChatAnswerOptions,
  ) {
    this.#service = service;
    this.#id = id;
    this.#choices = choices;
    this.#options = options;
    this.#started = choices.map(() => false);
  }

  *chunks(event: AnswerEvent): Generator<Record<string, unknown>> {
    if (event.type === "prompt") return;
    const { logprobs, tokenIds, names } = this.#options;
    const { choice } = event;
    if (!this.#started[choice]) {
      this.#started[choice] = true;
      const first = this.#chunk(choice, { delta: { role: "assistant", content: "" } });
      if (tokenIds) first.prompt_token_ids = Array.from(this.#choices[choice]!.promptTokens);
      yield first;
    }
    if (event.type === "tokens") {
      // Text may lag behind its tokens; a chunk without any is worth sending only for their sake.
      if (event.text === "" && !logprobs && !tokenIds) return;
      yield this.#chunk(choice, {
        delta: { content: event.text },
        ...(logprobs ? { logprobs: { content: chatLogprobs(event.logprobs, names), refusal: null } } : {}),
        ...(tokenIds ? { token_ids: event.tokens } : {}),
      });
      return;
    }
    if (event.text !== "") yield this.#chunk(choice, { delta: { content: event.text } });
    // A reply that fills the context's mask is just the reply.
    if (event.type === "blank") return;
    const { reason, stopReason } = event;
    yield this.#chunk(choice, { delta: {}, finish_reason: reason, stop_reason: stopReason });
  }

  usageChunk(usage: Usage): Record<string, unknown> {
    return { ...this.#common("chat.completion.chunk"), choices: [], usage };
  }

  response(events: AnswerEvent[][], usage: Usage): Record<string, unknown> {
    return {
      ...this.#common("chat.completion"),
      choices: events.map((own, index) => new Later(() => this.#choice(own, index))),
      usage,
      ...(this.#options.tokenIds ? { prompt_token_ids: Array.from(this.#choices[0]!.promptTokens) } : {}),
    };
  }

  #choice(events: AnswerEvent[], index: number): Record<string, unknown> {
    const { logprobs, tokenIds, names } = this.#options;
    const { text, tokens, finish } = wholeChoice(events);
    return {
      index,
      message: { role: "assistant", content: text, refusal: null },
      logprobs: logprobs ? { content: new Slices(scores(events, names)), refusal: null } : null,
      finish_reason: finish.reason,
      stop_reason: finish.stopReason,
      ...(tokenIds ? { token_ids: tokens } : {}),
    };
  }

  #chunk(index: number, content: ChunkChoice): Record<string, unknown> {
    return {
      ...this.#common("chat.completion.chunk"),
      choices: [{ index, logprobs: null, finish_reason: null, ...content }],
    };
  }

  /** The same on all chunks, `created` included. */
  #common(object: string): Envelope {
    this.#envelope ??= envelope(this.#service, this.#id, object);
    return this.#envelope;
  }
}

function* scores(events: AnswerEvent[], names: TokenNames): Generator<readonly unknown[]> {
  for (const event of events) if (event.type === "tokens") yield chatLogprobs(event.logprobs, names);
}
