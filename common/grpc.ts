/**
 * What every gRPC client and server of ours shares: options of channels, the delay between attempts,
 * and how an error of the catalogue crosses a stream's status.
 */
import { type ChannelOptions, Metadata, type ServiceError, setLogger, status } from "@grpc/grpc-js";
import { type ErrorCode, errorKinds, RelayError } from "./errors.js";
import { linkWindowBytes, maxGrpcMessageBytes } from "./limits.js";
import type { Logger } from "./log.js";

/** Half-open connections (a machine that lost its power) are noticed after 50 s; leases notice sooner. */
const keepaliveTimeMs = 30_000;
/** Far above any stall of a peer's event loop: a busy process must never be taken for a dead one. */
const keepaliveTimeoutMs = 20_000;
/** Connections without a call, such as those of probes, are closed: each holds memory. */
const connectionIdleMs = 300_000;

const messageLimits: ChannelOptions = {
  "grpc.max_receive_message_length": maxGrpcMessageBytes,
  "grpc.max_send_message_length": maxGrpcMessageBytes,
};

export const serverOptions: ChannelOptions = {
  ...messageLimits,
  "grpc.max_connection_idle_ms": connectionIdleMs,
};

/** For clients that are not ours: a machine that lost its power must not hold its requests for ever. */
export const publicServerOptions: ChannelOptions = {
  "grpc.max_connection_idle_ms": connectionIdleMs,
  "grpc.keepalive_time_ms": keepaliveTimeMs,
  "grpc.keepalive_timeout_ms": keepaliveTimeoutMs,
};

/**
 * For streams that carry small messages. Each client has a connection of its own, so its attempts do
 * not inherit the waiting time that grpc-js keeps per shared connection (1 s to 120 s).
 */
export const controlChannelOptions: ChannelOptions = {
  ...messageLimits,
  "grpc.use_local_subchannel_pool": 1,
  "grpc.keepalive_time_ms": keepaliveTimeMs,
  "grpc.keepalive_timeout_ms": keepaliveTimeoutMs,
};

/** For the receiving side of a link: only a client can widen its flow-control window in grpc-js. */
export const linkChannelOptions: ChannelOptions = {
  ...controlChannelOptions,
  "grpc-node.flow_control_window": linkWindowBytes,
};

/** What the library itself has to tell becomes lines of our log; by itself it writes bare text beside them. */
export function logGrpcTo(log: Logger): void {
  const write = (...words: unknown[]) => log.warn({ reason: words.map(String).join(" ") }, "gRPC library");
  setLogger({ error: write, info: write, debug: write });
}

/** Delays between attempts: doubling from the first to the last, which then repeats. */
export class Backoff {
  readonly #firstMs: number;
  readonly #lastMs: number;
  #nextMs: number;

  constructor(firstMs: number, lastMs: number) {
    this.#firstMs = firstMs;
    this.#lastMs = lastMs;
    this.#nextMs = firstMs;
  }

  /** The delay before the next attempt, in milliseconds. */
  next(): number {
    const delayMs = this.#nextMs;
    this.#nextMs = Math.min(delayMs * 2, this.#lastMs);
    return delayMs;
  }

  /** After a success: the next failure starts with the first delay again. */
  reset(): void {
    this.#nextMs = this.#firstMs;
  }
}

/** Resolves after the time, or at once when aborted. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    if (signal.aborted) done();
    else signal.addEventListener("abort", done);
  });
}

/** Trailing metadata that names the code of the catalogue; gRPC's own status is too coarse. */
const codeKey = "glm-relay-code";

/** An error as a server ends a call with it: status, message and our code. */
export function toServiceError(error: RelayError): ServiceError {
  const metadata = new Metadata();
  metadata.set(codeKey, error.code);
  const details = headerText(error.message);
  return Object.assign(new Error(details), { code: error.grpcStatus, details, metadata });
}

/** Percent-encoded it must fit into a header beside others: peers take 8 KiB or more of them. */
const maxDetailsCharacters = 500;

/** grpc-js throws, outside any call, for half a surrogate pair; cutting a text can leave one. */
function headerText(message: string): string {
  return message.slice(0, maxDetailsCharacters).replace(/\p{Surrogate}/gu, "\uFFFD");
}

/** An answer without one of our codes: the caller is early and may come again (see invitesRetry). */
export function notYet(message: string): ServiceError {
  return Object.assign(new Error(message), {
    code: status.FAILED_PRECONDITION,
    details: message,
    metadata: new Metadata(),
  });
}

/** How a call ended: a ServiceError, or what a client's stream emits as "status". */
export type CallStatus = Pick<ServiceError, "code" | "details" | "metadata">;

/**
 * The error of a stream that ended and should not have.
 * @param fallback code when the peer sent none of ours, as for a broken connection.
 */
export function fromStatus(ended: CallStatus, fallback: ErrorCode): RelayError {
  const message = ended.code === status.OK ? "the stream was ended" : ended.details;
  return new RelayError(codeOf(ended) ?? fallback, message, { cause: ended });
}

/**
 * True when the peer is absent, shutting down or not that far yet. An answer that carries one of our
 * codes is final: it would be the same the next time.
 */
export function invitesRetry(ended: CallStatus): boolean {
  if (codeOf(ended) !== null) return false;
  return (
    ended.code === status.UNAVAILABLE ||
    ended.code === status.FAILED_PRECONDITION ||
    ended.code === status.CANCELLED
  );
}

function codeOf(ended: CallStatus): ErrorCode | null {
  const code = ended.metadata?.get(codeKey)[0];
  return typeof code === "string" && code in errorKinds ? (code as ErrorCode) : null;
}
