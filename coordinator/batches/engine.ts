/**
 * Runs batches: checks their input, hands their jobs to the queue, answers their lines, ends them. What has been
 * decided stands in batch.json and in the ledgers before anybody is told, so another process goes on where this one
 * ended.
 */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Registry } from "prom-client";
import { systemTimers, type Timer, type Timers } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import { asStorageFull, type DiskGuard, isDiskFull } from "../files/disk.js";
import type { FileStore } from "../files/store.js";
import type { BatchObject, BatchService, LineRunner, NewBatch } from "./batch.js";
import { BatchStore } from "./batch-store.js";
import { BatchThread } from "./batch-thread.js";
import { Finisher } from "./finish.js";
import type { JobName, JobQueue } from "./jobs.js";
import { Ledgers } from "./ledgers.js";
import { batchWindow, batchWindowBytes, diskRetryMs, maxKeptBatches, maxOpenBatches } from "./limits.js";
import { LiveBatch } from "./live-batch.js";
import { BatchMetrics } from "./metrics.js";
import { endedAtS, newRecord, stampStatus } from "./record.js";
import { type JobPorts, runJob } from "./run-job.js";
import { type BatchEvent, nextState } from "./states.js";
import type { Delivery, DeliveryStore } from "./webhook.js";
import { LineWindow } from "./window.js";

/** How often the times of batches are looked at. */
const sweepMs = 1_000;
/** How often jobs with open lines are put into the queue again, should Redis have forgotten them unnoticed. */
const requeueSweeps = 60;
/** What runs when the process ends settles within this. */
const settleLimitMs = 1_000;
/** Starts of the thread for one input that a fault of ours may cost. */
const maxCheckAttempts = 3;

export interface EngineOptions {
  /** Absolute path of the directory of `--data`. */
  data: string;
  files: FileStore;
  guard: DiskGuard;
  jobs: JobQueue;
  /** The served model. */
  model: string;
  /** The number that Redis gave this process. */
  term: number;
  /** Batches are kept so long after their end. */
  keepMs: number;
  log: Logger;
  registry: Registry;
  /** Told when a batch with a webhook has ended and that is written down. */
  deliver?: (delivery: Delivery) => void;
  timers?: Timers;
}

export class BatchEngine implements BatchService {
  readonly #options: EngineOptions;
  readonly #log: Logger;
  readonly #timers: Timers;
  readonly #store: BatchStore;
  /** In the order in which they were made. */
  readonly #batches = new Map<string, LiveBatch>();
  readonly #thread = new BatchThread();
  readonly #ledgers: Ledgers;
  readonly #finisher: Finisher;
  readonly #window = new LineWindow(batchWindow, batchWindowBytes);
  readonly #metrics: BatchMetrics;
  /** Jobs that run, by name. */
  readonly #running = new Map<string, Promise<void>>();
  readonly #draining = new AbortController();
  #runner: LineRunner | null = null;
  #sweep: Timer | null = null;
  #sweeps = 0;
  #creating = 0;

  /** Knows all batches of the directory once it resolves; `start` goes on with them. */
  static async open(options: EngineOptions): Promise<BatchEngine> {
    const store = await BatchStore.open(options.data, options.log);
    const engine = new BatchEngine(options, store);
    const records = await store.read();
    records.sort((a, b) => a.createdMs - b.createdMs);
    for (const record of records) engine.#batches.set(record.object.id, new LiveBatch(record));
    return engine;
  }

  private constructor(options: EngineOptions, store: BatchStore) {
    this.#options = options;
    this.#log = options.log;
    this.#timers = options.timers ?? systemTimers;
    this.#store = store;
    this.#ledgers = new Ledgers(store, options.term, options.log);
    this.#finisher = new Finisher(store, options.files, this.#thread, this.#log);
    this.#metrics = new BatchMetrics(options.registry, options.model, () =>
      Array.from(this.#batches.values(), ({ object }) => object.status),
    );
  }

