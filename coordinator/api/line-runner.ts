/**
 * Answers lines of batches: read as the body of their endpoint, put straight into the waiting set, and written as
 * their client would have got them in one piece.
 */
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import type { BatchEndpoint, LineAnswer, LineRunner } from "../batches/batch.js";
import type { EventSink, GenerationRequest, InferenceService, RequestEvent } from "../inference.js";
import { Room } from "../room.js";
import { WakeUps } from "../wake-ups.js";
import type { Answer, AnswerEvent } from "./answer.js";
import { bytesAs } from "./body.js";
import type { CallMetrics } from "./call-metrics.js";
import { ChatAnswer, type ChatAnswerOptions } from "./chat-answer.js";
import { CompletionAnswer, type CompletionAnswerOptions } from "./completion-answer.js";
import { errorBody, logFault, toClientError } from "./errors.js";
import { jsonText } from "./json-text.js";
import { maxKeptAnswerCharacters } from "./limits.js";
import { tokenNames } from "./logprobs.js";
import type { Metrics } from "./metrics.js";
import { lineSeed } from "./seeds.js";
import { inTurns } from "./turns.js";
import { UsageCounter } from "./usage.js";

/** Choices of lines in the waiting set, as many as DESIGN's batch window; one line with more goes alone. */
const maxChoices = 1_024;
/** Lines whose body is being read: the threads that do it have others to serve. */
const maxReading = 64;
/** While the model is not served, how often lines that wait look again, should nobody tell them. */
const lookAgainMs = 500;
/** Tokens and scores of an answer that is written in one piece. */
const maxInlineTokens = 256;

type Line = Parameters<LineRunner["run"]>[2];

export class ApiLineRunner implements LineRunner {
  readonly #service: InferenceService;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  readonly #choices = new Room(maxChoices);
  readonly #reading = new Room(maxReading);
  /** Hundreds of lines may begin, end, or be called off at once. */
  readonly #wakeUps = new WakeUps();
  /** By the signal that ends them, what ends lines: a signal with a thousand listeners is slow to take another. */
  readonly #ends = new WeakMap<AbortSignal, Set<() => void>>();
  /** Lines that wait for the model to be served. */
  #unserved: (() => void)[] = [];
  #lookAgain: NodeJS.Timeout | null = null;

  constructor(service: InferenceService, metrics: Metrics, log: Logger) {
    this.#service = service;
    this.#metrics = metrics;
    this.#log = log;
    service.onReadiness(() => this.#wakeUnserved());
  }

  get contextLength(): number {
    return this.#service.contextLength;
  }

  async run(
    endpoint: BatchEndpoint,
    body: Uint8Array<ArrayBuffer>,
    line: Line,
    signal: AbortSignal,
  ): Promise<LineAnswer> {
    const { requestId } = line;
    try {
      await this.#turn();
      signal.throwIfAborted();
      return await this.#answer(endpoint, body, line, signal);
    } catch (cause) {
      if (signal.aborted) throw signal.reason;
      const error = toClientError(cause, requestId);
      if (error.retryable) throw error;
      logFault(this.#log, error, requestId);
      const usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0, reasoningTokens: 0 };
      return { status: error.httpStatus, requestId, body: JSON.stringify(errorBody(error)), usage };
    }
  }

  async #answer(
    endpoint: BatchEndpoint,
    body: Uint8Array<ArrayBuffer>,
    line: Line,
    signal: AbortSignal,
  ): Promise<LineAnswer> {
    const arrivedMs = performance.now();
    const { generation, n, answer } = await this.#read(endpoint, body, line);
    const choiceCount = generation.choices.length;
    await this.#choices.enter(choiceCount);
    try {
      const usage = new UsageCounter(generation.choices, n);
      const events = await this.#run(generation, n, usage, arrivedMs, signal);
      const response = answer.response(events, usage.usage);
      const { prompt_tokens, completion_tokens, prompt_tokens_details } = usage.usage;
      return {
        status: 200,
        requestId: line.requestId,
        body: await textOf(
          response,
          prompt_tokens + completion_tokens * (2 + generation.sampling.topLogprobs),
        ),
        usage: {
          promptTokens: prompt_tokens,
          cachedTokens: prompt_tokens_details.cached_tokens,
          completionTokens: completion_tokens,
          reasoningTokens: 0,
        },
      };
    } finally {
      this.#choices.leave(choiceCount);
    }
  }

