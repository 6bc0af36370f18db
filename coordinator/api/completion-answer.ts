/** How a completion is written: one object, or chunks; with echo the prompt comes first in both. */
import type { GenerationRequest, InferenceService, TokenIds } from "../inference.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoice } from "./answer.js";
import { Later } from "./json-text.js";
import {
  type CompletionLogprobs,
  CompletionLogprobsWriter,
  type ScoredTokens,
  scoredSlices,
  type TokenNames,
} from "./logprobs.js";
import type { Usage } from "./usage.js";

export interface CompletionAnswerOptions {
  logprobs: boolean;
  /** Text of each prompt; undefined without echo. */
  echoedTexts: string[] | undefined;
  choicesPerPrompt: number;
  tokenIds: boolean;
  promptTokenIds: boolean;
  names: TokenNames;
}

interface Piece {
  text: string;
  logprobs: CompletionLogprobs | null;
  tokens: number[];
  /** The text since the last one fills it. */
  blank?: Extract<AnswerEvent, { type: "blank" }>;
  /** Of the last piece alone. */
  finish: Extract<AnswerEvent, { type: "finish" }> | null;
}

interface ChoiceState {
  started: boolean;
  logprobs: CompletionLogprobsWriter;
}

export class CompletionAnswer implements Answer {
  readonly #service: InferenceService;
  readonly #id: string;
  readonly #choices: GenerationRequest["choices"];
  readonly #options: CompletionAnswerOptions;
  readonly #states: ChoiceState[];
  #envelope: Envelope | undefined;

  constructor(
    service: InferenceService,
    id: string,
    choices: GenerationRequest["choices"],
    options: CompletionAnswerOptions,
  ) {
    this.#service = service;
    this.#id = id;
    this.#choices = choices;
    this.#options = options;
    this.#states = choices.map(() => ({
      started: false,
      logprobs: new CompletionLogprobsWriter(options.names),
    }));
  }

  /** The response has the same one. */
  chunkEnvelope(): Envelope {
    this.#envelope ??= envelope(this.#service, this.#id, "text_completion");
    return this.#envelope;
  }

  *chunks(event: AnswerEvent): Generator<Record<string, unknown>> {
    const { choice } = event;
    let first = !this.#states[choice]!.started;
    for (const piece of this.#pieces(event)) {
      // Text may lag behind its tokens; a piece without any is worth sending only for what else it carries.
      const worth =
        piece.text !== "" || piece.logprobs !== null || (this.#options.tokenIds && piece.tokens.length > 0);
      if (!worth && piece.finish === null && piece.blank === undefined) continue;
      const written = this.#chunk(choice, piece);
      if (first && this.#options.promptTokenIds) {
        written.prompt_token_ids = Array.from(this.#choices[choice]!.promptTokens);
      }
      first = false;
      yield { choices: [written] };
    }
  }

  usageChunk(usage: Usage): Record<string, unknown> {
    return { choices: [], usage };
  }

  response(events: AnswerEvent[][], usage: Usage): Record<string, unknown> {
    const choices = events.map((own, index) => new Later(() => this.#choice(own, index)));
    return { ...this.chunkEnvelope(), choices, usage };
  }

  #choice(events: AnswerEvent[], index: number): Record<string, unknown> {
    const { logprobs, names, tokenIds, promptTokenIds } = this.#options;
    const { text, tokens, finish } = wholeChoice(events);
    const { promptTokens } = this.#choices[index]!;
    return {
      index,
      text: (this.#echoedText(index) ?? "") + text,
      logprobs: logprobs
        ? new CompletionLogprobsWriter(names).writeAll(() => scoredPieces(events, promptTokens))
        : null,
      finish_reason: finish.reason,
      stop_reason: finish.stopReason,
      ...(tokenIds ? { token_ids: tokens } : {}),
      ...(promptTokenIds ? { prompt_token_ids: Array.from(promptTokens) } : {}),
      ...this.#blanks(events),
    };
  }

  /** Which text filled which blank; nothing for a prompt without any. */
  #blanks(events: AnswerEvent[]): { blanks?: Record<string, unknown>[] } {
    const blanks: Record<string, unknown>[] = [];
    let text = "";
    for (const event of events) {
      if (event.type === "tokens") text += event.text;
      if (event.type !== "blank") continue;
      blanks.push({ ...this.#blank(event), text: text + event.text });
      text = "";
    }
    return blanks.length === 0 ? {} : { blanks };
  }

  #blank({ blank, mask, reason }: Extract<AnswerEvent, { type: "blank" }>): Record<string, unknown> {
    const [name] = this.#options.names.strings([mask]);
    return { index: blank, mask: name, finish_reason: reason };
  }

  /** What an event adds to its choice; the prompt's pieces go before the first of any kind. */
  *#pieces(event: AnswerEvent): Generator<Piece> {
    const state = this.#states[event.choice]!;
    if (!state.started) {
      state.started = true;
      yield* this.#echo(event);
    }
    if (event.type === "tokens") {
      const scores = event.logprobs;
      yield {
        text: event.text,
        logprobs: this.#options.logprobs ? state.logprobs.write({ tokens: event.tokens, scores }) : null,
        tokens: event.tokens,
        finish: null,
      };
    } else if (event.type === "blank") {
      yield { text: event.text, logprobs: null, tokens: [], blank: event, finish: null };
    } else if (event.type === "finish") {
      yield { text: event.text, logprobs: null, tokens: [], finish: null };
      yield { text: "", logprobs: null, tokens: [], finish: event };
    }
  }

  /** The text goes with the first scores: where a token's text lies in it is told by the offsets. */
  *#echo(event: AnswerEvent): Generator<Piece> {
    let text = this.#echoedText(event.choice);
    if (text === undefined) return;
    if (event.type !== "prompt") {
      yield { text, logprobs: null, tokens: [], finish: null };
      return;
    }
    const { logprobs } = this.#states[event.choice]!;
    const { promptTokens } = this.#choices[event.choice]!;
    for (const slice of scoredSlices({ tokens: promptTokens, scores: event.scores })) {
      yield { text, logprobs: logprobs.write(slice), tokens: [], finish: null };
      text = "";
    }
  }

  #echoedText(choice: number): string | undefined {
    const { echoedTexts, choicesPerPrompt } = this.#options;
    return echoedTexts?.[Math.floor(choice / choicesPerPrompt)];
  }

  #chunk(index: number, { text, logprobs, tokens, blank, finish }: Piece): Record<string, unknown> {
    return {
      index,
      text,
      logprobs,
      finish_reason: finish?.reason ?? null,
      ...(finish === null ? {} : { stop_reason: finish.stopReason }),
      ...(this.#options.tokenIds ? { token_ids: tokens } : {}),
      ...(blank === undefined ? {} : { blank: this.#blank(blank) }),
    };
  }
}

function* scoredPieces(events: AnswerEvent[], promptTokens: TokenIds): Generator<ScoredTokens> {
  for (const event of events) {
    if (event.type === "prompt") yield* scoredSlices({ tokens: promptTokens, scores: event.scores });
    if (event.type === "tokens") yield { tokens: event.tokens, scores: event.logprobs };
  }
}
