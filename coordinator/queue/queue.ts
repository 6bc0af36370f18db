/**
 * The way of a request from acceptance to the waiting set: the contract that BullMQ on Redis
 * (bullmq-queue.ts) keeps and the service relies on.
 */
import type { RequestId } from "../../common/ids.js";
import type { GenerationRequest, TokenIds } from "../inference.js";

export interface RequestQueue {
  /**
   * Puts a request into the queue; adding an id that is still there changes nothing.
   * @throws RelayError queue_unavailable when the queue does not take it now; it is not queued then.
   */
  add(request: GenerationRequest): Promise<void>;

  /** Takes a request out if nobody has admitted it yet. Never throws: a queue that is away forgets it later. */
  remove(id: RequestId): Promise<void>;

  /**
   * Hands requests to `admit`, at least once each, a class after the other and each in the order of arrival. A
   * request counts as done when its ledger record is written and `admit` has returned; it comes again when
   * `admit` has thrown.
   */
  start(admit: (request: GenerationRequest) => void): Promise<void>;

  readonly ledger: RequestLedger;

  /** True while the queue answers. */
  readonly up: boolean;

  /** Called when `up` changes. */
  onUpChange(listener: (up: boolean) => void): void;

  close(): Promise<void>;
}

/** A request that was admitted and has not ended. */
export interface LedgerEntry {
  request: GenerationRequest;
  /** Of each choice, from its first one on. */
  decided: TokenIds[];
}

/** What a coordinator leaves behind when it dies, and the next one reads. */
export interface RequestLedger {
  /**
   * Everything that earlier processes admitted and did not end, in the order of acceptance. Records that cannot
   * be read are set aside. To be called once, before anything is admitted.
   * @param tokenCount Ids from here on do not exist.
   * @throws RelayError queue_unavailable
   */
  read(tokenCount: number): Promise<LedgerEntry[]>;

  /**
   * Writes a request's record anew. Written behind.
   * @param keepsTokens False: the tokens decided for it are forgotten.
   */
  restate(request: GenerationRequest, keepsTokens: boolean): void;

  /** The next tokens of a choice; those that were read from the ledger come once more. Written behind. */
  decided(id: RequestId, choice: number, tokens: readonly number[]): void;

  /** Forgets a request that ended. Never throws. */
  ended(id: RequestId): void;

  /** Forgets a request that ended without its client, and keeps its answer for a time. Never throws. */
  keepAnswer(request: GenerationRequest, answer: string): void;

  /**
   * @param name A request's id, or what its client called it.
   * @param tenant Whose name it is.
   * @returns null when no answer of such a request is kept.
   * @throws RelayError queue_unavailable
   */
  answer(name: string, tenant: string): Promise<string | null>;
}
