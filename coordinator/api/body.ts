/**
 * Request bodies on their way in: collected as bytes, then read (read-body.ts) here when they are small
 * and in a thread when that could take long. Collected here and not by fastify, because a body that is
 * too large is read to its end and thrown away: a socket closed with unread bytes is reset and the client
 * never sees the 413.
 */
import type { IncomingMessage } from "node:http";
import multipart from "@fastify/multipart";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { maxBodyBytes } from "../../common/limits.js";
import type { InferenceService } from "../inference.js";
import type { ApiContext } from "./context.js";
import { bodyTooLarge, tookTooLong } from "./errors.js";
import { invalid } from "./fields.js";
import { maxDiscardedBytes, maxInlineBodyBytes, maxInlineMessageBytes } from "./limits.js";
import { type BodyTask, type Endpoint, type ReadAs, readBody } from "./read-body.js";

/** @param limitMs For a body to arrive; a client that takes longer gets 408. */
export function installBodyParser(server: FastifyInstance, limitMs: number): void {
  server.removeAllContentTypeParsers();
  server.addContentTypeParser("application/json", async (_request: unknown, payload: IncomingMessage) => {
    const encoding = payload.headers["content-encoding"];
    if (encoding !== undefined && encoding !== "identity") {
      throw new RelayError("unsupported_media_type", "the request body must not be compressed");
    }
    return collect(payload, limitMs);
  });
}

/** For routes that read forms as they come; a body of another type reaches them unread. */
export async function installFormParser(server: FastifyInstance): Promise<void> {
  server.removeAllContentTypeParsers();
  server.addContentTypeParser("*", (_request, _payload, done) => done(null));
  await server.register(multipart);
}

/**
 * What the request's body asks for.
 * @throws RelayError what is wrong with it
 */
export async function bodyAs<E extends Endpoint>(
  { service }: ApiContext,
  request: FastifyRequest,
  endpoint: E,
): Promise<ReadAs<E>> {
  const bytes = request.body as Uint8Array<ArrayBuffer> | undefined;
  if (bytes === undefined) throw invalid("body", undefined, "a JSON object");
  return bytesAs(service, bytes, endpoint, request.headers["x-glm-strict"] === "1");
}

/**
 * The same of its bytes alone.
 * @param strict Unknown fields are errors.
 * @param seed Of a body that names none; absent: one is drawn.
 */
export async function bytesAs<E extends Endpoint>(
  service: InferenceService,
  bytes: Uint8Array<ArrayBuffer>,
  endpoint: E,
  strict: boolean,
  seed?: bigint,
): Promise<ReadAs<E>> {
  const { prompt, contextLength } = service;
  const model = { ...service.model, contextLength };
  const given = seed === undefined ? {} : { seed: seed.toString() };
  const task: BodyTask = { endpoint, bytes, model, strict, ...given };
  const inlineBytes = endpoint === "generate" ? maxInlineMessageBytes : maxInlineBodyBytes;
  // What only counts or shows tokens writes its answer where it has made them: a token takes many bytes.
  const inThread = bytes.length > inlineBytes || endpoint === "tokenize" || endpoint === "detokenize";
  return (inThread ? prompt.readBody(task) : readBody(task, prompt)) as Promise<ReadAs<E>>;
}

/** In an array of its own, which can move to a thread. */
async function collect(payload: IncomingMessage, limitMs: number): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  await new Promise<void>((resolve, reject) => {
    // Not by iterating: who stops that early has closed the connection, and nobody is left to answer.
    const end = (error: RelayError | null) => {
      clearTimeout(timer);
      payload.off("data", take).off("end", whole).off("close", left);
      if (error === null) resolve();
      else reject(error);
    };
    const whole = () => end(null);
    const left = (cause?: unknown) =>
      end(new RelayError("cancelled", "the client left while its request was being read", { cause }));
    const take = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= maxBodyBytes) chunks.push(chunk);
      else chunks.length = 0;
      if (bytes > maxDiscardedBytes) end(bodyTooLarge());
    };
    const timer = setTimeout(() => end(tookTooLong(limitMs)), limitMs);
    payload.on("data", take).once("end", whole).once("close", left);
    // It stays: an error without a listener would end the process.
    payload.on("error", left);
  });
  if (bytes > maxBodyBytes) throw bodyTooLarge();
  const body = new Uint8Array(bytes);
  let end = 0;
  for (const chunk of chunks) {
    body.set(chunk, end);
    end += chunk.length;
  }
  return body;
}
