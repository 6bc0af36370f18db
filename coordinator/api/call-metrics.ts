/** The figures of one generation request, from its arrival to its end. */
import type { Counter, Histogram } from "prom-client";
import type { GenerationRequest, RequestEvent } from "../inference.js";

export interface CallInstruments {
  requests: Counter;
  promptTokens: Counter;
  generationTokens: Counter;
  promptLength: Histogram;
  generationLength: Histogram;
  firstToken: Histogram;
  interToken: Histogram;
  duration: Histogram;
  queued: Histogram;
  prefill: Histogram;
  decode: Histogram;
}

export class CallMetrics {
  readonly #instruments: CallInstruments;
  readonly #model: { model: string };
  readonly #endpoint: string;
  readonly #arrivedMs: number;
  /** When each choice had its latest token; undefined before the first. */
  readonly #latestTokenMs: (number | undefined)[];
  readonly #submittedMs: number;
  #startedMs: number | null = null;
  #firstTokenMs: number | null = null;
  #anyLength = false;
  #ended = false;

  constructor(
    instruments: CallInstruments,
    model: string,
    generation: GenerationRequest,
    n: number,
    /** When the head of the HTTP request was there, and when the request went to the queue. */
    { arrivedMs, submittedMs }: { arrivedMs: number; submittedMs: number },
  ) {
    this.#instruments = instruments;
    this.#model = { model };
    this.#endpoint = generation.endpoint;
    this.#arrivedMs = arrivedMs;
    this.#submittedMs = submittedMs;
    this.#latestTokenMs = generation.choices.map(() => undefined);
    for (const [i, { promptTokens }] of generation.choices.entries()) {
      if (i % n !== 0) continue;
      instruments.promptTokens.inc(this.#model, promptTokens.length);
      instruments.promptLength.observe(this.#model, promptTokens.length);
    }
  }

  note(event: Exclude<RequestEvent, { type: "error" }>): void {
    if (event.type === "started") {
      this.#startedMs = performance.now();
      this.#instruments.queued.observe(this.#model, (this.#startedMs - this.#submittedMs) / 1_000);
    }
    if (event.type === "tokens" && event.tokens.length > 0)
      this.#noteTokens(event.choice, event.tokens.length);
    if (event.type === "finish") {
      this.#instruments.generationLength.observe(this.#model, event.completionTokens);
      if (event.reason === "length") this.#anyLength = true;
    }
  }

  /** Counts the request once. @param outcome Left out when every choice was answered. */
  end(outcome?: "abort" | "error"): void {
    if (this.#ended) return;
    this.#ended = true;
    const reason = outcome ?? (this.#anyLength ? "length" : "stop");
    this.#instruments.requests.inc({ ...this.#model, endpoint: this.#endpoint, finish_reason: reason });
    this.#instruments.duration.observe(this.#model, (performance.now() - this.#arrivedMs) / 1_000);
    if (outcome === undefined && this.#firstTokenMs !== null) {
      const lastMs = Math.max(...this.#latestTokenMs.map((ms) => ms ?? 0));
      this.#instruments.decode.observe(this.#model, (lastMs - this.#firstTokenMs) / 1_000);
    }
  }

  #noteTokens(choice: number, count: number): void {
    const nowMs = performance.now();
    this.#instruments.generationTokens.inc(this.#model, count);
    if (this.#firstTokenMs === null) {
      this.#firstTokenMs = nowMs;
      this.#instruments.firstToken.observe(this.#model, (nowMs - this.#arrivedMs) / 1_000);
      if (this.#startedMs !== null) {
        this.#instruments.prefill.observe(this.#model, (nowMs - this.#startedMs) / 1_000);
      }
    }
    const latestMs = this.#latestTokenMs[choice];
    if (latestMs !== undefined) {
      // Tokens that come together share the gap, so the sum stays the time that has passed.
      const gapS = (nowMs - latestMs) / 1_000 / count;
      for (let i = 0; i < count; i++) this.#instruments.interToken.observe(this.#model, gapS);
    }
    this.#latestTokenMs[choice] = nowMs;
  }
}
