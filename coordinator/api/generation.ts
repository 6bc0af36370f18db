/**
 * The life of one generation request over HTTP, the same for chat and completions: read its body, submit
 * it, follow its events and write the answer.
 */
import { Readable } from "node:stream";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { GenerationRequest } from "../inference.js";
import type { Answer, AnswerEvent, Call } from "./answer.js";
import { bodyAs } from "./body.js";
import type { ApiContext } from "./context.js";
import { errorBody, logFault, toClientError } from "./errors.js";
import { clientLeft, follow, Presence } from "./follow.js";
import { jsonText } from "./json-text.js";
import { type TokenNames, tokenNames } from "./logprobs.js";
import type { GenerationEndpoint, ReadAs } from "./read-body.js";
import { type RequestHeaders, readRequestHeaders } from "./request-headers.js";
import { SseStream } from "./sse.js";
import { inTurns } from "./turns.js";
import { UsageCounter } from "./usage.js";

/** Characters of a long answer that are written to the socket at once. */
const packetLength = 64 * 1024;

/** Makes what writes a call's answer. */
export type AnswerTo<E extends GenerationEndpoint> = (
  generation: GenerationRequest,
  options: ReadAs<E>["options"] & { names: TokenNames },
) => Answer;

/** Reads the body of a generation request, runs it and answers, in one piece or as a stream. */
export async function answerCall<E extends GenerationEndpoint>(
  context: ApiContext,
  request: FastifyRequest,
  reply: FastifyReply,
  endpoint: E,
  answerTo: AnswerTo<E>,
): Promise<unknown> {
  const client = clientOf(reply);
  await new Promise<void>((resolve) => context.arrivals.wake(resolve));
  const headers = readRequestHeaders((name) => [request.headers[name] ?? []].flat(), request.arrivedMs);
  const call = await readCall(context, request, endpoint, headers, answerTo);
  client.check();
  const times = { arrivedMs: request.arrivedMs, submittedMs: performance.now() };
  const usage = new UsageCounter(call.generation.choices, call.n);
  request.answered = { completionId: call.generation.id, usage };
  const forget = context.running.add(call.generation.id, client);
  try {
    const handle = await context.service.submit(call.generation);
    const metrics = context.metrics.startCall(call.generation, call.n, times);
    const events = follow(handle, call.generation.choices.length, client, metrics);
    if (call.stream) {
      await streamAnswer(context, request, reply, call, events, usage);
      return reply;
    }
    const all: AnswerEvent[][] = call.generation.choices.map(() => []);
    for await (const event of events) {
      usage.note(event);
      all[event.choice]?.push(event);
    }
    return sendJson(reply, call.answer.response(all, usage.usage));
  } finally {
    forget();
  }
}

async function readCall<E extends GenerationEndpoint>(
  context: ApiContext,
  request: FastifyRequest,
  endpoint: E,
  headers: RequestHeaders,
  answerTo: AnswerTo<E>,
): Promise<Call> {
  const { unknownFields, asTokenIds, options, ...call } = await bodyAs(context, request, endpoint);
  if (unknownFields.length > 0) {
    context.log.debug({ requestId: request.id, fields: unknownFields }, "unknown fields ignored");
  }
  const form = { n: call.n, asTokenIds, options };
  const generation = { ...call.generation, ...headers, logId: request.id, answer: form };
  const names = tokenNames(context.service.prompt, asTokenIds);
  return { ...call, generation, answer: answerTo(generation, { ...options, names }) };
}

/** Writes a value as its turns come; what fits into one packet is sent with its length. */
async function sendJson(reply: FastifyReply, value: object): Promise<FastifyReply> {
  reply.type("application/json; charset=utf-8");
  const packets = inPackets(jsonText(value));
  const first = await packets.next();
  const second = await packets.next();
  if (first.done || second.done) return reply.send(first.value);
  const all = async function* () {
    yield first.value;
    yield second.value;
    yield* packets;
  };
  return reply.send(Readable.from(all()));
}

async function* inPackets(texts: Iterable<string>): AsyncGenerator<Buffer, undefined> {
  let packet = "";
  for await (const text of inTurns(texts)) {
    packet += text;
    if (packet.length < packetLength) continue;
    yield Buffer.from(packet);
    packet = "";
  }
  if (packet !== "") yield Buffer.from(packet);
}

async function streamAnswer(
  context: ApiContext,
  request: FastifyRequest,
  reply: FastifyReply,
  call: Call,
  events: AsyncIterable<AnswerEvent>,
  usage: UsageCounter,
): Promise<void> {
  const options = call.streamOptions;
  const stream = new SseStream(reply, context.timing, () => ({
    "openai-processing-ms": String(Math.round(performance.now() - request.arrivedMs)),
  }));
  const text = new ChunkText(call.answer);
  const written = (chunk: Record<string, unknown>): string => {
    if (options?.continuousUsage) chunk.usage = usage.usage;
    else if (options?.includeUsage) chunk.usage = null;
    return text.of(chunk);
  };
  try {
    for await (const event of events) {
      usage.note(event);
      const chunks = call.answer.chunks(event);
      if (event.type === "prompt") {
        // The scores of a prompt come all at once; everything else is a token's worth of work.
        for await (const chunk of inTurns(chunks)) await stream.send([written(chunk)]);
        continue;
      }
      const full = stream.send(Array.from(chunks, written));
      if (full !== null) await full;
    }
    if (options?.includeUsage) await stream.send([text.of(call.answer.usageChunk(usage.usage))]);
  } catch (cause) {
    if (!stream.opened) {
      stream.abandon();
      throw cause;
    }
    const error = toClientError(cause, request.id);
    request.errorCode = error.code;
    logFault(context.log, error, request.id);
    await stream.send([JSON.stringify(errorBody(error))]);
  }
  await stream.end();
}

/** The JSON of a stream's chunks. What all of them begin with is most of it, and written once. */
class ChunkText {
  readonly #answer: Answer;
  #head: string | null = null;

  constructor(answer: Answer) {
    this.#answer = answer;
  }

  of(chunk: Record<string, unknown>): string {
    this.#head ??= `${JSON.stringify(this.#answer.chunkEnvelope()).slice(0, -1)},`;
    return this.#head + JSON.stringify(chunk).slice(1);
  }
}

function clientOf(reply: FastifyReply): Presence {
  const client = new Presence();
  reply.raw.once("close", () => {
    if (!reply.raw.writableFinished) client.leave(clientLeft());
  });
  return client;
}
