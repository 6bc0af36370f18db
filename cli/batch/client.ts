/** The calls of /v1/files and /v1/batches, each made once: whoever calls decides whether to make it again. */
import { randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { type ClientRequest, request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { basename } from "node:path";
import { pipeline } from "node:stream/promises";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import type { FileObject } from "../../coordinator/files/file.js";
import { parseError } from "../api.js";
import { CommandError } from "../errors.js";
import { authorization } from "../secrets.js";
import { readServerSentEvents } from "../sse.js";
import { CallError, readRetryAfter } from "./retry.js";

/** For an answer that is there at once, or written to disk before. */
const answerLimitMs = 60_000;
/** Of a stream of events: pings come every 15 s. Of a download: the other side reads from its disk. */
export const silenceLimitMs = 60_000;
/** Of an upload: at its end the other side writes it to its disk. */
const uploadSilenceMs = 300_000;
/** Of an error that is not ours, such as a proxy's page. */
const errorBytesMax = 64 * 1024;

/** The body of POST /v1/batches, as far as the command line fills it. */
export interface NewBatchBody {
  input_file_id: string;
  endpoint: string;
  completion_window: string;
  metadata?: Record<string, string>;
  priority?: number;
  token_budget?: number;
  webhook?: { url: string };
}

export class BatchClient {
  /**
   * @param url Of the coordinator, without a slash at its end.
   * @param key Of a coordinator that has keys.
   * @param silenceMs A stream on which nothing comes for so long has broken.
   */
  constructor(
    readonly url: string,
    private readonly key: string | null = null,
    private readonly silenceMs = silenceLimitMs,
  ) {}

  /**
   * Sends a file as it is on disk, without holding it.
   * @param onBytes Called with the bytes that were sent so far, and all there are.
   * @throws CallError, CommandError when the file cannot be read
   */
  async upload(
    file: string,
    signal: AbortSignal,
    onBytes: (sent: number, total: number) => void = () => {},
  ): Promise<FileObject> {
    const size = await sizeOf(file);
    const boundary = `glm-relay-${randomUUID()}`;
    const head = Buffer.from(
      `--${boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n` +
        `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="${quoted(basename(file))}"\r\n` +
        "Content-Type: application/octet-stream\r\n\r\n",
    );
    const tail = Buffer.from(`\r\n--${boundary}--\r\n`);
    const request = this.#open("/v1/files", signal, {
      "content-type": `multipart/form-data; boundary=${boundary}`,
      "content-length": String(head.length + size + tail.length),
    });
    const answer = answerOf(request);
    // Told where the answer is waited for.
    answer.catch(() => {});
    try {
      await pipeline(parts(file, size, head, tail, onBytes), request);
    } catch (error) {
      // Whoever refuses a file may do it before its end; then the answer says why.
      const response = await Promise.race([answer.catch(() => null), patient(null)]);
      if (response === null) throw error instanceof CommandError ? error : this.#unreachable(error, signal);
    }
    try {
      const response = await answer;
      const text = await textOf(response);
      return this.#read<FileObject>(response.statusCode ?? 0, headersOf(response), text);
    } catch (error) {
      throw error instanceof CommandError ? error : this.#unreachable(error, signal);
    }
  }

  file(id: string, signal: AbortSignal): Promise<FileObject> {
    return this.#json("GET", `/v1/files/${encodeURIComponent(id)}`, signal);
  }

  create(body: NewBatchBody, signal: AbortSignal): Promise<BatchObject> {
    return this.#json("POST", "/v1/batches", signal, body);
  }

  get(id: string, signal: AbortSignal): Promise<BatchObject> {
    return this.#json("GET", `/v1/batches/${encodeURIComponent(id)}`, signal);
  }

  cancel(id: string, signal: AbortSignal): Promise<BatchObject> {
    return this.#json("POST", `/v1/batches/${encodeURIComponent(id)}/cancel`, signal);
  }

  list(
    { after, limit }: { after: string | null; limit: number },
    signal: AbortSignal,
  ): Promise<{ data: BatchObject[]; has_more: boolean }> {
    const query = new URLSearchParams({ limit: String(limit), ...(after === null ? {} : { after }) });
    return this.#json("GET", `/v1/batches?${query}`, signal);
  }

  /**
   * The batch as it is, and at each change; ends with its last state, or when the connection ends.
   * @throws CallError
   */
  async *events(id: string, signal: AbortSignal): AsyncGenerator<BatchObject> {
    const { chunks } = await this.#stream(`/v1/batches/${encodeURIComponent(id)}/events`, signal, {});
    for await (const data of readServerSentEvents(chunks)) {
      if (data === "[DONE]") return;
      yield JSON.parse(data) as BatchObject;
    }
  }

  /**
   * The bytes of a file.
   * @param from The first byte that is wanted.
   * @throws CallError
   */
  async *content(id: string, from: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    const range: Record<string, string> = from === 0 ? {} : { range: `bytes=${from}-` };
    const path = `/v1/files/${encodeURIComponent(id)}/content`;
    const { status, chunks } = await this.#stream(path, signal, range);
    // Whoever does not know ranges sends all of it.
    let skip = status === 206 ? 0 : from;
    for await (const chunk of chunks) {
      const rest = chunk.subarray(Math.min(skip, chunk.length));
      skip -= chunk.length - rest.length;
      if (rest.length > 0) yield Buffer.from(rest.buffer, rest.byteOffset, rest.length);
    }
  }

  async #json<T>(method: string, path: string, signal: AbortSignal, body?: object): Promise<T> {
    const limit = AbortSignal.timeout(answerLimitMs);
    try {
      const response = await fetch(`${this.url}${path}`, {
        method,
        signal: AbortSignal.any([signal, limit]),
        headers: {
          ...authorization(this.key),
          ...(body === undefined ? {} : { "content-type": "application/json" }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return this.#read<T>(response.status, response.headers, await response.text());
    } catch (error) {
      throw error instanceof CommandError ? error : this.#unreachable(error, signal);
    }
  }

  /** @returns Chunks that throw CallError when nothing comes for too long, or the connection breaks. */
  async #stream(
    path: string,
    signal: AbortSignal,
    headers: Record<string, string>,
  ): Promise<{ status: number; chunks: AsyncGenerator<Uint8Array> }> {
    const silence = new Silence(this.silenceMs);
    const fail = (error: unknown) => {
      silence.stop();
      if (error instanceof CommandError) return error;
      return this.#unreachable(silence.signal.aborted ? silence.signal.reason : error, signal);
    };
    let response: Response;
    try {
      silence.start();
      const both = AbortSignal.any([signal, silence.signal]);
      response = await fetch(`${this.url}${path}`, {
        headers: { ...authorization(this.key), ...headers },
        signal: both,
      });
      if (!response.ok) this.#read(response.status, response.headers, await response.text());
    } catch (error) {
      throw fail(error);
    }
    const { body, status } = response;
    const chunks = async function* () {
      try {
        for await (const chunk of body as AsyncIterable<Uint8Array>) {
          // Whoever takes the chunk may take its time: only the other side's silence counts.
          silence.stop();
          yield chunk;
          silence.start();
        }
      } catch (error) {
        throw fail(error);
      } finally {
        silence.stop();
      }
    };
    return { status, chunks: chunks() };
  }

  #open(path: string, signal: AbortSignal, headers: Record<string, string>): ClientRequest {
    const request = this.url.startsWith("https:") ? httpsRequest : httpRequest;
    const outgoing = request(`${this.url}${path}`, {
      method: "POST",
      headers: { ...authorization(this.key), ...headers },
      signal,
      agent: false,
      timeout: uploadSilenceMs,
    });
    outgoing.on("timeout", () => outgoing.destroy(new Error(`silent for ${uploadSilenceMs / 1_000} s`)));
    return outgoing;
  }

  /** @throws CallError for a status that is an error. */
  #read<T>(status: number, headers: Pick<Headers, "get">, text: string): T {
    if (status >= 200 && status < 300) {
      try {
        return JSON.parse(text) as T;
      } catch {
        throw new CallError(`${this.url} answered with what is not JSON`, null, status, false, null);
      }
    }
    const { message, code } = parseError(text.slice(0, errorBytesMax));
    const told = headers.get("x-should-retry");
    throw new CallError(
      message ?? `${this.url} answered with status ${status}`,
      code ?? null,
      status,
      told === "true" || (told !== "false" && (status === 408 || status === 429 || status >= 500)),
      readRetryAfter(headers, Date.now()),
    );
  }

  /** @param signal Of whoever called: its end is no fault of the coordinator. */
  #unreachable(error: unknown, signal: AbortSignal): unknown {
    if (signal.aborted) return signal.reason;
    const { cause, message, code } = error as NodeJS.ErrnoException & { cause?: NodeJS.ErrnoException };
    const reason = cause?.code ?? code ?? cause?.message ?? message;
    return new CallError(`no answer from ${this.url}: ${reason}`, null, null, true, null);
  }
}

