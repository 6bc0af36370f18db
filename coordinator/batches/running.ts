/** Batches in progress: their jobs go into the queue, and come back to be run. */
import type { Logger } from "../../common/log.js";
import { Room } from "../room.js";
import type { LineRunner } from "./batch.js";
import type { BatchStore } from "./batch-store.js";
import type { BatchEnding } from "./ending.js";
import type { JobName, JobQueue } from "./jobs.js";
import type { Ledgers } from "./ledgers.js";
import { batchWindow, batchWindowBytes } from "./limits.js";
import type { LiveBatch } from "./live-batch.js";
import type { BatchMetrics } from "./metrics.js";
import { runJob } from "./run-job.js";

export class Running {
  /** Lines of all batches together that are being answered, and the bytes of their bodies. */
  readonly #window = new Room(batchWindow, batchWindowBytes);
  /** Jobs that run, by name. */
  readonly #jobs = new Map<string, Promise<void>>();

  constructor(
    private readonly parts: {
      batches: ReadonlyMap<string, LiveBatch>;
      queue: JobQueue;
      store: BatchStore;
      ledgers: Ledgers;
      ending: BatchEnding;
      metrics: BatchMetrics;
      draining: AbortSignal;
      log: Logger;
    },
  ) {}

  /** Resolves when no job runs any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#jobs.values());
  }

  /** A batch in progress: its jobs are queued, or it has no more lines. */
  goOn(batch: LiveBatch): void {
    this.parts.ending.endIfDone(batch);
    if (batch.takesLines) void this.#enqueue(batch);
  }

  /** The queue may have forgotten jobs. */
  requeue(): void {
    for (const batch of this.parts.batches.values()) if (batch.takesLines) void this.#enqueue(batch);
  }

  /** The queue's side. Delivered twice, a job runs once. */
  run(job: JobName, runner: LineRunner): Promise<void> {
    const key = keyOf(job);
    const running = this.#jobs.get(key);
    if (running !== undefined) return running;
    const run = this.#runOnce(job, runner).finally(() => this.#jobs.delete(key));
    this.#jobs.set(key, run);
    return run;
  }

  async #enqueue(batch: LiveBatch): Promise<void> {
    const jobs = batch
      .openJobs()
      .map((index) => ({ batchId: batch.id, index }))
      .filter((job) => !this.#jobs.has(keyOf(job)));
    try {
      await this.parts.queue.add(jobs, batch.object.priority);
    } catch (error) {
      // They are put there when the queue answers again.
      this.parts.log.debug({ batchId: batch.id, err: error }, "jobs of a batch could not be queued yet");
    }
  }

  async #runOnce({ batchId, index }: JobName, runner: LineRunner): Promise<void> {
    const { batches, store, ledgers, ending, metrics, draining, log } = this.parts;
    const batch = batches.get(batchId);
    const job = batch?.record.jobs[index];
    if (batch === undefined || job === undefined || !batch.takesLines) return;
    try {
      await runJob(batch, store.paths(batchId).prepared, job, {
        runner,
        window: this.#window,
        append: (of, record) => ledgers.append(of.id, record),
        answered: (of, record) => {
          metrics.answered(record.ok);
          of.answered(record);
        },
        draining,
        log,
      });
    } finally {
      ending.endIfDone(batch);
      ending.finishSoon(batch);
    }
  }
}

const keyOf = ({ batchId, index }: JobName): string => `${batchId}-${index}`;
