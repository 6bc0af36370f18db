/** One call of the public service, from its arrival to its end: its id, its figures and its log line. */
import { Metadata, type ServerUnaryCall, type ServerWritableStream, status } from "@grpc/grpc-js";
import type { RelayError } from "../../../common/errors.js";
import { inferenceName } from "../../../proto/public.js";
import type { ApiContext } from "../context.js";
import { logFault, toClientError } from "../errors.js";
import { type Answered, acceptRequestId, outcomeFields } from "../request-log.js";

export type Method = "Generate" | "Cancel" | "ListModels";
export type IncomingCall = ServerUnaryCall<Uint8Array, unknown> | ServerWritableStream<Uint8Array, unknown>;

const requestIdKey = "x-request-id";

export class CallRecord {
  readonly arrivedMs = performance.now();
  readonly requestId: string;
  answered: Answered | null = null;
  readonly #context: ApiContext;
  readonly #method: Method;

  /** Sends the call's id out. */
  constructor(context: ApiContext, method: Method, call: IncomingCall) {
    this.#context = context;
    this.#method = method;
    this.requestId = acceptRequestId(call.metadata.get(requestIdKey)[0]);
    const metadata = new Metadata();
    metadata.set(requestIdKey, this.requestId);
    call.sendMetadata(metadata);
  }

  /**
   * Counts and logs the call, once.
   * @param cause What was thrown; left out when the call was answered.
   * @returns The error that the client is told; null when there is none.
   */
  end(cause?: unknown): RelayError | null {
    const error = cause === undefined ? null : toClientError(cause, this.requestId);
    const { metrics, log } = this.#context;
    if (error !== null) logFault(log, error, this.requestId);
    const ms = performance.now() - this.arrivedMs;
    const grpcStatus = status[error?.grpcStatus ?? status.OK];
    metrics.observeGrpc(this.#method, grpcStatus, ms / 1_000);
    const { requestId } = this;
    const route = `/${inferenceName}/${this.#method}`;
    log.info(
      {
        ...{ requestId, route, grpcStatus, ms: Math.round(ms) },
        ...outcomeFields(this.answered, error?.code ?? null),
      },
      "response",
    );
    return error;
  }
}
