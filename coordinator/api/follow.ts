/**
 * The events of a request that runs, for whoever writes its answer: counted, and broken off the moment
 * nobody waits for it any more. The same over HTTP and gRPC.
 */
import { RelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import type { RequestEvent, RequestHandle } from "../inference.js";
import type { AnswerEvent } from "./answer.js";
import type { CallMetrics } from "./call-metrics.js";

/** Whether somebody still waits for an answer; at most one listener, the event being waited for. */
export class Presence {
  #end: RelayError | null = null;
  #onLeave: (() => void) | undefined;

  /** Why nobody waits any more; null while somebody does. */
  get end(): RelayError | null {
    return this.#end;
  }

  set onLeave(listener: (() => void) | undefined) {
    this.#onLeave = listener;
  }

  /** The first reason counts. */
  leave(reason: RelayError): void {
    if (this.#end !== null) return;
    this.#end = reason;
    this.#onLeave?.();
  }

  /** @throws RelayError why nobody waits any more */
  check(): void {
    if (this.#end !== null) throw this.#end;
  }
}

/** Those who wait for the requests that run, by the id of the answer; as many as the service has accepted. */
export class RunningCalls {
  readonly #presences = new Map<RequestId, Presence>();

  /** @returns Takes it out again. */
  add(id: RequestId, presence: Presence): () => void {
    this.#presences.set(id, presence);
    return () => this.#presences.delete(id);
  }

  /** @returns False when no such request runs. */
  cancel(id: RequestId): boolean {
    const presence = this.#presences.get(id);
    presence?.leave(cancelledByRequest());
    return presence !== undefined;
  }
}

export function cancelledByRequest(): RelayError {
  return new RelayError("cancelled", "the request was cancelled");
}

export function clientLeft(): RelayError {
  return new RelayError("cancelled", "the client left before its answer was complete");
}

/**
 * The request's events until every choice is finished.
 * @throws RelayError the request's own error, or the client's reason as soon as it has left.
 */
export async function* follow(
  handle: RequestHandle,
  choiceCount: number,
  client: Presence,
  metrics: Pick<CallMetrics, "note" | "end">,
): AsyncGenerator<AnswerEvent, void> {
  const events = handle.events[Symbol.asyncIterator]();
  let unfinished = choiceCount;
  let ended = false;
  const cancel = () => {
    if (ended) return;
    ended = true;
    handle.cancel();
  };
  try {
    while (unfinished > 0) {
      const { done, value: event } = await nextOrLeave(events, client, cancel);
      if (done) throw new RelayError("internal", "the request ended without an answer");
      if (event.type === "error") {
        ended = true;
        throw event.error;
      }
      metrics.note(event);
      if (event.type === "started") continue;
      if (event.type === "finish") unfinished--;
      yield event;
    }
    metrics.end();
  } catch (cause) {
    const isUnwanted =
      cause === client.end || (cause instanceof RelayError && cause.code === "deadline_exceeded");
    metrics.end(isUnwanted ? "abort" : "error");
    throw cause;
  } finally {
    client.onLeave = undefined;
    // Reached early when writing the answer failed: nothing may go on computing what nobody will read.
    if (unfinished > 0) cancel();
    metrics.end(client.end === null ? "error" : "abort");
  }
}

/**
 * The next event, or a rejection the moment the client leaves. Not Promise.race against one long promise:
 * every race would leave a reaction behind on it for as long as the request lives.
 */
function nextOrLeave(
  events: AsyncIterator<RequestEvent>,
  client: Presence,
  cancel: () => void,
): Promise<IteratorResult<RequestEvent, undefined>> {
  return new Promise((resolve, reject) => {
    const leave = () => {
      cancel();
      reject(client.end);
    };
    if (client.end !== null) {
      leave();
      return;
    }
    client.onLeave = leave;
    events.next().then(resolve, reject);
  });
}
