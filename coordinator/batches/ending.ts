/** How batches end: their last line, their files, their last change, and that they are forgotten. */
import type { Logger } from "../../common/log.js";
import type { BatchStore } from "./batch-store.js";
import type { BatchChanges } from "./changes.js";
import type { Finisher } from "./finish.js";
import type { Ledgers } from "./ledgers.js";
import type { LiveBatch } from "./live-batch.js";
import { endedAtS } from "./record.js";
import type { BatchEvent } from "./states.js";
import type { Delivery } from "./webhook.js";

export interface EndingParts {
  store: BatchStore;
  changes: BatchChanges;
  ledgers: Ledgers;
  finisher: Finisher;
  /** Told when a batch with a webhook has ended and that is written down. */
  deliver: (delivery: Delivery) => void;
  /** Fires when this process ends. */
  draining: AbortSignal;
  log: Logger;
}

export class BatchEnding {
  readonly #underWay = new Set<Promise<void>>();

  constructor(private readonly parts: EndingParts) {}

  /** Resolves when no batch's files are being made any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#underWay);
  }

  /** Nothing is left to be answered. */
  endIfDone(batch: LiveBatch): void {
    const isDone = batch.allAnswered || (batch.budget.spent && batch.underWay === 0);
    if (isDone && batch.counted) this.#begin(batch, "answered");
  }

  /** Its window is over. */
  expire(batch: LiveBatch): void {
    if (this.#begin(batch, "expire")) batch.stop("the batch has expired");
  }

  /** @returns Whether it was not ending before; that is written down then. */
  async cancel(batch: LiveBatch): Promise<boolean> {
    const { changes } = this.parts;
    if (!changes.apply(batch, "cancel")) return false;
    batch.stop("the batch was cancelled");
    await changes.saved(batch);
    this.finishSoon(batch);
    return true;
  }

  /** Once nothing is under way for a batch that ends, its files are made. */
  finishSoon(batch: LiveBatch): void {
    if (batch.record.end === null || batch.ended || batch.finishing || batch.underWay > 0) return;
    if (this.parts.draining.aborted) return;
    batch.finishing = true;
    const finish = this.#finish(batch).finally(() => {
      batch.finishing = false;
      this.#underWay.delete(finish);
    });
    this.#underWay.add(finish);
  }

  /** The batch's last change; what it needs no more goes. */
  async end(batch: LiveBatch, event: BatchEvent): Promise<void> {
    const { changes, store, deliver } = this.parts;
    if (!(await changes.end(batch, event))) return;
    const delivery = deliveryOf(batch);
    if (delivery !== null) deliver(delivery);
    await this.#tidy("files of a batch that has ended", batch, () => store.clean(batch.id));
  }

  /** What processes left that were killed when a batch had just ended. */
  async cleanEnded(batches: Iterable<LiveBatch>): Promise<void> {
    const { store } = this.parts;
    for (const batch of [...batches]) {
      if (batch.ended) await this.#tidy("files of an earlier batch", batch, () => store.clean(batch.id));
    }
  }

  /**
   * Forgets batches that ended long ago, and the oldest of too many; none that still has something to tell.
   * @param batches In the order in which they were made.
   */
  prune(batches: Map<string, LiveBatch>, bounds: { nowMs: number; keepMs: number; most: number }): void {
    let excess = batches.size - bounds.most;
    for (const batch of [...batches.values()]) {
      if (!batch.ended || deliveryOf(batch) !== null) continue;
      const isOld = bounds.nowMs - endedAtS(batch.object) * 1_000 > bounds.keepMs;
      if (!isOld && excess <= 0) continue;
      excess--;
      batches.delete(batch.id);
      batch.changed();
      void this.#tidy("an old batch", batch, () => this.parts.store.remove(batch.id));
    }
  }

  #begin(batch: LiveBatch, event: BatchEvent): boolean {
    const { changes } = this.parts;
    if (!changes.apply(batch, event)) return false;
    void changes.saved(batch).then((saved) => saved && this.finishSoon(batch));
    return true;
  }

  async #finish(batch: LiveBatch): Promise<void> {
    const { changes, ledgers, finisher, store } = this.parts;
    await ledgers.end(batch.id);
    const planned = finisher.plan(batch);
    const isMade = await changes.untilDone(batch, "its files", async () => {
      await store.save(batch.record);
      await finisher.makeFiles(batch, planned);
    });
    if (isMade) await this.end(batch, "merged");
  }

  /** What is left behind is swept at the next start. */
  async #tidy(what: string, { id }: LiveBatch, act: () => Promise<void>): Promise<void> {
    try {
      await act();
    } catch (error) {
      this.parts.log.warn({ batchId: id, what, err: error }, "what is not needed could not be removed");
    }
  }
}

/** What is to be told of a batch's end; null when there is nothing, or it is not there yet. */
export function deliveryOf({ object, ended, id }: LiveBatch): Delivery | null {
  const { webhook, status } = object;
  if (webhook === null || webhook.status !== "pending" || !ended) return null;
  const { url, attempts } = webhook;
  const end = status as Delivery["end"];
  return { batchId: id, url, attempts, status: "pending", end, endedAt: endedAtS(object) };
}