  /** Goes on with what earlier processes left, and with what comes. */
  start(runner: LineRunner): void {
    this.#runner = runner;
    this.#sweep = this.#timers.every(sweepMs, () => this.#lookAtTimes());
    const { jobs } = this.#options;
    jobs.onUp(() => this.#requeue());
    const start = async () => {
      await jobs.start((job) => this.#run(job));
      for (const batch of this.#unfinished()) void this.#resume(batch);
      await this.#cleanEnded();
    };
    start().catch((error) => this.#log.error({ err: error }, "jobs of batches cannot be run"));
  }

  /** Begins no more lines; those that are being answered may end. */
  drain(): void {
    this.#draining.abort();
    this.#sweep?.cancel();
  }

  /** What is under way stays for the next process. */
  async close(): Promise<void> {
    this.drain();
    const settled = Promise.all(this.#running.values()).catch(() => undefined);
    await Promise.race([settled, sleep(settleLimitMs, undefined, { ref: false })]);
    await this.#ledgers.close();
    await this.#thread.close();
    await this.#options.jobs.close();
    for (const { counted, record } of this.#unfinished()) {
      // The counts alone are news; the ledgers have them too.
      if (counted) await this.#store.save(record).catch(() => undefined);
    }
  }

  async create(batch: NewBatch, tenant: string): Promise<BatchObject> {
    const { files, guard, model } = this.#options;
    if (this.#draining.signal.aborted) throw new RelayError("draining", "the server is shutting down");
    const input = files.get(batch.inputFileId, tenant);
    const path = files.pathOf(batch.inputFileId, tenant);
    const param = "input_file_id";
    if (input === null || path === null) {
      throw new RelayError("not_found", `${param}: there is no file ${batch.inputFileId.slice(0, 100)}`, {
        param,
      });
    }
    if (input.purpose !== "batch") {
      const message = `${param}: the file's purpose is "${input.purpose}", expected "batch"`;
      throw new RelayError("invalid_value", message, { param });
    }
    const open = this.#unfinished().length + this.#creating;
    if (open >= maxOpenBatches) {
      const message = `${open} batches have not ended, and one more would be above the limit of ${maxOpenBatches}`;
      throw new RelayError("queue_full", message, { retryAfterS: 60 });
    }
    this.#creating++;
    try {
      // The prepared input and the answers are about as long as the input each.
      await guard.requireRoom(2 * input.bytes);
      const id = `batch_${randomBytes(16).toString("hex")}`;
      const createdMs = this.#timers.stampMs();
      const live = new LiveBatch(newRecord(id, batch, { tenant, model, createdMs }));
      await this.#writeNew(live, path);
      this.#batches.set(id, live);
      this.#log.info({ batchId: id, input: input.id, bytes: input.bytes }, "batch created");
      void this.#validate(live);
      return this.#shown(live);
    } finally {
      this.#creating--;
    }
  }

  get(id: string, tenant: string): BatchObject | null {
    const batch = this.#find(id, tenant);
    return batch === null ? null : this.#shown(batch);
  }

  list(
    { after, limit }: { after: string | null; limit: number },
    tenant: string,
  ): { data: BatchObject[]; hasMore: boolean } {
    const own = [...this.#batches.values()].filter(({ record }) => record.tenant === tenant).reverse();
    const begin = after === null ? 0 : own.findIndex(({ id }) => id === after) + 1;
    if (after !== null && begin === 0) {
      const message = `after: there is no batch ${after.slice(0, 100)}`;
      throw new RelayError("not_found", message, { param: "after" });
    }
    const data = own.slice(begin, begin + limit).map((batch) => this.#shown(batch));
    return { data, hasMore: begin + limit < own.length };
  }

  async cancel(id: string, tenant: string): Promise<BatchObject> {
    const batch = this.#find(id, tenant);
    if (batch === null) throw new RelayError("not_found", `there is no batch ${id.slice(0, 100)}`);
    if (batch.ended) {
      throw new RelayError("conflict", `the batch is ${batch.object.status}: it can be cancelled no more`);
    }
    if (this.#apply(batch, "cancel")) {
      batch.stop("the batch was cancelled");
      await this.#saved(batch);
      this.#finishSoon(batch);
    }
    return this.#shown(batch);
  }

  watch(id: string, changed: () => void): () => void {
    return this.#batches.get(id)?.watch(changed) ?? (() => undefined);
  }

  /** Of webhooks: their state is part of the batch's record. */
  get deliveries(): DeliveryStore {
    return {
      load: () => [...this.#batches.values()].flatMap((batch) => deliveryOf(batch) ?? []),
      save: async ({ batchId, status, attempts }) => {
        const batch = this.#batches.get(batchId);
        if (batch === undefined || batch.object.webhook === null) return;
        Object.assign(batch.object.webhook, { status, attempts });
        batch.changed();
        await this.#store.save(batch.record);
      },
    };
  }

  #find(id: string, tenant: string): LiveBatch | null {
    const batch = this.#batches.get(id);
    return batch?.record.tenant === tenant ? batch : null;
  }

  #shown({ object }: LiveBatch): BatchObject {
    return structuredClone(object);
  }

  #unfinished(): LiveBatch[] {
    return [...this.#batches.values()].filter(({ ended }) => !ended);
  }

  async #writeNew({ id, record }: LiveBatch, input: string): Promise<void> {
    try {
      await this.#store.create(id, input);
      await this.#store.save(record);
    } catch (error) {
      await rm(this.#store.paths(id).folder, { recursive: true, force: true }).catch(() => undefined);
      if ((error as NodeJS.ErrnoException).code === "ENOENT") {
        throw new RelayError("not_found", "input_file_id: the file was deleted", { param: "input_file_id" });
      }
      throw asStorageFull(error);
    }
  }

  /** @returns Whether the event changes the batch's state. */
  #apply(batch: LiveBatch, event: BatchEvent): boolean {
    const { record, object } = batch;
    const next = nextState({ status: object.status, end: record.end }, event);
    if (next === null) return false;
    record.end = next.end;
    stampStatus(object, next.status, this.#timers.timeOfDayMs());
    this.#log.info({ batchId: batch.id, status: next.status }, "batch");
    batch.changed();
    return true;
  }

  /** Writes the record down, however long the disk takes none of it. @returns False when this process ends before. */
  async #saved(batch: LiveBatch): Promise<boolean> {
    return this.#untilDone(batch, "its record", () => this.#store.save(batch.record));
  }

  /** Tries until it is done or this process drains: a full disk is cleaned by somebody, at some time. */
  async #untilDone(batch: LiveBatch, what: string, act: () => Promise<unknown>): Promise<boolean> {
    const { signal } = this.#draining;
    for (let attempt = 1; ; attempt++) {
      try {
        await act();
        return true;
      } catch (error) {
        if (signal.aborted) return false;
        const level = attempt === 1 ? "error" : "debug";
        this.#log[level]({ batchId: batch.id, what, err: error }, "a batch waits for its disk");
        await sleep(diskRetryMs, undefined, { signal }).catch(() => undefined);
        if (signal.aborted) return false;
      }
    }
  }

  async #resume(batch: LiveBatch): Promise<void> {
    const { status } = batch.object;
    if (status === "validating") return this.#validate(batch);
    const { total } = batch.object.request_counts;
    const counted = await this.#untilDone(batch, "its ledgers", async () => {
      const { paths } = await this.#store.ledgers(batch.id);
      const result = await this.#thread.run("count", { ledgers: paths, total });
      for (const { file, offset } of result.unsound) {
        this.#log.warn(
          { batchId: batch.id, file, offset },
          "a line of a ledger is torn or damaged: it is run again",
        );
      }
      if (!batch.ended) batch.count(result);
    });
    if (!counted) return;
    if (status === "cancelling" || status === "finalizing") {
      batch.stop("the batch ends");
      this.#finishSoon(batch);
      return;
    }
    const { completed, failed } = batch.object.request_counts;
    this.#log.info({ batchId: batch.id, total, completed, failed }, "a batch of an earlier run goes on");
    this.#goOn(batch);
  }

  /** What processes left that were killed when a batch had just ended. */
  async #cleanEnded(): Promise<void> {
    for (const batch of [...this.#batches.values()]) {
      if (batch.ended) await this.#store.clean(batch.id).catch(() => undefined);
    }
  }

  async #validate(batch: LiveBatch): Promise<void> {
    const { id, object, record } = batch;
    const { source, prepared } = this.#store.paths(id);
    for (let attempt = 1; object.status === "validating"; attempt++) {
      try {
        const task = { source, prepared, endpoint: object.endpoint, model: this.#options.model };
        const result = await this.#thread.run("check", task);
        if (object.status !== "validating") return;
        const { problems, total, jobs } = result;
        if (problems.length > 0) object.errors = { object: "list", data: problems };
        record.jobs = jobs;
        object.request_counts = { total, completed: 0, failed: 0 };
        break;
      } catch (error) {
        if (this.#draining.signal.aborted) return;
        this.#log.error({ batchId: id, attempt, err: error }, "the input of a batch could not be checked");
        if (!isDiskFull(error) && attempt >= maxCheckAttempts) {
          const message = `the input could not be checked: ${(error as Error).message}`;
          object.errors = {
            object: "list",
            data: [{ code: "invalid_value", line: null, message, param: null }],
          };
          break;
        }
        await sleep(diskRetryMs, undefined, { signal: this.#draining.signal }).catch(() => undefined);
      }
    }
    if (object.errors !== null) {
      await this.#end(batch, "invalid");
      return;
    }
    if (!this.#apply(batch, "valid")) return;
    const { total } = object.request_counts;
    batch.states = new Uint8Array(total);
    batch.counted = true;
    if (!(await this.#saved(batch))) return;
    await this.#store.removeSource(id).catch(() => undefined);
    this.#goOn(batch);
  }

  /** A batch in progress: its jobs are queued, or it has no more lines. */
  #goOn(batch: LiveBatch): void {
    this.#endIfDone(batch);
    if (batch.takesLines) void this.#enqueue(batch);
  }

  async #enqueue(batch: LiveBatch): Promise<void> {
    const jobs = batch
      .openJobs()
      .map((index) => ({ batchId: batch.id, index }))
      .filter((job) => !this.#running.has(keyOf(job)));
    try {
      await this.#options.jobs.add(jobs, batch.object.priority);
    } catch (error) {
      // They are put there when the queue answers again.
      this.#log.debug({ batchId: batch.id, err: error }, "jobs of a batch could not be queued yet");
    }
  }

  #requeue(): void {
    for (const batch of this.#unfinished()) if (batch.takesLines) void this.#enqueue(batch);
  }

  /** The queue's side. Delivered twice, a job runs once. */
  #run(job: JobName): Promise<void> {
    const key = keyOf(job);
    const running = this.#running.get(key);
    if (running !== undefined) return running;
    const run = this.#runOnce(job).finally(() => this.#running.delete(key));
    this.#running.set(key, run);
    return run;
  }

  async #runOnce({ batchId, index }: JobName): Promise<void> {
    const batch = this.#batches.get(batchId);
    const job = batch?.record.jobs[index];
    if (batch === undefined || job === undefined || !batch.takesLines || this.#runner === null) return;
    const ports: JobPorts = {
      runner: this.#runner,
      window: this.#window,
      append: (of, record) => this.#ledgers.append(of.id, record),
      answered: (of, record) => {
        this.#metrics.answered(record.ok);
        of.answered(record);
      },
      draining: this.#draining.signal,
      log: this.#log,
    };
    try {
      await runJob(batch, this.#store.paths(batchId).prepared, job, ports);
    } finally {
      this.#endIfDone(batch);
      this.#finishSoon(batch);
    }
  }

  /** Nothing is left to be answered. */
  #endIfDone(batch: LiveBatch): void {
    const isDone = batch.allAnswered || (batch.budgetSpent && batch.underWay === 0);
    if (isDone && batch.counted && this.#apply(batch, "answered")) {
      void this.#saved(batch).then((saved) => saved && this.#finishSoon(batch));
    }
  }

  /** Once nothing is under way for a batch that ends, its files are made. */
  #finishSoon(batch: LiveBatch): void {
    const { record } = batch;
    if (record.end === null || batch.ended || batch.finishing || batch.underWay > 0) return;
    if (this.#draining.signal.aborted) return;
    batch.finishing = true;
    void this.#finish(batch).finally(() => {
      batch.finishing = false;
    });
  }

  async #finish(batch: LiveBatch): Promise<void> {
    await this.#ledgers.end(batch.id);
    const planned = this.#finisher.plan(batch);
    const isMade = await this.#untilDone(batch, "its files", async () => {
      await this.#store.save(batch.record);
      await this.#finisher.makeFiles(batch, planned);
    });
    if (isMade) await this.#end(batch, "merged");
  }

