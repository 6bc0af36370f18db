/**
 * From the bytes of a body to what its endpoint asks for. Knows no connection and no queue, so it runs on
 * the main thread and in the threads of the prompt service alike; what it is given and what it returns is
 * plain data that can cross between them.
 */
import { RelayError } from "../../common/errors.js";
import type { ModelInfo } from "../inference.js";
import type { Encoder } from "../prompt/encoder.js";
import { readChat } from "./chat-body.js";
import { readCompletion } from "./completion-body.js";
import { asObject, type Body } from "./fields.js";
import { readGenerate } from "./grpc/request.js";
import { detokenize, tokenize } from "./tokenize-body.js";

export interface BodyTask {
  endpoint: Endpoint;
  /** JSON, or for "generate" a GenerateRequest as it came over gRPC. */
  bytes: Uint8Array<ArrayBuffer>;
  model: ModelInfo;
  /** Unknown fields are errors. */
  strict: boolean;
  /** For a body that names no seed, decimal int64; absent: one is drawn. */
  seed?: string;
}

/** What readers need beside the body itself. */
export interface ReadContext {
  model: ModelInfo;
  encoder: Encoder;
  strict: boolean;
  /** For a body that names none; absent: one is drawn. */
  seed?: bigint | undefined;
}

const readers = {
  chat: fromJson(readChat),
  completions: fromJson(readCompletion),
  tokenize: fromJson(tokenize),
  detokenize: fromJson(detokenize),
  generate: readGenerate,
} satisfies Record<string, (bytes: Uint8Array, context: ReadContext) => Promise<unknown>>;

export type Endpoint = keyof typeof readers;
export type GenerationEndpoint = "chat" | "completions";
export type ReadAs<E extends Endpoint> = Awaited<ReturnType<(typeof readers)[E]>>;
export type Read = ReadAs<Endpoint>;

/** @throws RelayError invalid_json, or what is wrong with a field */
export async function readBody(
  { endpoint, bytes, model, strict, seed }: BodyTask,
  encoder: Encoder,
): Promise<Read> {
  const given = seed === undefined ? undefined : BigInt(seed);
  return readers[endpoint](bytes, { model, encoder, strict, seed: given });
}

function fromJson<T>(read: (body: Body, context: ReadContext) => Promise<T>) {
  return async (bytes: Uint8Array, context: ReadContext): Promise<T> =>
    read(asObject(parseJson(bytes), "body"), context);
}

/** The memory of a result's long parts, each once. */
export function buffersOf(read: Read): ArrayBuffer[] {
  if (read instanceof Uint8Array) return [read.buffer];
  const buffers = new Set<ArrayBuffer>();
  for (const { promptTokens } of read.generation.choices) {
    if (promptTokens instanceof Int32Array) buffers.add(promptTokens.buffer as ArrayBuffer);
  }
  return [...buffers];
}

/** Bytes that are not UTF-8 are refused, not replaced by U+FFFD. @throws RelayError invalid_json */
export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new RelayError("invalid_json", "the request body is not valid UTF-8");
  }
  if (text.trim() === "") throw new RelayError("invalid_json", "the request body is empty, expected JSON");
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RelayError("invalid_json", `the request body is not valid JSON: ${(error as Error).message}`);
  }
}
