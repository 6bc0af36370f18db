/** Requests that an earlier process accepted and this one finishes: which ones they are, and who follows them. */
import type { Timers } from "../common/clock.js";
import { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";
import type { GenerationRequest, RequestHandle } from "./inference.js";
import type { LedgerEntry } from "./queue/queue.js";

/** A request that so many processes in a row have computed, and got no further, may be what ends them. */
const maxRecoveries = 5;

/** Following one takes some microseconds, and there may be thousands. */
const toldPerTurn = 64;

export type OrphanListener = (request: GenerationRequest, handle: RequestHandle) => void;

export class Orphans {
  /** The number that Redis gave this process. */
  readonly #term: number;
  readonly #soon: Timers["soon"];
  /**
   * BullMQ may hand a request on once more, long after it has ended here. Bounded by what the ledger and the
   * queue held at the start.
   */
  readonly #takenUp = new Set<RequestId>();
  /** Those that nobody follows yet. */
  #unclaimed: { request: GenerationRequest; handle: RequestHandle }[] = [];
  #listener: OrphanListener | null = null;

  constructor(term: number, soon: Timers["soon"]) {
    this.#term = term;
    this.#soon = soon;
  }

  /**
   * Whether a request that nobody waits for is to be finished all the same: its client is gone with the process
   * that accepted it, and its answer can be written without either. Else the client has left.
   * @throws RelayError stale_epoch for a request of a process that began after this one: that one leads.
   */
  accepts({ id, accepted, answer }: GenerationRequest): boolean {
    if (accepted === undefined) return false;
    if (accepted.term > this.#term) {
      const message = `a coordinator of term ${accepted.term} leads, this one has term ${this.#term}`;
      throw new RelayError("stale_epoch", message);
    }
    return accepted.term < this.#term && answer !== undefined && !this.#takenUp.has(id);
  }

  add(request: GenerationRequest, handle: RequestHandle): void {
    this.#takenUp.add(request.id);
    if (this.#listener === null || this.#unclaimed.length > 0) this.#unclaimed.push({ request, handle });
    else this.#listener(request, handle);
  }

  /** Those that came before are told first, some per turn of the event loop. */
  listen(listener: OrphanListener): void {
    this.#listener = listener;
    for (const { request, handle } of this.#unclaimed.splice(0, toldPerTurn)) listener(request, handle);
    if (this.#unclaimed.length > 0) this.#soon(() => this.listen(listener));
  }
}

/** Whether a name is the request's id, or what a client of the tenant called it. */
export function isCalled(request: GenerationRequest, name: string, tenant: string): boolean {
  return request.id === name || (request.logId === name && request.tenant === tenant);
}

/** Why a request must not be taken up once more; null when it may. */
export function poisonOf({ accepted }: GenerationRequest): RelayError | null {
  if (accepted === undefined || accepted.recoveries < maxRecoveries) return null;
  const message = `${maxRecoveries} coordinators in a row ended while they computed this request`;
  return new RelayError("request_poisoned", message);
}

/** The request as it is taken up: processes that have decided tokens of it did not end because of it. */
export function withProgress({ request, decided }: LedgerEntry): GenerationRequest {
  const accepted = request.accepted!;
  const tokens = decided.reduce((sum, { length }) => sum + length, 0);
  const recoveries = tokens > accepted.tokens ? 0 : accepted.recoveries;
  return { ...request, accepted: { ...accepted, recoveries, tokens } };
}

/** As it is to be found should this process end: it has begun to compute the request. */
export function begun(request: GenerationRequest): GenerationRequest {
  const accepted = request.accepted!;
  return { ...request, accepted: { ...accepted, recoveries: accepted.recoveries + 1 } };
}

/**
 * Whether a request can go on: tokens hold only under the numerics that decided them, and a prompt only for the
 * model that it was made for.
 * @returns `anew`: the weights are the same, but they are computed with in another way.
 */
export function continuation(before: string, now: string): "goOn" | "anew" | "never" {
  if (before === now) return "goOn";
  return weightsOf(before) === weightsOf(now) ? "anew" : "never";
}

/** The fingerprint, with which a numerics id ends. */
function weightsOf(numericsId: string): string {
  return numericsId.slice(numericsId.lastIndexOf("/") + 1);
}
