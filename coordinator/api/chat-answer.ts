/** How a chat answer is written: one object, or chunks with deltas. */
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoices } from "./answer.js";
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

  chunks(event: AnswerEvent): Record<string, unknown>[] {
    if (event.type === "prompt") return [];
    const { logprobs, tokenIds, names } = this.#options;
    const { choice } = event;
    const chunks: Record<string, unknown>[] = [];
    if (!this.#started[choice]) {
      this.#started[choice] = true;
      const first = this.#chunk(choice, { delta: { role: "assistant", content: "" } });
      if (tokenIds) first.prompt_token_ids = this.#choices[choice]?.promptTokens;
      chunks.push(first);
    }
    if (event.type === "tokens") {
      // Text may lag behind its tokens; a chunk without any is worth sending only for their sake.
      if (event.text === "" && !logprobs && !tokenIds) return chunks;
      chunks.push(
        this.#chunk(choice, {
          delta: { content: event.text },
          ...(logprobs ? { logprobs: chatLogprobs(event.logprobs, names) } : {}),
          ...(tokenIds ? { token_ids: event.tokens } : {}),
        }),
      );
      return chunks;
    }
    if (event.text !== "") chunks.push(this.#chunk(choice, { delta: { content: event.text } }));
    const { reason, stopReason } = event;
    chunks.push(this.#chunk(choice, { delta: {}, finish_reason: reason, stop_reason: stopReason }));
    return chunks;
  }

  usageChunk(usage: Usage): Record<string, unknown> {
    return { ...this.#common("chat.completion.chunk"), choices: [], usage };
  }

  response(events: AnswerEvent[], usage: Usage): Record<string, unknown> {
    const { logprobs, tokenIds, names } = this.#options;
    const choices = wholeChoices(events, this.#choices.length).map((whole, index) => ({
      index,
      message: { role: "assistant", content: whole.text, refusal: null },
      logprobs: logprobs
        ? chatLogprobs(
            whole.events.flatMap((event) => (event.type === "tokens" ? event.logprobs : [])),
            names,
          )
        : null,
      finish_reason: whole.finish.reason,
      stop_reason: whole.finish.stopReason,
      ...(tokenIds ? { token_ids: whole.tokens } : {}),
    }));
    return {
      ...this.#common("chat.completion"),
      choices,
      usage,
      ...(tokenIds ? { prompt_token_ids: this.#choices[0]?.promptTokens } : {}),
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
