/** How a chat answer is written: one object, or chunks with deltas; thoughts and calls apart from content. */
import { randomBytes } from "node:crypto";
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoice } from "./answer.js";
import { Later, Slices } from "./json-text.js";
import { chatLogprobs, type TokenNames } from "./logprobs.js";
import {
  type CallPart,
  finishReason,
  type ReplyOptions,
  ReplyParts,
  type TextPart,
  textOf,
} from "./reply-parts.js";
import type { Usage } from "./usage.js";

export interface ChatAnswerOptions extends ReplyOptions {
  logprobs: boolean;
  /** Give the ids of prompt and answer beside the text. */
  tokenIds: boolean;
  names: TokenNames;
}

interface Delta {
  role?: "assistant";
  content?: string;
  reasoning_content?: string;
  tool_calls?: {
    index: number;
    id?: string;
    type?: "function";
    function: { name?: string; arguments: string };
  }[];
}

interface ChunkChoice {
  delta: Delta;
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
  /** Of choices that have begun. */
  readonly #begun = new Map<number, ReplyParts>();
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
  }

  chunkEnvelope(): Envelope {
    return this.#common("chat.completion.chunk");
  }

  *chunks(event: AnswerEvent): Generator<Record<string, unknown>> {
    if (event.type === "prompt") return;
    const { logprobs, tokenIds, names } = this.#options;
    const { choice } = event;
    let begun = this.#begun.get(choice);
    if (begun === undefined) {
      begun = new ReplyParts(this.#options);
      this.#begun.set(choice, begun);
      const first = this.#chunk(choice, { delta: { role: "assistant", content: "" } });
      if (tokenIds) first.prompt_token_ids = Array.from(this.#choices[choice]!.promptTokens);
      yield first;
    }
    let { calls } = begun;
    const deltas = begun
      .of(event)
      .flatMap((part) => (part.kind === "call" ? callDeltas(part, calls++) : [textDelta(part)]));
    if (event.type === "tokens") {
      // Text may lag behind its tokens; a chunk without any is worth sending only for their sake.
      const [first = logprobs || tokenIds ? { content: "" } : null, ...others] = deltas;
      if (first === null) return;
      yield this.#chunk(choice, {
        delta: first,
        ...(logprobs ? { logprobs: { content: chatLogprobs(event.logprobs, names), refusal: null } } : {}),
        ...(tokenIds ? { token_ids: event.tokens } : {}),
      });
      for (const delta of others) yield this.#chunk(choice, { delta });
      return;
    }
    for (const delta of deltas) yield this.#chunk(choice, { delta });
    // A reply that fills the context's mask is just the reply.
    if (event.type === "blank") return;
    yield this.#chunk(choice, {
      delta: {},
      finish_reason: finishReason(event.reason, begun.calls),
      stop_reason: event.stopReason,
    });
  }

  usageChunk(usage: Usage): Record<string, unknown> {
    return { choices: [], usage };
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
    const parts = new ReplyParts(this.#options).whole(text);
    const calls = parts.filter((part) => part.kind === "call");
    const said = textOf(parts, "content");
    const reasoning = textOf(parts, "reasoning");
    return {
      index,
      message: {
        role: "assistant",
        content: said === "" && calls.length > 0 ? null : said,
        refusal: null,
        ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
        ...(calls.length === 0 ? {} : { tool_calls: calls.map(wholeCall) }),
      },
      logprobs: logprobs ? { content: new Slices(scores(events, names)), refusal: null } : null,
      finish_reason: finishReason(finish.reason, calls.length),
      stop_reason: finish.stopReason,
      ...(tokenIds ? { token_ids: tokens } : {}),
    };
  }

  #chunk(index: number, content: ChunkChoice): Record<string, unknown> {
    return { choices: [{ index, logprobs: null, finish_reason: null, ...content }] };
  }

  /** The same on all chunks, `created` included. */
  #common(object: string): Envelope {
    this.#envelope ??= envelope(this.#service, this.#id, object);
    return this.#envelope;
  }
}

function textDelta({ kind, text }: TextPart): Delta {
  return kind === "content" ? { content: text } : { reasoning_content: text };
}

/** As OpenAI sends them: first who is called, then the arguments. */
function callDeltas(part: CallPart, index: number): Delta[] {
  const { id, type, function: called } = wholeCall(part);
  return [
    { tool_calls: [{ index, id, type, function: { name: called.name, arguments: "" } }] },
    { tool_calls: [{ index, function: { arguments: called.arguments } }] },
  ];
}

export function wholeCall({ name, arguments: given }: CallPart) {
  const id = `call_${randomBytes(12).toString("hex")}`;
  return { id, type: "function" as const, function: { name, arguments: given } };
}

function* scores(events: AnswerEvent[], names: TokenNames): Generator<readonly unknown[]> {
  for (const event of events) if (event.type === "tokens") yield chatLogprobs(event.logprobs, names);
}
