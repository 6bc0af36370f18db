/** The ledgers that this process writes: one for each batch that it has answered a line of. */

import { setTimeout as sleep } from "node:timers/promises";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import type { BatchStore } from "./batch-store.js";
import { LedgerWriter } from "./ledger-writer.js";
import { diskRetryMs } from "./limits.js";

export class Ledgers {
  readonly #store: BatchStore;
  readonly #term: number;
  readonly #log: Logger;
  /** Bounded by the batches that have not ended. */
  readonly #writers = new Map<string, Promise<LedgerWriter>>();
  readonly #closing = new AbortController();

  /** @param term Ledgers of a later process have a higher one. */
  constructor(store: BatchStore, term: number, log: Logger) {
    this.#store = store;
    this.#term = term;
    this.#log = log;
  }

  /** Resolves when the record counts. @throws RelayError draining */
  async append(batchId: string, record: Buffer): Promise<void> {
    let writer = this.#writers.get(batchId);
    if (writer === undefined) {
      writer = this.#open(batchId);
      this.#writers.set(batchId, writer);
      writer.catch(() => this.#writers.delete(batchId));
    }
    await (await writer).append(record);
  }

  /** Nothing more is written for a batch. */
  async end(batchId: string): Promise<void> {
    const writer = this.#writers.get(batchId);
    this.#writers.delete(batchId);
    await writer?.then((open) => open.close()).catch(() => undefined);
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all([...this.#writers.keys()].map((batchId) => this.end(batchId)));
  }

  /** Tries until the disk takes it, or this process ends. */
  async #open(batchId: string): Promise<LedgerWriter> {
    const { signal } = this.#closing;
    for (let attempt = 1; !signal.aborted; attempt++) {
      try {
        // A Redis that has lost its data gives numbers that there were before.
        const { next } = await this.#store.ledgers(batchId);
        const path = this.#store.ledgerPath(batchId, Math.max(this.#term, next));
        return await LedgerWriter.open(path, (error) => this.#tell(batchId, error));
      } catch (error) {
        if (attempt === 1) this.#tell(batchId, error as Error);
        await sleep(diskRetryMs, undefined, { signal }).catch(() => undefined);
      }
    }
    throw new RelayError("draining", "the ledgers of batches are closed");
  }

  #tell(batchId: string, error: Error | null): void {
    if (error === null) this.#log.info({ batchId }, "the disk takes answers of a batch again");
    else this.#log.error({ batchId, err: error }, "the disk takes no answers of a batch: its lines wait");
  }
}
