/**
 * From anything thrown to a response in OpenAI's shape, {"error":{message,type,param,code}}: the one
 * place that knows status codes, Retry-After and what fastify's own errors mean.
 */
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { FastifyReply, FastifyRequest } from "fastify";
import { type ErrorCode, RelayError } from "../../common/errors.js";
import { maxBodyBytes } from "../../common/limits.js";
import type { Logger } from "../../common/log.js";
import { requestTimeoutMs } from "./limits.js";

const defaultRetryAfterS = 1;

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string } & Record<string, unknown>;
}

export function errorBody(error: RelayError): ErrorBody {
  return {
    error: {
      ...error.extra,
      message: error.message,
      type: error.type,
      param: error.param ?? null,
      code: error.code,
    },
  };
}

/** Headers that tell a client's library whether and when to try again, and what is wanted of it. */
export function errorHeaders(error: RelayError): Record<string, string> {
  const headers: Record<string, string> = {};
  if (error.code === "invalid_api_key") headers["www-authenticate"] = "Bearer";
  if (error.retryable) {
    const seconds = error.retryAfterS ?? defaultRetryAfterS;
    headers["retry-after"] = String(Math.max(1, Math.ceil(seconds)));
    headers["retry-after-ms"] = String(Math.max(1, Math.round(seconds * 1_000)));
  }
  // The openai client repeats these unless told that it is useless; within its seconds no disk gets empty.
  const repeats = error.httpStatus >= 500 || error.httpStatus === 408 || error.httpStatus === 409;
  if (repeats && (!error.retryable || error.code === "storage_full")) headers["x-should-retry"] = "false";
  return headers;
}

const frameworkCodes: Record<string, ErrorCode> = {
  FST_ERR_CTP_BODY_TOO_LARGE: "request_too_large",
  FST_ERR_CTP_INVALID_MEDIA_TYPE: "unsupported_media_type",
  FST_ERR_CTP_EMPTY_TYPE: "unsupported_media_type",
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: "invalid_json",
  FST_ERR_BAD_URL: "not_found",
  FST_ERR_MAX_PARAM_LENGTH: "not_found",
};

/**
 * What the client is told. An error that is not ours is our mistake: its text may hold anything, so it
 * goes to the log and the client gets the id under which it stands there.
 */
export function toClientError(error: unknown, requestId: string): RelayError {
  if (error instanceof RelayError) return error;
  const { code, statusCode } = error as { code?: unknown; statusCode?: unknown };
  const known = typeof code === "string" ? frameworkCodes[code] : undefined;
  if (known === "unsupported_media_type") {
    return new RelayError(known, "the Content-Type must be application/json");
  }
  if (known === "request_too_large") return bodyTooLarge();
  if (known !== undefined) return new RelayError(known, (error as Error).message);
  if (typeof statusCode === "number" && statusCode >= 400 && statusCode < 500) {
    return new RelayError("invalid_value", (error as Error).message);
  }
  return new RelayError("internal", `internal error; the log names its cause under request ${requestId}`, {
    cause: error,
  });
}

export function bodyTooLarge(): RelayError {
  return new RelayError("request_too_large", `the request body is larger than ${maxBodyBytes} bytes`);
}

export function tookTooLong(limitMs: number): RelayError {
  return new RelayError("deadline_exceeded", `the request took longer than ${limitMs / 1_000} s to arrive`);
}

/** Faults of the client are its own business; ours are logged, with their cause and never a prompt. */
export function logFault(log: Logger, error: RelayError, requestId: string): void {
  if (error.code === "internal" || error.code === "numeric_error") {
    log.error({ requestId, code: error.code, err: error.cause ?? error }, "request failed");
  } else if (error.httpStatus >= 500 && error.code !== "not_supported") {
    log.warn({ requestId, code: error.code, reason: error.message }, "request refused");
  }
}

export function errorHandler(log: Logger) {
  return (error: unknown, request: FastifyRequest, reply: FastifyReply): void => {
    const known = toClientError(error, request.id);
    request.errorCode = known.code;
    logFault(log, known, request.id);
    reply.code(known.httpStatus).headers(errorHeaders(known)).send(errorBody(known));
  };
}

/** Bytes that never became a request: no fastify request exists, so the answer is written by hand. */
export function answerBrokenConnection(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === "ECONNRESET") {
    socket.destroy();
    return;
  }
  const [status, type, code, message] =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? [
          408,
          "timeout_error",
          "deadline_exceeded",
          `the request took longer than ${requestTimeoutMs / 1_000} s to arrive`,
        ]
      : error.code === "HPE_HEADER_OVERFLOW"
        ? [431, "invalid_request_error", "request_too_large", "the request headers are too large"]
        : [400, "invalid_request_error", "invalid_value", "this is not a valid HTTP request"];
  const body = JSON.stringify({ error: { message, type, param: null, code } });
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status as number]}\r\n` +
      "Content-Type: application/json; charset=utf-8\r\nConnection: close\r\n" +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
