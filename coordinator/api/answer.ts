/** The seam between the life of a request (generation.ts) and the two ways to write its answer. */
import { createHash, randomBytes } from "node:crypto";
import { type RequestId, requestId } from "../../common/ids.js";
import type { GenerationRequest, InferenceService, RequestEvent } from "../inference.js";
import type { StreamOptions } from "./sampling.js";
import type { Usage } from "./usage.js";

/** What an answer is written from. An error is thrown where events are read; the start is for figures only. */
export type AnswerEvent = Exclude<RequestEvent, { type: "error" | "started" }>;

/** One endpoint's way to write an answer; made per call, holds the state of its choices. */
export interface Answer {
  /** Chunks of a stream that an event gives rise to, usually one. */
  chunks(event: AnswerEvent): Record<string, unknown>[];
  /** The chunk after the last choice, for `include_usage`. */
  usageChunk(usage: Usage): Record<string, unknown>;
  /** The whole response, from all events in order. */
  response(events: AnswerEvent[], usage: Usage): Record<string, unknown>;
}

export interface Call {
  generation: GenerationRequest;
  /** Choices per prompt. */
  n: number;
  stream: boolean;
  streamOptions: StreamOptions | undefined;
  answer: Answer;
}

export function newRequestId(prefix: "chatcmpl" | "cmpl"): RequestId {
  return requestId(`${prefix}-${randomBytes(16).toString("hex")}`);
}

/** The members that a response and each chunk of a stream have in common. */
export interface Envelope {
  id: string;
  object: string;
  created: number;
  model: string;
  system_fingerprint: string | null;
}

export function envelope(service: InferenceService, id: string, object: string): Envelope {
  const { numericsId } = service.cluster();
  return {
    id,
    object,
    created: Math.floor(Date.now() / 1_000),
    model: service.model.id,
    // Equal fingerprint, seed and parameters promise equal tokens: just what the numerics id stands for.
    system_fingerprint:
      numericsId === null ? null : `fp_${createHash("sha256").update(numericsId).digest("hex").slice(0, 12)}`,
  };
}

/** The events of one choice, put together. */
export interface WholeChoice {
  text: string;
  tokens: number[];
  events: AnswerEvent[];
  finish: Extract<AnswerEvent, { type: "finish" }>;
}

/** @param events All events of a finished request, any order of choices. */
export function wholeChoices(events: AnswerEvent[], count: number): WholeChoice[] {
  const byChoice: AnswerEvent[][] = Array.from({ length: count }, () => []);
  for (const event of events) byChoice[event.choice]?.push(event);
  return byChoice.map((own) => {
    const tokens: number[] = [];
    let text = "";
    for (const event of own) {
      if (event.type === "tokens") for (const token of event.tokens) tokens.push(token);
      if (event.type !== "prompt") text += event.text;
    }
    const finish = own.at(-1);
    if (finish?.type !== "finish") throw new Error("a choice ended without its finish event");
    return { text, tokens, events: own, finish };
  });
}
