import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Registry } from "prom-client";
import { afterEach, describe, expect, it } from "vitest";
import { systemTimers, type Timers } from "../../../../common/clock.js";
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
import { maxOpenBatches, maxRecordBytes } from "../../../../coordinator/batches/limits.js";
import { lineId } from "../../../../coordinator/batches/line-id.js";
import type { Delivery } from "../../../../coordinator/batches/webhook.js";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import { FileStore } from "../../../../coordinator/files/store.js";
import { seededRandom } from "../../../native/support.js";
import { LogLines } from "../../../support/log-lines.js";
import { endpoint, model, requestLine, testFolder } from "./support.js";

const folder = testFolder();
const tenant = "default";
const usage = { promptTokens: 3, cachedTokens: 1, completionTokens: 2, reasoningTokens: 0 };

/** Jobs in memory: handed on one after the other, and lost when somebody says so. */
class FakeJobs implements JobQueue {
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
class FakeRunner implements LineRunner {
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

interface Setup extends Partial<EngineOptions> {
  runner?: FakeRunner;
  jobs?: FakeJobs;
}

class World {
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

  static async start(setup: Setup = {}): Promise<World> {
    const { log } = new LogLines();
    const guard = new DiskGuard(folder(), 0, systemTimers);
    const files =
      setup.files ?? (await FileStore.open(folder(), { guard, timers: systemTimers, log, filesBytes: null }));
    const { runner = new FakeRunner(), jobs = new FakeJobs(), ...others } = setup;
    const delivered: Delivery[] = [];
    const lines = new LogLines();
    const engine = await BatchEngine.open({
      ...{ data: folder(), files, guard, jobs, model, term: 1, keepMs: 1e9 },
      ...{ log: lines.log, registry: new Registry(), deliver: (each: Delivery) => delivered.push(each) },
      ...others,
    });
    const world = new World(engine, files, { runner, jobs });
    Object.assign(world, { log: lines, delivered });
    worlds.push(world);
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
    return this.engine.create({ ...newBatch, inputFileId: file.id, ...fields }, tenant);
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

const worlds: World[] = [];
afterEach(async () => {
  for (const { engine } of worlds.splice(0)) await engine.close();
});

const newBatch: NewBatch = {
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
const ids = (count: number) => Array.from({ length: count }, (_, i) => `line ${i}`);
const inProgress = ({ status }: BatchObject) => status === "in_progress";

describe("a batch", () => {
  it("is answered line by line; whoever watches hears of it, and its webhook of its end", async () => {
    const world = await World.start();
    world.runner.act = async (id) => (id === "line 3" ? { status: 400, body: '{"error":{}}' } : undefined);
    const batch = await world.create(ids(100), { webhookUrl: "http://hook/" });
    expect(batch).toMatchObject({ status: "validating", model, metadata: { who: "me" }, errors: null });
    let changes = 0;
    world.engine.watch(batch.id, () => changes++);
    const ended = await world.ended(batch.id);
    expect(ended).toMatchObject({
      status: "completed",
      request_counts: { total: 100, completed: 99, failed: 1 },
      usage: {
        input_tokens: 300,
        output_tokens: 200,
        total_tokens: 500,
        input_tokens_details: { cached_tokens: 100 },
      },
    });
    expect(changes).toBeGreaterThan(100);
    const output = world.lines(ended.output_file_id);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(ids(100).filter((id) => id !== "line 3"));
    expect(output[0]).toEqual({
      id: lineId(batch.id, 1),
      custom_id: "line 0",
      response: { status_code: 200, request_id: lineId(batch.id, 1), body: { prompt: [1] } },
      error: null,
    });
    expect(world.lines(ended.error_file_id).map(({ custom_id }) => custom_id)).toEqual(["line 3"]);
    expect(world.delivered).toEqual([
      {
        batchId: batch.id,
        url: "http://hook/",
        attempts: 0,
        status: "pending",
        end: "completed",
        endedAt: ended.completed_at,
      },
    ]);
    await world.engine.deliveries.save({ ...world.delivered[0]!, status: "delivered", attempts: 2 });
    expect(world.get(batch.id).webhook).toEqual({ url: "http://hook/", status: "delivered", attempts: 2 });
    expect(world.engine.get(batch.id, "other")).toBeNull();
    expect(world.files.get(ended.output_file_id!, "other")).toBeNull();
  });

  it("is refused without a file of its tenant for batches, or when too many have not ended", async () => {
    const world = await World.start();
    const create = (fields: Partial<NewBatch>) => world.engine.create({ ...newBatch, ...fields }, tenant);
    await expect(create({ inputFileId: "file-x" })).rejects.toMatchObject({
      code: "not_found",
      param: "input_file_id",
    });
    const done = await world.ended((await world.create(ids(2))).id);
    await expect(create({ inputFileId: done.output_file_id! })).rejects.toMatchObject({
      code: "invalid_value",
    });
    world.runner.act = (_, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const open: string[] = [];
    for (let i = 0; i < maxOpenBatches; i++) open.push((await world.create(["a"])).id);
    await expect(world.create(["a"])).rejects.toMatchObject({ code: "queue_full" });
    await world.engine.cancel(open[7]!, tenant);
    await world.ended(open[7]!);
    open.push((await world.create(["a"])).id);
    const listed: string[] = [];
    for (let after: string | null = null; ; after = listed.at(-1)!) {
      const { data, hasMore } = world.engine.list({ after, limit: 100 }, tenant);
      listed.push(...data.map(({ id }) => id));
      if (!hasMore) break;
    }
    expect(listed).toEqual([done.id, ...open].reverse());
    expect(world.engine.list({ after: null, limit: 10 }, "other")).toEqual({ data: [], hasMore: false });
    expect(() => world.engine.list({ after: "batch_x", limit: 10 }, tenant)).toThrow(/after/);
    await Promise.all(
      open.map(
        (id) => world.engine.get(id, tenant)?.status !== "cancelled" && world.engine.cancel(id, tenant),
      ),
    );
  }, 60_000);

  it("is refused when the disk has no room for it, and nothing of it stays", async () => {
    const guard = new DiskGuard(folder(), 1_000, systemTimers, async () => 1_100);
    const world = await World.start({ guard });
    await expect(world.create(ids(10))).rejects.toMatchObject({ code: "storage_full", httpStatus: 507 });
    expect(readdirSync(join(folder(), "batches"))).toEqual([]);
  });

  it("tries lines again that can be answered later, and takes other errors for answers", async () => {
    const world = await World.start();
    const fails = new Map<string, number>();
    world.runner.act = async (id) => {
      const count = (fails.get(id) ?? 0) + 1;
      fails.set(id, count);
      if (count <= 2) throw new RelayError(count === 1 ? "worker_lost" : "queue_full", "later");
      return undefined;
    };
    const ended = await world.ended((await world.create(ids(5))).id);
    expect(ended.request_counts).toEqual({ total: 5, completed: 5, failed: 0 });
    expect([...fails.values()]).toEqual([3, 3, 3, 3, 3]);
  });

  it("gets an error for an answer that no ledger would give back", async () => {
    const world = await World.start();
    const body = `"${"x".repeat(maxRecordBytes)}"`;
    world.runner.act = async (id) => (id === "line 1" ? { body } : undefined);
    const ended = await world.ended((await world.create(ids(3))).id);
    expect(ended.request_counts).toEqual({ total: 3, completed: 2, failed: 1 });
    const [line] = world.lines(ended.error_file_id);
    expect(line).toMatchObject({
      custom_id: "line 1",
      response: { status_code: 501, body: { error: { code: "not_supported" } } },
    });
  });

  it("runs each line once, however often a job is handed on, and all lines, whatever the queue forgets", async () => {
    const world = await World.start();
    world.jobs.copies = 3;
    const twice = await world.ended((await world.create(ids(200))).id);
    expect(world.runner.asked.length).toBe(200);
    expect(twice.request_counts.completed).toBe(200);
    world.jobs.up = false;
    const lost = await world.create(ids(100));
    await world.until(lost.id, inProgress);
    await sleep(50);
    expect(world.runner.asked.length).toBe(200);
    world.jobs.comeBack();
    expect((await world.ended(lost.id)).request_counts.completed).toBe(100);
    expect(world.runner.asked.length).toBe(300);
  });

  it("begins no more lines than its window lets in, and none for a batch that has spent its budget", async () => {
    const world = await World.start();
    let running = 0;
    let most = 0;
    world.runner.act = async () => {
      most = Math.max(most, ++running);
      await sleep(20);
      running--;
      return undefined;
    };
    expect((await world.ended((await world.create(ids(3_000))).id)).request_counts.completed).toBe(3_000);
    expect(most).toBe(1_024);
    const spent = await world.ended((await world.create(ids(3_000), { tokenBudget: 7 })).id);
    const { completed, failed } = spent.request_counts;
    expect(completed).toBeLessThanOrEqual(1_024);
    expect(completed + failed).toBe(3_000);
    expect(world.lines(spent.error_file_id).at(-1).error.code).toBe("token_budget_exceeded");
  }, 30_000);

  it("of another model waits: it expires or is cancelled as others are, and goes on when its model is back", async () => {
    const first = await World.start();
    first.runner.act = () => new Promise(() => undefined);
    const [waits, cancelled] = [await first.create(ids(4)), await first.create(ids(4))];
    for (const { id } of [waits, cancelled]) await first.until(id, inProgress);
    await first.engine.close();
    const other = await World.start({ model: "another", term: 2 });
    await sleep(300);
    other.jobs.comeBack();
    await sleep(100);
    expect(other.runner.asked).toEqual([]);
    expect(other.get(waits.id).status).toBe("in_progress");
    expect(other.log.of("a batch waits: it is for another model than is served")[0]).toMatchObject({
      model: "glm-test",
      served: "another",
    });
    await other.engine.cancel(cancelled.id, tenant);
    expect((await other.ended(cancelled.id)).status).toBe("cancelled");
    await other.engine.close();
    const again = await World.start({ term: 3 });
    expect(await again.ended(waits.id)).toMatchObject({
      status: "completed",
      request_counts: { completed: 4 },
    });
  });

  it("expires, and is forgotten long after its end unless its webhook is still to be told", async () => {
    let sweep: () => void = () => undefined;
    let nowMs = Date.now();
    const timers: Timers = {
      ...systemTimers,
      timeOfDayMs: () => nowMs,
      stampMs: () => nowMs++,
      every: (_, run) => {
        sweep = run;
        return { cancel: () => undefined };
      },
    };
    const world = await World.start({ timers, keepMs: 1_000_000 });
    world.runner.act = (_, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const plain = await world.create(ids(3), { windowS: 60 });
    const told = await world.create(ids(3), { windowS: 60, webhookUrl: "http://hook/" });
    for (const { id } of [plain, told]) await world.until(id, inProgress);
    nowMs += 59_000;
    sweep();
    expect(world.get(plain.id).status).toBe("in_progress");
    nowMs += 2_000;
    sweep();
    const ended = await world.ended(plain.id);
    expect(ended.status).toBe("expired");
    expect(world.lines(ended.error_file_id).map(({ error }) => error.code)).toEqual(
      Array(3).fill("batch_expired"),
    );
    await world.ended(told.id);
    nowMs += 2_000_000;
    for (let i = 0; i < 60; i++) sweep();
    expect(world.engine.get(plain.id, tenant)).toBeNull();
    expect(world.get(told.id).webhook!.status).toBe("pending");
    await world.engine.deliveries.save({
      ...world.delivered.at(-1)!,
      batchId: told.id,
      status: "failed",
      attempts: 8,
    });
    for (let i = 0; i < 60; i++) sweep();
    expect(world.engine.get(told.id, tenant)).toBeNull();
    await sleep(100);
    expect(readdirSync(join(folder(), "batches"))).toEqual([]);
  });

  it("that was made when the process died, or is of no use, is swept", async () => {
    const first = await World.start();
    const { id } = await first.ended((await first.create(ids(2))).id);
    await first.engine.close();
    const batches = join(folder(), "batches");
    const half = join(batches, `batch_${"0".repeat(32)}`);
    mkdirSync(half);
    writeFileSync(join(half, "source"), "x");
    const damaged = join(batches, `batch_${"1".repeat(32)}`);
    mkdirSync(damaged);
    writeFileSync(join(damaged, "batch.json"), '{"version":1');
    writeFileSync(join(batches, id, "output.jsonl"), "left");
    const world = await World.start({ term: 2 });
    await sleep(200);
    expect(existsSync(half)).toBe(false);
    expect(existsSync(damaged)).toBe(true);
    expect(world.log.of("a batch cannot be read: it is left alone")).toHaveLength(1);
    expect(readdirSync(join(batches, id))).toEqual(["batch.json"]);
    expect(world.get(id).status).toBe("completed");
  });
});

describe("a batch whose process dies", () => {
  const total = 120;

  /** Files that let a process die around the moment at which one of them is moved in. */
  function dying(files: FileStore, at: number, before: boolean): FileStore {
    let adopted = 0;
    const adopt: FileStore["adopt"] = async (id, path, about) => {
      const dies = adopted++ === at;
      if (dies && before) return new Promise(() => undefined);
      const file = await files.adopt(id, path, about);
      return dies ? new Promise(() => undefined) : file;
    };
    return new Proxy(files, {
      get: (target, name) => {
        if (name === "adopt") return adopt;
        const value = Reflect.get(target, name);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  it.each([
    [0, true],
    [0, false],
    [1, true],
    [1, false],
  ])("while its files are made (%i, before it is moved: %s) has each of them once", async (at, before) => {
    const guard = new DiskGuard(folder(), 0, systemTimers);
    const { log } = new LogLines();
    const open = () => FileStore.open(folder(), { guard, timers: systemTimers, log, filesBytes: null });
    const files = await open();
    const first = await World.start({ files: dying(files, at, before) });
    const fails = async (id: string) => (id.endsWith("7") ? { status: 404, body: "{}" } : undefined);
    first.runner.act = fails;
    const { id } = await first.create(ids(total));
    await first.until(id, ({ status }) => status === "finalizing");
    await sleep(300);
    await first.engine.close();
    expect(first.get(id).status).toBe("finalizing");
    const second = await World.start({ term: 2, files: await open() });
    const ended = await second.ended(id);
    expect(second.runner.asked).toEqual([]);
    expect(ended.request_counts).toEqual({ total, completed: total - 12, failed: 12 });
    expect(second.lines(ended.output_file_id).length + second.lines(ended.error_file_id).length).toBe(total);
    const page = { after: null, limit: 100, order: "asc", purpose: "batch_output" } as const;
    const outputs = second.files.list(page, tenant)!.data.map((file) => file.id);
    expect(outputs.sort()).toEqual([ended.output_file_id, ended.error_file_id].sort());
  });

  it("again and again, at any moment, in any state, is answered line by line once", async () => {
    const random = seededRandom(20_261_125);
    const known = new Map<string, "cancel" | "run">();
    const finals = new Map<string, string>();
    let asked = 0;
    for (let life = 1; life <= 12; life++) {
      const world = await World.start({ term: life });
      world.runner.act = async (id) => {
        await sleep(random() * 30);
        return id.endsWith("3") ? { status: 400, body: "{}" } : undefined;
      };
      if (life <= 10) {
        const { id } = await world.create(ids(total));
        known.set(id, random() < 0.3 ? "cancel" : "run");
      }
      await sleep(random() * 120);
      for (const [id, wish] of known) {
        const { status } = world.get(id);
        if (wish === "cancel" && !isFinal(status) && random() < 0.5) await world.engine.cancel(id, tenant);
        if (finals.has(id)) expect(status).toBe(finals.get(id));
        if (isFinal(status)) finals.set(id, status);
      }
      if (life === 12) for (const id of known.keys()) await world.ended(id);
      asked += world.runner.asked.length;
      if (life < 12) {
        await world.engine.close();
        continue;
      }
      for (const [id, wish] of known) {
        const batch = world.get(id);
        if (wish === "run") expect(batch.status).toBe("completed");
        const lines = [...world.lines(batch.output_file_id), ...world.lines(batch.error_file_id)];
        const { completed, failed } = batch.request_counts;
        expect(world.lines(batch.output_file_id)).toHaveLength(completed);
        if (batch.status === "completed") expect(completed + failed).toBe(total);
        const expected = lines.length === 0 && batch.status === "cancelled" ? [] : ids(total).sort();
        expect(lines.map(({ custom_id }) => custom_id).sort()).toEqual(expected);
      }
    }
    expect(finals.size).toBeGreaterThan(0);
    expect(asked).toBeGreaterThan(5 * total);
  }, 60_000);
});