/** Fires when nothing has come for so long. */
class Silence {
  readonly #controller = new AbortController();
  #timer: NodeJS.Timeout | undefined;

  constructor(private readonly limitMs: number) {}

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  start(): void {
    this.stop();
    this.#timer = setTimeout(() => {
      this.#controller.abort(new Error(`silent for ${this.limitMs / 1_000} s`));
    }, this.limitMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

async function sizeOf(file: string): Promise<number> {
  try {
    const found = await stat(file);
    if (!found.isFile()) throw new Error("not a regular file");
    return found.size;
  } catch (error) {
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
}

async function* parts(
  file: string,
  size: number,
  head: Buffer,
  tail: Buffer,
  onBytes: (sent: number, total: number) => void,
): AsyncGenerator<Buffer> {
  yield head;
  let sent = 0;
  const changed = () => new CommandError(`${file} was changed while it was sent: submit it again`);
  try {
    for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) {
      sent += chunk.length;
      if (sent > size) throw changed();
      yield chunk;
      onBytes(sent, size);
    }
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
  if (sent < size) throw changed();
  yield tail;
}

function answerOf(request: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.once("response", resolve);
    request.once("error", reject);
  });
}

async function textOf(response: IncomingMessage): Promise<string> {
  response.setEncoding("utf8");
  let text = "";
  for await (const chunk of response as AsyncIterable<string>) {
    text += chunk;
    if (text.length > errorBytesMax) break;
  }
  return text;
}

function headersOf({ headers }: IncomingMessage): Pick<Headers, "get"> {
  return {
    get: (name) => {
      const value = headers[name];
      return Array.isArray(value) ? (value[0] ?? null) : (value ?? null);
    },
  };
}

/** The answer to a connection that broke may still be on its way. */
const lateAnswerMs = 500;
function patient<T>(value: T): Promise<T> {
  return new Promise((resolve) => setTimeout(resolve, lateAnswerMs, value).unref());
}

/** As browsers write a file's name into a form. */
function quoted(name: string): string {
  return name.replaceAll("\r", "%0D").replaceAll("\n", "%0A").replaceAll('"', "%22");
}
