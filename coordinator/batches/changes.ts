/** Changes of batches' states: made here alone, and written down before anybody builds on them. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Timers } from "../../common/clock.js";
import type { Logger } from "../../common/log.js";
import type { BatchStore } from "./batch-store.js";
import { diskRetryMs } from "./limits.js";
import type { LiveBatch } from "./live-batch.js";
import { stampStatus } from "./record.js";
import { type BatchEvent, nextState } from "./states.js";

export class BatchChanges {
  readonly #store: BatchStore;
  readonly #timers: Pick<Timers, "timeOfDayMs">;
  readonly #log: Logger;
  /** Fires when this process ends. */
  readonly #draining: AbortSignal;

  constructor(store: BatchStore, timers: Pick<Timers, "timeOfDayMs">, log: Logger, draining: AbortSignal) {
    this.#store = store;
    this.#timers = timers;
    this.#log = log;
    this.#draining = draining;
  }

  /** @returns Whether the event changes the batch's state; it is still to be written down. */
  apply(batch: LiveBatch, event: BatchEvent): boolean {
    const { record, object } = batch;
    const next = batch.ending ? null : nextState({ status: object.status, end: record.end }, event);
    if (next === null) return false;
    record.end = next.end;
    stampStatus(object, next.status, this.#timers.timeOfDayMs());
    this.#log.info({ batchId: batch.id, status: next.status }, "batch");
    batch.changed();
    return true;
  }

  /**
   * The batch's last change, of which nobody hears before it is written down.
   * @returns False when the event changes nothing, or this process ends before.
   */
  async end(batch: LiveBatch, event: BatchEvent): Promise<boolean> {
    const { record } = batch;
    const next = batch.ending ? null : nextState({ status: batch.object.status, end: record.end }, event);
    if (next === null) return false;
    batch.ending = true;
    const object = structuredClone(batch.object);
    stampStatus(object, next.status, this.#timers.timeOfDayMs());
    const ended = { ...record, object, end: next.end, jobs: [] };
    if (!(await this.untilDone(batch, "its record", () => this.#store.save(ended)))) return false;
    Object.assign(batch.object, object);
    record.end = ended.end;
    record.jobs = ended.jobs;
    batch.stop("the batch has ended");
    batch.states = new Uint8Array(0);
    this.#log.info({ batchId: batch.id, status: next.status }, "batch");
    batch.changed();
    return true;
  }

  /** Writes the record down, however long the disk does not take it. @returns False when this process ends before. */
  saved(batch: LiveBatch): Promise<boolean> {
    return this.untilDone(batch, "its record", () => this.#store.save(batch.record));
  }

  /** Tries until it is done or this process ends: a full disk is cleaned by somebody, at some time. */
  async untilDone(batch: LiveBatch, what: string, act: () => Promise<unknown>): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      try {
        await act();
        return true;
      } catch (error) {
        if (this.#draining.aborted) return false;
        const level = attempt === 1 ? "error" : "debug";
        this.#log[level]({ batchId: batch.id, what, err: error }, "a batch waits for its disk");
        await this.pause();
        if (this.#draining.aborted) return false;
      }
    }
  }

  /** Until the disk may take what it did not take; shorter when this process ends. */
  async pause(): Promise<void> {
    await sleep(diskRetryMs, undefined, { signal: this.#draining }).catch(() => undefined);
  }
}