  /** @param body Stays as it is: it is read again when the line is run again. */
  async #read(endpoint: BatchEndpoint, body: Uint8Array<ArrayBuffer>, line: Line) {
    const { requestId: logId, batchId, customId, tenant } = line;
    const kind = endpoint === "/v1/chat/completions" ? "chat" : "completions";
    await this.#reading.enter(1);
    try {
      const read = await bytesAs(this.#service, body.slice(), kind, false, lineSeed(batchId, customId));
      const generation: GenerationRequest = { ...read.generation, tenant, class: "batch", logId };
      const names = tokenNames(this.#service.prompt, read.asTokenIds);
      const { id, choices } = generation;
      const answer: Answer =
        kind === "chat"
          ? new ChatAnswer(this.#service, id, choices, { ...read.options, names } as ChatAnswerOptions)
          : new CompletionAnswer(this.#service, id, choices, {
              ...read.options,
              names,
            } as CompletionAnswerOptions);
      return { generation, n: read.n, answer };
    } finally {
      this.#reading.leave(1);
    }
  }

  /** The events of each choice. @throws RelayError the request's own; the signal's reason */
  async #run(
    generation: GenerationRequest,
    n: number,
    usage: UsageCounter,
    arrivedMs: number,
    signal: AbortSignal,
  ): Promise<AnswerEvent[][]> {
    for (;;) {
      signal.throwIfAborted();
      const metrics = new LazyMetrics(() => {
        const times = { arrivedMs, submittedMs: performance.now() };
        return this.#metrics.startCall(generation, n, times);
      });
      const whole = new WholeAnswer(generation.choices.length, usage, metrics);
      let cancel: () => void;
      try {
        cancel = this.#service.submitLine(generation, whole);
      } catch (error) {
        if (!(error instanceof RelayError) || error.code !== "model_loading") throw error;
        await this.#served(signal);
        continue;
      }
      const forget = this.#onAbort(signal, () => this.#wakeUps.wake(cancel));
      try {
        await whole.ended(signal, this.#wakeUps);
      } finally {
        forget();
      }
      return whole.events;
    }
  }

  #turn(): Promise<void> {
    return new Promise((resolve) => this.#wakeUps.wake(resolve));
  }

  /** Calls `end` when the signal fires, unless it is forgotten before. */
  #onAbort(signal: AbortSignal, end: () => void): () => void {
    let ends = this.#ends.get(signal);
    if (ends === undefined) {
      const all = new Set<() => void>();
      ends = all;
      this.#ends.set(signal, all);
      const endAll = () => {
        for (const each of all) each();
      };
      signal.addEventListener("abort", endAll, { once: true });
    }
    if (signal.aborted) end();
    else ends.add(end);
    return () => ends.delete(end);
  }

  /** Resolves when the model may be served again, or the signal fires. */
  async #served(signal: AbortSignal): Promise<void> {
    let forget = () => {};
    await new Promise<void>((resolve) => {
      forget = this.#onAbort(signal, resolve);
      this.#unserved.push(resolve);
      this.#lookAgain ??= setTimeout(() => this.#wakeUnserved(), lookAgainMs).unref();
    });
    forget();
  }

  #wakeUnserved(): void {
    if (this.#lookAgain !== null) clearTimeout(this.#lookAgain);
    this.#lookAgain = null;
    const waiting = this.#unserved;
    this.#unserved = [];
    for (const wake of waiting) this.#wakeUps.wake(wake);
  }
}

/** Figures of a call begin when the service has taken it. */
class LazyMetrics {
  #metrics: CallMetrics | null = null;

  constructor(private readonly start: () => CallMetrics) {}

  get(): CallMetrics {
    this.#metrics ??= this.start();
    return this.#metrics;
  }
}

/** Takes the events of a request as they come: nobody is woken before its end. */
class WholeAnswer implements EventSink {
  readonly events: AnswerEvent[][];
  #error: RelayError | null = null;
  #isOver = false;
  #over: () => void = () => undefined;

  constructor(
    choiceCount: number,
    private readonly usage: UsageCounter,
    private readonly metrics: LazyMetrics,
  ) {
    this.events = Array.from({ length: choiceCount }, () => []);
  }

  push(event: RequestEvent): void {
    if (event.type === "error") {
      this.#error = event.error;
      return;
    }
    this.metrics.get().note(event);
    if (event.type === "started") return;
    this.usage.note(event);
    this.events[event.choice]?.push(event);
  }

  end(): void {
    this.#isOver = true;
    this.#over();
  }

  /** @throws RelayError the request's own; the signal's reason when it ended the request */
  async ended(signal: AbortSignal, wakeUps: WakeUps): Promise<void> {
    if (!this.#isOver) {
      await new Promise<void>((resolve) => {
        this.#over = () => wakeUps.wake(resolve);
      });
    }
    const metrics = this.metrics.get();
    if (this.#error === null && this.events.every((own) => own.at(-1)?.type === "finish")) {
      metrics.end();
      return;
    }
    metrics.end(signal.aborted ? "abort" : "error");
    signal.throwIfAborted();
    throw this.#error ?? new RelayError("internal", "the request ended without an answer");
  }
}

/**
 * @param tokens About as many as the answer holds tokens and scores.
 * @throws RelayError not_supported for an answer that is too long to be kept.
 */
async function textOf(value: object, tokens: number): Promise<string> {
  if (tokens <= maxInlineTokens) {
    let text = "";
    for (const piece of jsonText(value)) text += piece;
    return text;
  }
  let text = "";
  for await (const piece of inTurns(jsonText(value))) {
    text += piece;
    if (text.length <= maxKeptAnswerCharacters) continue;
    const problem = `the answer is longer than the ${maxKeptAnswerCharacters} characters that are kept`;
    throw new RelayError("not_supported", problem);
  }
  return text;
}
