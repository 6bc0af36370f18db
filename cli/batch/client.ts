/**
 * Sends one request of a batch to the coordinator. With node:http and not fetch, which gives up after five
 * minutes without a response: an answer that is not streamed may take longer, in the queue and in the model.
 */
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { type Answer, isPassingStatus, outputLineBytesMax } from "./output-line.js";
import type { BatchRequest } from "./request-line.js";
import { readRetryAfter } from "./retry.js";

/** A coordinator that is there and does not answer for so long has lost the request. */
const answerLimitMs = 60 * 60 * 1_000;
/** Finds a peer whose machine is gone although no packet said so. */
const keepAliveDelayMs = 30_000;
/** Characters kept of an error page that is not JSON. */
const errorTextCharsMax = 1_000;

export interface Attempt extends Answer {
  /** The same request may succeed later. */
  again: boolean;
  retryAfterMs: number | null;
}

export class BatchClient {
  readonly #agent: HttpAgent;
  readonly #request: typeof httpRequest;

  /** @param concurrency Connections at the same time. */
  constructor(
    private readonly url: string,
    concurrency: number,
  ) {
    const secure = url.startsWith("https:");
    const options = { keepAlive: true, maxSockets: concurrency };
    this.#agent = secure ? new HttpsAgent(options) : new HttpAgent(options);
    this.#request = secure ? httpsRequest : httpRequest;
  }

  /**
   * One attempt. Never throws: whatever happens is an answer or an error that can stand in the output.
   * @param signal Cuts the connection, by which the coordinator drops the request.
   */
  async send(request: BatchRequest, signal: AbortSignal): Promise<Attempt> {
    try {
      const response = await this.#post(request, signal);
      const text = await readBody(response);
      return text === null ? tooLarge() : answerOf(response, text);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      // Whoever died in the middle of a response is called "aborted", which tells nothing.
      const reason = message === "aborted" ? "the connection broke in the middle of the response" : message;
      return failed("connection_failed", `${this.url}: ${reason || code}`);
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  #post({ url, body }: BatchRequest, signal: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const bytes = Buffer.from(body);
      const outgoing = this.#request(
        `${this.url}${url}`,
        {
          method: "POST",
          agent: this.#agent,
          headers: {
            "content-type": "application/json",
            "content-length": bytes.length,
            "x-glm-class": "batch",
          },
          signal,
          timeout: answerLimitMs,
        },
        resolve,
      );
      outgoing.on("timeout", () =>
        outgoing.destroy(new Error(`silent for ${answerLimitMs / 60_000} minutes`)),
      );
      outgoing.on("socket", (socket) => socket.setKeepAlive(true, keepAliveDelayMs));
      outgoing.on("error", reject);
      outgoing.end(bytes);
    });
  }
}

/** Null when it is too large for a line of the output. */
async function readBody(response: IncomingMessage): Promise<string | null> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > outputLineBytesMax) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function answerOf({ statusCode, headers }: IncomingMessage, text: string): Attempt {
  const status = statusCode!;
  const succeeded = status >= 200 && status < 300;
  const body = parse(text);
  if (succeeded && body === undefined) {
    return failed("invalid_response", `status ${status} with a body that is not JSON`);
  }
  const requestId = headers["x-request-id"];
  const told = headers["x-should-retry"];
  return {
    response: {
      status_code: status,
      request_id: typeof requestId === "string" ? requestId : null,
      body: body === undefined ? text.slice(0, errorTextCharsMax) : body,
    },
    error: null,
    again: !succeeded && (told === "true" || (told !== "false" && isPassingStatus(status))),
    retryAfterMs: readRetryAfter(headers, Date.now()),
  };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function failed(code: string, message: string): Attempt {
  return { response: null, error: { code, message }, again: true, retryAfterMs: null };
}

function tooLarge(): Attempt {
  const message = `the response is larger than ${outputLineBytesMax} bytes`;
  return { ...failed("response_too_large", message), again: false };
}
