/** The seam between the life of a request (generation.ts) and the two ways to write its answer. */
import { createHash, randomBytes } from "node:crypto";
import { type RequestId, requestId } from "../../common/ids.js";
import type { GenerationRequest, InferenceService, RequestEvent } from "../inference.js";
import type { RequestHeaders } from "./request-headers.js";
import type { StreamOptions } from "./sampling.js";
import type { Usage } from "./usage.js";

/** What an answer is written from. An error is thrown where events are read; the start is for figures only. */
export type AnswerEvent = Exclude<RequestEvent, { type: "error" | "started" }>;

/** One endpoint's way to write an answer; made per call, holds the state of its choices. */
export interface Answer {
  /** What every chunk of a stream begins with. */
  chunkEnvelope(): Envelope;
  /**
   * Chunks of a stream that an event gives rise to, usually one, without their envelope; made one by one as they
   * are taken.
   */
  chunks(event: AnswerEvent): Iterable<Record<string, unknown>>;
  /** The chunk after the last choice, for `include_usage`, without its envelope. */
  usageChunk(usage: Usage): Record<string, unknown>;
  /**
   * The whole response; its choices and long lists are made while it is written (json-text.ts).
   * @param events Those of each choice in order.
   */
  response(events: AnswerEvent[][], usage: Usage): Record<string, unknown>;
}

/** A call as its body asks for it: plain data. */
export interface ReadCall<Options> {
  generation: Omit<GenerationRequest, "logId" | keyof RequestHeaders>;
  /** Choices per prompt. */
  n: number;
  stream: boolean;
  streamOptions: StreamOptions | undefined;
  /** How the answer is to be written, but for the names of tokens. */
  options: Omit<Options, "names">;
  /** Tokens are named `token_id:N`. */
  asTokenIds: boolean;
  /** Names of the first fields that nobody knows, for the log. */
  unknownFields: string[];
}

/** What runs and is answered. */
export interface Call extends Pick<ReadCall<unknown>, "n" | "stream" | "streamOptions"> {
  generation: GenerationRequest;
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
  const { numericsId } = service;
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
  finish: Extract<AnswerEvent, { type: "finish" }>;
}

/** @param events All events of a finished choice. */
export function wholeChoice(events: AnswerEvent[]): WholeChoice {
  const tokens: number[] = [];
  let text = "";
  for (const event of events) {
    if (event.type === "tokens") for (const token of event.tokens) tokens.push(token);
    if (event.type !== "prompt") text += event.text;
  }
  const finish = events.at(-1);
  if (finish?.type !== "finish") throw new Error("a choice ended without its finish event");
  return { text, tokens, finish };
}
