/**
 * Batches as the API sees them, and what goes on with them: what has been decided stands in batch.json and in the
 * ledgers before anybody is told, so another process goes on where this one ended.
 */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Registry } from "prom-client";
import { systemTimers, type Timer, type Timers } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import { asStorageFull, type DiskGuard } from "../files/disk.js";
import type { FileStore } from "../files/store.js";
import type { BatchObject, BatchService, CreationName, LineRunner, NewBatch } from "./batch.js";
import { BatchStore } from "./batch-store.js";
import { BatchThread } from "./batch-thread.js";
import { BatchChanges } from "./changes.js";
import { BatchEnding, deliveryOf } from "./ending.js";
import { Finisher } from "./finish.js";
import type { JobQueue } from "./jobs.js";
import { Ledgers } from "./ledgers.js";
import { maxKeptBatches, maxOpenBatches } from "./limits.js";
import { LiveBatch } from "./live-batch.js";
import { BatchMetrics } from "./metrics.js";
import { NamedCreations } from "./named-creations.js";
import { newRecord } from "./record.js";
import { Running } from "./running.js";
import { Validating } from "./validating.js";
import type { Delivery, DeliveryStore } from "./webhook.js";

/** How often the times of batches are looked at. */
const sweepMs = 1_000;
/** Of them, how many lie between two looks for jobs that Redis has forgotten unnoticed, and for old batches. */
const sweepsBetween = 60;
/** What runs when the process ends settles within this. */
const settleLimitMs = 1_000;

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
  readonly #changes: BatchChanges;
  readonly #ending: BatchEnding;
  readonly #validating: Validating;
  readonly #running: Running;
  readonly #draining = new AbortController();
  #sweep: Timer | null = null;
  readonly #named = new NamedCreations();
  #sweeps = 0;
  #creating = 0;

  /** Knows all batches of the directory once it resolves; `start` goes on with them. */
  static async open(options: EngineOptions): Promise<BatchEngine> {
    const store = await BatchStore.open(options.data, options.log);
    const engine = new BatchEngine(options, store);
    const records = await store.read();
    records.sort((a, b) => a.createdMs - b.createdMs);
    for (const record of records) {
      engine.#batches.set(record.object.id, new LiveBatch(record, options.model));
    }
    return engine;
  }

  private constructor(options: EngineOptions, store: BatchStore) {
    const { files, jobs: queue, term, log, registry, model, timers = systemTimers } = options;
    const draining = this.#draining.signal;
    this.#options = options;
    this.#log = log;
    this.#timers = timers;
    this.#store = store;
    this.#ledgers = new Ledgers(store, term, log);
    const batches = this.#batches;
    const thread = this.#thread;
    const ledgers = this.#ledgers;
    const changes = new BatchChanges(store, timers, log, draining);
    const finisher = new Finisher(store, files, thread, log);
    const deliver = options.deliver ?? (() => undefined);
    const ending = new BatchEnding({ store, changes, ledgers, finisher, deliver, draining, log });
    const statuses = () => Array.from(batches.values(), ({ object }) => object.status);
    const metrics = new BatchMetrics(registry, model, statuses);
    this.#changes = changes;
    this.#ending = ending;
    this.#validating = new Validating({ store, thread, changes, ending, draining, log });
    this.#running = new Running({ batches, queue, store, ledgers, ending, metrics, draining, log });
  }

  /** Goes on with what earlier processes left, and with what comes. */
  start(runner: LineRunner): void {
    this.#sweep = this.#timers.every(sweepMs, () => this.#lookAtTimes());
    const { jobs } = this.#options;
    jobs.onUp(() => this.#running.requeue());
    const start = async () => {
      await jobs.start((job) => this.#running.run(job, runner));
      for (const batch of this.#unfinished()) void this.#resume(batch);
      await this.#ending.cleanEnded(this.#batches.values());
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
    const settled = Promise.all([this.#running.settled(), this.#ending.settled()]);
    await Promise.race([settled, sleep(settleLimitMs, undefined, { ref: false })]);
    await this.#ledgers.close();
    await this.#thread.close();
    await this.#options.jobs.close();
    for (const { counted, ending, record } of this.#unfinished()) {
      // The counts alone are news; the ledgers have them too. One whose end is being written down must not be
      // written down behind it as what it was before.
      if (counted && !ending) await this.#store.save(record).catch(() => undefined);
    }
  }

  async create(batch: NewBatch, tenant: string, name: CreationName | null): Promise<BatchObject> {
    if (this.#draining.signal.aborted) throw new RelayError("draining", "the server is shutting down");
    const create = () => this.#create(batch, tenant, name);
    if (name === null) return create();
    const show = (kept: LiveBatch) => this.#shown(kept);
    return this.#named.once(name, tenant, this.#batches.values(), show, create);
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
    await this.#ending.cancel(batch);
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
        const webhook = { ...batch.object.webhook, status, attempts };
        try {
          await this.#store.save({ ...batch.record, object: { ...batch.object, webhook } });
        } finally {
          // What is shown is written down, so that a process that dies then counts on from there.
          batch.object.webhook = webhook;
          batch.changed();
        }
      },
    };
  }

  async #create(batch: NewBatch, tenant: string, name: CreationName | null): Promise<BatchObject> {
    const { files, guard, model } = this.#options;
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
      const live = new LiveBatch(newRecord(id, batch, { tenant, name, model, createdMs }), model);
      await this.#writeNew(live, path);
      this.#batches.set(id, live);
      this.#log.info({ batchId: id, input: input.id, bytes: input.bytes }, "batch created");
      void this.#begin(live);
      return this.#shown(live);
    } finally {
      this.#creating--;
    }
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

  async #begin(batch: LiveBatch): Promise<void> {
    if (await this.#validating.run(batch)) this.#goOn(batch);
  }

  #goOn(batch: LiveBatch): void {
    const { model } = batch.object;
    if (!batch.isServed) {
      const served = this.#options.model;
      this.#log.warn(
        { batchId: batch.id, model, served },
        "a batch waits: it is for another model than is served",
      );
    }
    this.#running.goOn(batch);
  }

  async #resume(batch: LiveBatch): Promise<void> {
    const { status } = batch.object;
    if (status === "validating") return this.#begin(batch);
    const { total } = batch.object.request_counts;
    const counted = await this.#changes.untilDone(batch, "its ledgers", async () => {
      const { paths } = await this.#store.ledgers(batch.id);
      const result = await this.#thread.run("count", { ledgers: paths, total });
      for (const { file, offset } of result.unsound) {
        const message = "a line of a ledger is torn or damaged: it is run again";
        this.#log.warn({ batchId: batch.id, file, offset }, message);
      }
      if (!batch.ended) batch.count(result);
    });
    if (!counted) return;
    const { completed, failed } = batch.object.request_counts;
    this.#log.info({ batchId: batch.id, total, completed, failed }, "a batch of an earlier run goes on");
    this.#goOn(batch);
    this.#ending.finishSoon(batch);
  }

  #lookAtTimes(): void {
    const nowMs = this.#timers.timeOfDayMs();
    for (const batch of this.#unfinished()) if (nowMs >= batch.record.expiresMs) this.#ending.expire(batch);
    this.#sweeps++;
    if (this.#sweeps % sweepsBetween !== 0) return;
    this.#running.requeue();
    this.#ending.prune(this.#batches, { nowMs, keepMs: this.#options.keepMs, most: maxKeptBatches });
  }
}
