/**
 * The way of a request from acceptance to the waiting set: the contract that BullMQ on Redis
 * (bullmq-queue.ts) keeps and the service relies on.
 */
import type { RequestId } from "../../common/ids.js";
import type { GenerationRequest } from "../inference.js";

export interface RequestQueue {
  /**
   * Puts a request into the queue; adding an id that is still there changes nothing.
   * @throws RelayError queue_unavailable when the queue does not take it now; it is not queued then.
   */
  add(request: GenerationRequest): Promise<void>;

  /** Takes a request out if nobody has admitted it yet. Never throws: a queue that is away forgets it later. */
  remove(id: RequestId): Promise<void>;

  /**
   * Hands requests to `admit`, at least once each, a class after the other and in the order of arrival. A request counts as
   * done when its ledger record is written and `admit` has returned.
   */
  start(admit: (request: GenerationRequest) => void): Promise<void>;

  /** Forgets the ledger record of a request that ended. Never throws. */
  ended(id: RequestId): void;

  /** True while the queue answers. */
  readonly up: boolean;

  /** Called when `up` changes. */
  onUpChange(listener: (up: boolean) => void): void;

  close(): Promise<void>;
}
