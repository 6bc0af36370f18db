/** An engine with real folders and threads, before lines and jobs of the test's own. */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Registry } from "prom-client";
import { systemTimers } from "../../../../common/clock.js";
import { RelayError } from "../../../../common/errors.js";
import {
  type BatchObject,
  isFinal,
  type LineAnswer,
  type LineRunner,
  type NewBatch,
} from "../../../../coordinator/batches/batch.js";
import { BatchEngine, type EngineOptions } from "../../../../coordinator/batches/engine.js";
import type { JobName, JobQueue } from "../../../../coordinator/batches/jobs.js";
import type { Delivery } from "../../../../coordinator/batches/webhook.js";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import { FileStore } from "../../../../coordinator/files/store.js";
import { LogLines } from "../../../support/log-lines.js";
import { endpoint, model, requestLine } from "./support.js";

export const tenant = "default";
const usage = { promptTokens: 3, cachedTokens: 1, completionTokens: 2, reasoningTokens: 0 };

/** Jobs in memory: handed on one after the other, and lost when somebody says so. */
export class FakeJobs implements JobQueue {
  waiting: { job: JobName; priority: number }[] = [];
  up = true;
  /** How often each is handed on. */
  copies = 1;
  #run: ((job: JobName) => Promise<void>) | null = null;
  #onUp: () => void = () => undefined;

  async add(jobs: readonly JobName[], priority: number): Promise<void> {
    if (!this.up) throw new RelayError("queue_unavailable", "away");
    const isThere = (job: JobName) =>
      this.waiting.some(({ job: { batchId, index } }) => batchId === job.batchId && index === job.index);
    for (const job of jobs) if (!isThere(job)) this.waiting.push({ job, priority });
    this.waiting.sort((a, b) => a.priority - b.priority);
    setImmediate(() => this.handOn());
  }

  async start(run: (job: JobName) => Promise<void>): Promise<void> {
    this.#run = run;
  }

  onUp(listener: () => void): void {
    this.#onUp = listener;
  }

  async close(): Promise<void> {
    this.#run = null;
  }

  handOn(): void {
    for (let next = this.waiting.shift(); next !== undefined; next = this.waiting.shift()) {
      for (let copy = 0; copy < this.copies; copy++) void this.#run?.(next.job).catch(() => undefined);
    }
  }

  /** As Redis is when it comes back without its data. */
  comeBack(): void {
    this.up = true;
    this.#onUp();
  }
}

/** Says what it was asked. */
export class FakeRunner implements LineRunner {
  readonly contextLength = 64;
  readonly asked: string[] = [];
  act: (customId: string, signal: AbortSignal) => Promise<Partial<LineAnswer> | undefined> = async () =>
    undefined;

  async run(
    _: string,
    body: Uint8Array,
    line: Parameters<LineRunner["run"]>[2],
    signal: AbortSignal,
  ): Promise<LineAnswer> {
    this.asked.push(line.customId);
    const given = await this.act(line.customId, signal);
    return { status: 200, requestId: line.requestId, body: Buffer.from(body).toString(), usage, ...given };
  }
}

export interface Setup extends Partial<EngineOptions> {
  runner?: FakeRunner;
  jobs?: FakeJobs;
}

export class World {
  readonly log = new LogLines();
  readonly delivered: Delivery[] = [];
  readonly jobs: FakeJobs;
  readonly runner: FakeRunner;

  private constructor(
    readonly engine: BatchEngine,
    readonly files: FileStore,
    setup: Setup,
  ) {
    this.jobs = setup.jobs!;
    this.runner = setup.runner!;
  }

  /** @param folder Its data directory. */
  static async start(folder: string, setup: Setup = {}): Promise<World> {
    const { log } = new LogLines();
    const guard = new DiskGuard(folder, 0, systemTimers);
    const files =
      setup.files ?? (await FileStore.open(folder, { guard, timers: systemTimers, log, filesBytes: null }));
    const { runner = new FakeRunner(), jobs = new FakeJobs(), ...others } = setup;
    const delivered: Delivery[] = [];
    const lines = new LogLines();
    const engine = await BatchEngine.open({
      ...{ data: folder, files, guard, jobs, model, term: 1, keepMs: 1e9 },
      ...{ log: lines.log, registry: new Registry(), deliver: (each: Delivery) => delivered.push(each) },
      ...others,
    });
    const world = new World(engine, files, { runner, jobs });
    Object.assign(world, { log: lines, delivered });
    engine.start(runner);
    return world;
  }

  async create(lines: string[] | string, fields: Partial<NewBatch> = {}): Promise<BatchObject> {
    const text = typeof lines === "string" ? lines : lines.map((id) => `${requestLine(id)}\n`).join("");
    const content = async function* () {
      yield Buffer.from(text);
    };
    const about = { filename: "in.jsonl", purpose: "batch", tenant, expiresAfterS: null } as const;
    const file = await this.files.create(content(), about);
    return this.engine.create({ ...newBatch, inputFileId: file.id, ...fields }, tenant, null);
  }

  get(id: string): BatchObject {
    return this.engine.get(id, tenant)!;
  }

  async until(id: string, check: (batch: BatchObject) => boolean, limitMs = 20_000): Promise<BatchObject> {
    for (const deadline = performance.now() + limitMs; ; await sleep(5)) {
      const batch = this.get(id);
      if (check(batch)) return batch;
      if (performance.now() > deadline)
        throw new Error(`${JSON.stringify(batch)}\n${this.log.text.slice(-3_000)}`);
    }
  }

  ended(id: string, limitMs?: number): Promise<BatchObject> {
    return this.until(id, ({ status }) => isFinal(status), limitMs);
  }

  lines(fileId: string | null): any[] {
    if (fileId === null) return [];
    const text = readFileSync(this.files.pathOf(fileId, tenant)!, "utf8");
    return text
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line));
  }
}

export const newBatch: NewBatch = {
  inputFileId: "",
  endpoint,
  completionWindow: "24h",
  windowS: 86_400,
  metadata: { who: "me" },
  outputExpiresAfterS: null,
  priority: 0,
  tokenBudget: null,
  webhookUrl: null,
};
export const ids = (count: number) => Array.from({ length: count }, (_, i) => `line ${i}`);
export const inProgress = ({ status }: BatchObject) => status === "in_progress";