  /** The batch's last change; what it needs no more goes. */
  async #end(batch: LiveBatch, event: BatchEvent): Promise<void> {
    if (!this.#apply(batch, event)) return;
    batch.stop("the batch has ended");
    batch.states = new Uint8Array(0);
    batch.record.jobs = [];
    if (!(await this.#saved(batch))) return;
    const delivery = deliveryOf(batch);
    if (delivery !== null) this.#options.deliver?.(delivery);
    await this.#store.clean(batch.id).catch((error: unknown) => {
      this.#log.warn(
        { batchId: batch.id, err: error },
        "files of a batch that has ended could not be removed",
      );
    });
  }

  #lookAtTimes(): void {
    const nowMs = this.#timers.timeOfDayMs();
    for (const batch of this.#unfinished()) {
      if (nowMs >= batch.record.expiresMs && this.#apply(batch, "expire")) {
        batch.stop("the batch has expired");
        void this.#saved(batch).then((saved) => saved && this.#finishSoon(batch));
      }
    }
    this.#sweeps++;
    if (this.#sweeps % requeueSweeps !== 0) return;
    this.#requeue();
    this.#prune(nowMs);
  }

  /** Batches whose files are gone by age are of no use, and there is a bound to them. */
  #prune(nowMs: number): void {
    let excess = this.#batches.size - maxKeptBatches;
    for (const batch of this.#batches.values()) {
      if (!batch.ended) continue;
      const isOld = nowMs - endedAtS(batch.object) * 1_000 > this.#options.keepMs;
      if (!isOld && excess <= 0) continue;
      excess--;
      this.#batches.delete(batch.id);
      this.#store.remove(batch.id).catch((error: unknown) => {
        this.#log.warn({ batchId: batch.id, err: error }, "an old batch could not be removed from the disk");
      });
    }
  }
}

const keyOf = ({ batchId, index }: JobName): string => `${batchId}-${index}`;

/** What is to be told of a batch's end; null when there is nothing, or it is not there yet. */
function deliveryOf({ object, ended, id }: LiveBatch): Delivery | null {
  const { webhook, status } = object;
  if (webhook === null || webhook.status !== "pending" || !ended) return null;
  const { url, attempts } = webhook;
  return {
    batchId: id,
    url,
    attempts,
    status: "pending",
    end: status as Delivery["end"],
    endedAt: endedAtS(object),
  };
}
