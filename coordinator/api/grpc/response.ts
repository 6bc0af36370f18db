/** How an answer is written over gRPC: the request's events as messages, for prompts and conversations. */
import type { Delta } from "../../../proto/generated/glm/relay/v1/Delta.js";
import type { GenerateResponse } from "../../../proto/generated/glm/relay/v1/GenerateResponse.js";
import type { TokenLogprob as TokenMessage } from "../../../proto/generated/glm/relay/v1/TokenLogprob.js";
import type { GenerationRequest, InferenceService, TokenLogprob } from "../../inference.js";
import { type AnswerEvent, envelope } from "../answer.js";
import { wholeCall } from "../chat-answer.js";
import { scoredSlices, type TokenNames, written } from "../logprobs.js";
import { finishReason, ReplyParts, textOf } from "../reply-parts.js";
import type { UsageCounter } from "../usage.js";
import type { ReadGenerate } from "./request.js";

interface ChoiceState {
  begun: boolean;
  /** null: a completion, whose text is given out as it is. */
  reply: ReplyParts | null;
  /** Text since the last blank. */
  text: string;
  blanks: { index: number; mask: string; finish_reason: string; text: string }[];
  finish: Extract<AnswerEvent, { type: "finish" }> | null;
}

export class Responses {
  readonly #service: InferenceService;
  readonly #generation: GenerationRequest;
  readonly #read: ReadGenerate;
  readonly #names: TokenNames;
  readonly #choices: ChoiceState[];

  constructor(
    service: InferenceService,
    generation: GenerationRequest,
    read: ReadGenerate,
    names: TokenNames,
  ) {
    this.#service = service;
    this.#generation = generation;
    this.#read = read;
    this.#names = names;
    const { options } = read;
    this.#choices = generation.choices.map(() => ({
      begun: false,
      reply: "reply" in options ? new ReplyParts(options) : null,
      text: "",
      blanks: [],
      finish: null,
    }));
  }

  accepted({ promptTokens }: UsageCounter): GenerateResponse {
    const { id, model, system_fingerprint } = envelope(this.#service, this.#generation.id, "");
    const accepted = { id, model, system_fingerprint: system_fingerprint ?? "", prompt_tokens: promptTokens };
    return { accepted };
  }

  /** The messages that an event gives rise to, made one by one as they are taken. */
  *of(event: AnswerEvent): Generator<GenerateResponse> {
    const choice = this.#choices[event.choice]!;
    if (!choice.begun) {
      choice.begun = true;
      yield* this.#echo(event);
    }
    if (event.type === "prompt") return;
    if (event.type === "finish") choice.finish = event;
    const delta = this.#delta(choice, event);
    const { text, reasoning_content, tool_calls, blank } = delta;
    const says = text !== "" || reasoning_content !== "" || tool_calls.length > 0;
    if (event.type === "tokens" || says || blank !== undefined) yield { delta };
  }

  finished(usage: UsageCounter): GenerateResponse {
    const { prompt_tokens, completion_tokens, total_tokens } = usage.usage;
    const choices = this.#choices.map(({ finish, reply, blanks }) => {
      if (finish === null) throw new Error("a choice ended without its finish event");
      const { stopReason } = finish;
      return {
        finish_reason: finishReason(finish.reason, reply?.calls ?? 0),
        ...(typeof stopReason === "string" ? { stop_string: stopReason } : {}),
        ...(typeof stopReason === "number" ? { stop_token_id: stopReason } : {}),
        blanks,
      };
    });
    return { finished: { choices, usage: { prompt_tokens, completion_tokens, total_tokens } } };
  }

  #delta(choice: ChoiceState, event: Exclude<AnswerEvent, { type: "prompt" }>) {
    let calls = choice.reply?.calls ?? 0;
    const parts = choice.reply?.of(event) ?? [{ kind: "content" as const, text: event.text }];
    const delta: Delta & Required<Pick<Delta, "text" | "reasoning_content" | "tool_calls">> = {
      choice: event.choice,
      text: textOf(parts, "content"),
      reasoning_content: textOf(parts, "reasoning"),
      tool_calls: parts.flatMap((part) => {
        if (part.kind !== "call") return [];
        const { id, function: called } = wholeCall(part);
        return [{ id, function: called, index: calls++ }];
      }),
    };
    if (event.type === "tokens") {
      choice.text += event.text;
      const logprobs = event.logprobs.map((score) => this.#scored(score));
      return { ...delta, token_ids: event.tokens, logprobs };
    }
    // A conversation's reply that fills the context's mask is just the reply.
    if (event.type !== "blank" || choice.reply !== null) return delta;
    const [mask = ""] = this.#names.strings([event.mask]);
    const blank = { index: event.blank, mask, finish_reason: event.reason };
    choice.blanks.push({ ...blank, text: choice.text + event.text });
    choice.text = "";
    return { ...delta, blank };
  }

  /** The prompt in front of a choice; its text goes with the first scores. */
  *#echo(event: AnswerEvent): Generator<GenerateResponse> {
    const { options } = this.#read;
    if (!("echoedTexts" in options) || options.echoedTexts === undefined) return;
    const { choice } = event;
    let text = options.echoedTexts[Math.floor(choice / options.choicesPerPrompt)] ?? "";
    if (event.type !== "prompt") {
      yield { prompt: { choice, text } };
      return;
    }
    const { promptTokens } = this.#generation.choices[choice]!;
    for (const { tokens, scores } of scoredSlices({ tokens: promptTokens, scores: event.scores })) {
      const logprobs = scores.map((score, i) =>
        score === null ? this.#named({ token: tokens[i]! }) : this.#scored(score),
      );
      yield { prompt: { choice, text, logprobs } };
      text = "";
    }
  }

  #scored({ top, ...own }: TokenLogprob): TokenMessage {
    return { ...this.#named(own), top_logprobs: top.map((one) => this.#named(one)) };
  }

  #named({ token, logprob }: { token: number; logprob?: number }): TokenMessage {
    const bytes = this.#names.bytes(token);
    return {
      token_id: token,
      token: this.#names.strings([token])[0] ?? "",
      ...(bytes === null ? {} : { bytes }),
      ...(logprob === undefined ? {} : { logprob: written(logprob) }),
    };
  }
}
