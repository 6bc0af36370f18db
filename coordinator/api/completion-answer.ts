/** How a completion is written: one object, or chunks; with echo the prompt comes first in both. */
import type { GenerationRequest, InferenceService, TokenLogprob } from "../inference.js";
import { type Answer, type AnswerEvent, type Envelope, envelope, wholeChoices } from "./answer.js";
import {
  type CompletionLogprobs,
  CompletionLogprobsWriter,
  joinLogprobs,
  type TokenNames,
} from "./logprobs.js";
import type { Usage } from "./usage.js";

export interface CompletionAnswerOptions {
  logprobs: boolean;
  /** Text of each choice's prompt; undefined without echo. */
  echoedTexts: string[] | undefined;
  tokenIds: boolean;
  promptTokenIds: boolean;
  names: TokenNames;
}

interface Piece {
  text: string;
  logprobs: CompletionLogprobs | null;
  tokens: number[];
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

  chunks(event: AnswerEvent): Record<string, unknown>[] {
    const first = !this.#states[event.choice]?.started;
    // Text may lag behind its tokens; a piece without any is worth sending only for what else it carries.
    const chunks = this.#pieces(event)
      .filter(
        ({ text, logprobs, tokens }) =>
          text !== "" || logprobs !== null || (this.#options.tokenIds && tokens.length > 0),
      )
      .map((piece) => this.#chunk(event.choice, piece, null));
    if (event.type === "finish") {
      chunks.push(this.#chunk(event.choice, { text: "", logprobs: null, tokens: [] }, event));
    }
    const firstChunk = chunks[0];
    if (first && firstChunk !== undefined && this.#options.promptTokenIds) {
      const choice = (firstChunk.choices as Record<string, unknown>[])[0];
      if (choice !== undefined) choice.prompt_token_ids = this.#choices[event.choice]?.promptTokens;
    }
    return chunks;
  }

  usageChunk(usage: Usage): Record<string, unknown> {
    return { ...this.#common(), choices: [], usage };
  }

  response(events: AnswerEvent[], usage: Usage): Record<string, unknown> {
    const choices = wholeChoices(events, this.#choices.length).map((whole, index) => {
      const pieces = whole.events.flatMap((event) => this.#pieces(event));
      const logprobs = pieces.flatMap((piece) => piece.logprobs ?? []);
      return {
        index,
        text: pieces.map((piece) => piece.text).join(""),
        logprobs: this.#options.logprobs ? joinLogprobs(logprobs) : null,
        finish_reason: whole.finish.reason,
        stop_reason: whole.finish.stopReason,
        ...(this.#options.tokenIds ? { token_ids: whole.tokens } : {}),
        ...(this.#options.promptTokenIds ? { prompt_token_ids: this.#choices[index]?.promptTokens } : {}),
      };
    });
    return { ...this.#common(), choices, usage };
  }

  /** What an event adds to its choice; the prompt's piece goes before the first of any kind. */
  #pieces(event: AnswerEvent): Piece[] {
    const state = this.#states[event.choice];
    if (state === undefined) return [];
    const pieces: Piece[] = [];
    if (!state.started) {
      state.started = true;
      const scores = event.type === "prompt" ? event.scores : null;
      const echo = this.#echo(event.choice, state, scores);
      if (echo !== null) pieces.push(echo);
    }
    if (event.type === "tokens") {
      pieces.push({
        text: event.text,
        logprobs: this.#options.logprobs ? state.logprobs.write(event.tokens, event.logprobs) : null,
        tokens: event.tokens,
      });
    } else if (event.type === "finish") {
      pieces.push({ text: event.text, logprobs: null, tokens: [] });
    }
    return pieces;
  }

  #echo(choice: number, state: ChoiceState, scores: (TokenLogprob | null)[] | null): Piece | null {
    const text = this.#options.echoedTexts?.[choice];
    if (text === undefined) return null;
    const promptTokens = this.#choices[choice]?.promptTokens ?? [];
    return {
      text,
      logprobs: scores === null ? null : state.logprobs.write(promptTokens, scores),
      tokens: [],
    };
  }

  #chunk(
    index: number,
    piece: Piece,
    finish: Extract<AnswerEvent, { type: "finish" }> | null,
  ): Record<string, unknown> {
    return {
      ...this.#common(),
      choices: [
        {
          index,
          text: piece.text,
          logprobs: piece.logprobs,
          finish_reason: finish?.reason ?? null,
          ...(finish === null ? {} : { stop_reason: finish.stopReason }),
          ...(this.#options.tokenIds ? { token_ids: piece.tokens } : {}),
        },
      ],
    };
  }

  #common(): Envelope {
    this.#envelope ??= envelope(this.#service, this.#id, "text_completion");
    return this.#envelope;
  }
}
