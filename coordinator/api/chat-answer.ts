/** How a chat answer is written: one object, or chunks with deltas; thoughts and calls apart from content. */
import { randomBytes } from "node:crypto";
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type ReplyPart, type ReplyReader, type ReplyRules, replyReader } from "../output/reply/reply.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoice } from "./answer.js";
import { Later, Slices } from "./json-text.js";
import { chatLogprobs, type TokenNames } from "./logprobs.js";
import type { Usage } from "./usage.js";

export interface ChatAnswerOptions {
  logprobs: boolean;
  /** Give the ids of prompt and answer beside the text. */
  tokenIds: boolean;
  /** null: a reply is content alone. */
  reply: ReplyRules | null;
  /** False: only the first call of a reply is given out. */
  parallelCalls: boolean;
  /** False: thoughts are not given out. */
  reasoning: boolean;
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
  readonly #begun = new Map<number, { reader: ReplyReader | null; calls: number }>();
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

  *chunks(event: AnswerEvent): Generator<Record<string, unknown>> {
    if (event.type === "prompt") return;
    const { logprobs, tokenIds, names } = this.#options;
    const { choice } = event;
    let begun = this.#begun.get(choice);
    if (begun === undefined) {
      begun = { reader: this.#newReader(), calls: 0 };
      this.#begun.set(choice, begun);
      const first = this.#chunk(choice, { delta: { role: "assistant", content: "" } });
      if (tokenIds) first.prompt_token_ids = Array.from(this.#choices[choice]!.promptTokens);
      yield first;
    }
    const { reader } = begun;
    const deltas: Delta[] = [];
    for (const part of partsOf(event, reader)) {
      if (part.kind === "reasoning" && !this.#options.reasoning) continue;
      if (part.kind !== "call") deltas.push(textDelta(part));
      else if (this.#takesCall(begun.calls)) deltas.push(...callDeltas(part, begun.calls++));
    }
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
    const reader = this.#newReader();
    const parts = reader === null ? plainParts(text) : [...reader.push(text), ...reader.finish()];
    const calls = parts.filter((part) => part.kind === "call").filter((_, i) => this.#takesCall(i));
    const said = textOf(parts, "content");
    const reasoning = this.#options.reasoning ? textOf(parts, "reasoning") : "";
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

  /** @param before Calls that were given out already. */
  #takesCall(before: number): boolean {
    return before === 0 || this.#options.parallelCalls;
  }

  #newReader(): ReplyReader | null {
    const { reply } = this.#options;
    return reply && replyReader(reply);
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

type CallPart = Extract<ReplyPart, { kind: "call" }>;
type TextPart = Exclude<ReplyPart, CallPart>;

function partsOf(event: Exclude<AnswerEvent, { type: "prompt" }>, reader: ReplyReader | null): ReplyPart[] {
  if (reader === null) return plainParts(event.text);
  const parts = event.text === "" ? [] : reader.push(event.text);
  return event.type === "finish" ? [...parts, ...reader.finish()] : parts;
}

function plainParts(text: string): ReplyPart[] {
  return text === "" ? [] : [{ kind: "content", text }];
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

function wholeCall({ name, arguments: given }: CallPart) {
  const id = `call_${randomBytes(12).toString("hex")}`;
  return { id, type: "function" as const, function: { name, arguments: given } };
}

function textOf(parts: ReplyPart[], kind: TextPart["kind"]): string {
  return parts.map((part) => (part.kind === kind ? part.text : "")).join("");
}

/** A reply that was cut off is not complete, whatever it called before. */
function finishReason(reason: "stop" | "length", calls: number): string {
  return reason === "stop" && calls > 0 ? "tool_calls" : reason;
}

function* scores(events: AnswerEvent[], names: TokenNames): Generator<readonly unknown[]> {
  for (const event of events) if (event.type === "tokens") yield chatLogprobs(event.logprobs, names);
}
