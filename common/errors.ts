/**
 * The catalogue of errors that users and peers can meet. Callers match on the code; docs/errors.md
 * lists the same entries. A fault of the world is a RelayError; our own mistake is an assertion.
 */
import { status as GrpcStatus } from "@grpc/grpc-js";

interface ErrorKind {
  http: number;
  grpc: GrpcStatus;
  type: string;
  /** Trying the same again later can succeed; the API then adds Retry-After. */
  retryable: boolean;
}

const kind = (http: number, grpc: GrpcStatus, type: string, retryable = false): ErrorKind => ({
  http,
  grpc,
  type,
  retryable,
});

export const errorKinds = {
  invalid_json: kind(400, GrpcStatus.INVALID_ARGUMENT, "invalid_request_error"),
  invalid_value: kind(400, GrpcStatus.INVALID_ARGUMENT, "invalid_request_error"),
  unsupported_parameter: kind(400, GrpcStatus.INVALID_ARGUMENT, "invalid_request_error"),
  context_length_exceeded: kind(400, GrpcStatus.INVALID_ARGUMENT, "invalid_request_error"),
  invalid_api_key: kind(401, GrpcStatus.UNAUTHENTICATED, "authentication_error"),
  model_not_found: kind(404, GrpcStatus.NOT_FOUND, "not_found_error"),
  not_found: kind(404, GrpcStatus.NOT_FOUND, "not_found_error"),
  method_not_allowed: kind(405, GrpcStatus.UNIMPLEMENTED, "invalid_request_error"),
  deadline_exceeded: kind(408, GrpcStatus.DEADLINE_EXCEEDED, "timeout_error"),
  conflict: kind(409, GrpcStatus.ABORTED, "conflict_error"),
  request_too_large: kind(413, GrpcStatus.RESOURCE_EXHAUSTED, "invalid_request_error"),
  unsupported_media_type: kind(415, GrpcStatus.INVALID_ARGUMENT, "invalid_request_error"),
  range_not_satisfiable: kind(416, GrpcStatus.OUT_OF_RANGE, "invalid_request_error"),
  queue_full: kind(429, GrpcStatus.RESOURCE_EXHAUSTED, "rate_limit_error", true),
  cancelled: kind(499, GrpcStatus.CANCELLED, "cancelled_error"),
  internal: kind(500, GrpcStatus.INTERNAL, "server_error"),
  numeric_error: kind(500, GrpcStatus.INTERNAL, "server_error"),
  request_poisoned: kind(500, GrpcStatus.INTERNAL, "server_error"),
  not_supported: kind(501, GrpcStatus.UNIMPLEMENTED, "not_supported_error"),
  model_loading: kind(503, GrpcStatus.UNAVAILABLE, "unavailable_error", true),
  draining: kind(503, GrpcStatus.UNAVAILABLE, "unavailable_error", true),
  queue_unavailable: kind(503, GrpcStatus.UNAVAILABLE, "unavailable_error", true),
  worker_lost: kind(503, GrpcStatus.UNAVAILABLE, "unavailable_error", true),
  storage_full: kind(507, GrpcStatus.RESOURCE_EXHAUSTED, "server_error", true),
  // Between our own processes and on the command line; never seen over HTTP.
  invalid_model: kind(500, GrpcStatus.FAILED_PRECONDITION, "server_error"),
  invalid_configuration: kind(500, GrpcStatus.FAILED_PRECONDITION, "server_error"),
  version_mismatch: kind(500, GrpcStatus.FAILED_PRECONDITION, "server_error"),
  numerics_mismatch: kind(500, GrpcStatus.FAILED_PRECONDITION, "server_error"),
  stale_epoch: kind(500, GrpcStatus.FAILED_PRECONDITION, "server_error"),
  stage_failed: kind(500, GrpcStatus.INTERNAL, "server_error"),
  corrupt_message: kind(500, GrpcStatus.DATA_LOSS, "server_error"),
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof errorKinds;

export interface ErrorDetails {
  /** The request field at fault, as the client wrote it. */
  param?: string;
  cause?: unknown;
  /** Seconds after which a retry is worth it; only for retryable codes. */
  retryAfterS?: number;
  /** Extra members of the error object (n_prompt_tokens, n_ctx). */
  extra?: Record<string, number | string>;
}

export class RelayError extends Error {
  override readonly name = "RelayError";
  readonly code: ErrorCode;
  readonly param: string | undefined;
  readonly retryAfterS: number | undefined;
  readonly extra: Record<string, number | string>;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.param = details.param;
    this.retryAfterS = details.retryAfterS;
    this.extra = details.extra ?? {};
  }

  get httpStatus(): number {
    return errorKinds[this.code].http;
  }

  get grpcStatus(): GrpcStatus {
    return errorKinds[this.code].grpc;
  }

  get type(): string {
    return errorKinds[this.code].type;
  }

  get retryable(): boolean {
    return errorKinds[this.code].retryable;
  }
}

/** Anything thrown, as a RelayError; what is not one of ours becomes `internal` with the cause kept. */
export function toRelayError(error: unknown): RelayError {
  if (error instanceof RelayError) return error;
  return new RelayError("internal", error instanceof Error ? error.message : String(error), { cause: error });
}
