import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { systemTimers, type Timers } from "../../../../common/clock.js";
import { RelayError } from "../../../../common/errors.js";
import { isFinal, type NewBatch } from "../../../../coordinator/batches/batch.js";
import { maxOpenBatches, maxRecordBytes } from "../../../../coordinator/batches/limits.js";
import { lineId } from "../../../../coordinator/batches/line-id.js";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import { FileStore } from "../../../../coordinator/files/store.js";
import { seededRandom } from "../../../native/support.js";
import { LogLines } from "../../../support/log-lines.js";
import { model, testFolder } from "./support.js";
import { ids, inProgress, newBatch, type Setup, tenant, World } from "./world.js";

const folder = testFolder();
const worlds: World[] = [];
afterEach(async () => {
  for (const { engine } of worlds.splice(0)) await engine.close();
});

async function start(setup: Setup = {}): Promise<World> {
  const world = await World.start(folder(), setup);
  worlds.push(world);
  return world;
}

describe("a batch", () => {
  it("is answered line by line; whoever watches hears of it, and its webhook of its end", async () => {
    const world = await start();
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
    const world = await start();
    const create = (fields: Partial<NewBatch>) =>
      world.engine.create({ ...newBatch, ...fields }, tenant, null);
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
    const world = await start({ guard });
    await expect(world.create(ids(10))).rejects.toMatchObject({ code: "storage_full", httpStatus: 507 });
    expect(readdirSync(join(folder(), "batches"))).toEqual([]);
  });

  it("tries lines again that can be answered later, and takes other errors for answers", async () => {
    const world = await start();
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
    const world = await start();
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
    const world = await start();
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
    const world = await start();
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
    expect(spent.usage.total_tokens).toBeGreaterThanOrEqual(7);
    expect(spent.usage.total_tokens).toBeLessThanOrEqual(7 + world.runner.contextLength);
    expect(completed + failed).toBe(3_000);
    expect(world.lines(spent.error_file_id).at(-1).error.code).toBe("token_budget_exceeded");
  }, 30_000);

  it("of another model waits: it expires or is cancelled as others are, and goes on when its model is back", async () => {
    const first = await start();
    first.runner.act = () => new Promise(() => undefined);
    const [waits, cancelled] = [await first.create(ids(4)), await first.create(ids(4))];
    for (const { id } of [waits, cancelled]) await first.until(id, inProgress);
    await first.engine.close();
    const other = await start({ model: "another", term: 2 });
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
    const again = await start({ term: 3 });
    expect(await again.ended(waits.id)).toMatchObject({
      status: "completed",
      request_counts: { completed: 4 },
    });
  });

  describe("that its client has named", () => {
    const asked = (key: string, request = "a") => ({ key, request });
    const inputOf = async (world: World) => (await world.create(["x"])).input_file_id;
    const conflict = { code: "conflict", param: "idempotency-key", httpStatus: 409 };

    it("is made once, also when it is asked for many times at once, and shown as it is now", async () => {
      const world = await start();
      const batch = { ...newBatch, inputFileId: await inputOf(world) };
      const create = (name: ReturnType<typeof asked>, owner = tenant) =>
        world.engine.create(batch, owner, name);
      const made = await Promise.all(Array.from({ length: 20 }, () => create(asked("k"))));
      expect(new Set(made.map(({ id }) => id)).size).toBe(1);
      const { id } = made[0]!;
      await world.ended(id);
      expect(await create(asked("k"))).toEqual(world.get(id));
      expect((await create(asked("other"))).id).not.toBe(id);
      await expect(create(asked("k", "b"))).rejects.toMatchObject(conflict);
      // Names are a tenant's own: for another one there is no file, and no batch either.
      await expect(create(asked("k"), "other")).rejects.toMatchObject({ code: "not_found" });
    });

    it("is another one for another request that comes while it is being made", async () => {
      const world = await start();
      const batch = { ...newBatch, inputFileId: await inputOf(world) };
      const made = world.engine.create(batch, tenant, asked("k"));
      await expect(world.engine.create(batch, tenant, asked("k", "b"))).rejects.toMatchObject(conflict);
      expect((await made).status).toBe("validating");
    });

    it("has a free name again when it was refused", async () => {
      const world = await start();
      const missing = { ...newBatch, inputFileId: "file-x" };
      const twice = [1, 2].map(() => world.engine.create(missing, tenant, asked("k")));
      for (const refused of await Promise.allSettled(twice))
        expect(refused).toMatchObject({ status: "rejected", reason: { code: "not_found" } });
      const batch = { ...newBatch, inputFileId: await inputOf(world) };
      expect((await world.engine.create(batch, tenant, asked("k", "b"))).status).toBe("validating");
    });

    it("is the same in the next process, also when its input is gone and as many are open as may be", async () => {
      const first = await start();
      const batch = { ...newBatch, inputFileId: await inputOf(first) };
      const { id } = await first.engine.create(batch, tenant, asked("k"));
      await first.ended(id);
      await first.engine.close();
      const next = await start({ term: 2 });
      await next.files.remove(batch.inputFileId, tenant);
      next.runner.act = () => new Promise(() => undefined);
      for (let i = 0; i < maxOpenBatches; i++) await next.create(["a"]);
      expect((await next.engine.create(batch, tenant, asked("k"))).id).toBe(id);
      await expect(next.engine.create(batch, tenant, asked("k", "b"))).rejects.toMatchObject(conflict);
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
    const world = await start({ timers, keepMs: 1_000_000 });
    world.runner.act = (_, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const plain = await world.create(ids(3), { windowS: 60 });
    const name = { key: "k", request: "a" };
    const named = { ...newBatch, inputFileId: plain.input_file_id, windowS: 60 };
    const before = await world.engine.create(named, tenant, name);
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
    for (const { id } of [told, before]) await world.ended(id);
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
    // Its name is free again.
    expect((await world.engine.create(named, tenant, name)).id).not.toBe(before.id);
  });

  it("that was made when the process died, or is of no use, is swept", async () => {
    const first = await start();
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
    const world = await start({ term: 2 });
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
    const first = await start({ files: dying(files, at, before) });
    const fails = async (id: string) => (id.endsWith("7") ? { status: 404, body: "{}" } : undefined);
    first.runner.act = fails;
    const { id } = await first.create(ids(total));
    await first.until(id, ({ status }) => status === "finalizing");
    await sleep(300);
    await first.engine.close();
    expect(first.get(id).status).toBe("finalizing");
    const second = await start({ term: 2, files: await open() });
    const ended = await second.ended(id);
    expect(second.runner.asked).toEqual([]);
    expect(ended.request_counts).toEqual({ total, completed: total - 12, failed: 12 });
    expect(second.lines(ended.output_file_id).length + second.lines(ended.error_file_id).length).toBe(total);
    const page = { after: null, limit: 100, order: "asc", purpose: "batch_output" } as const;
    const outputs = second.files.list(page, tenant)!.data.map((file) => file.id);
    expect(outputs.sort()).toEqual([ended.output_file_id, ended.error_file_id].sort());
  });

  it("in order, while its files are made, has made them when it is closed", async () => {
    const guard = new DiskGuard(folder(), 0, systemTimers);
    const { log } = new LogLines();
    const files = await FileStore.open(folder(), { guard, timers: systemTimers, log, filesBytes: null });
    const adopt = files.adopt.bind(files);
    files.adopt = async (...about) => {
      await sleep(150);
      return adopt(...about);
    };
    const world = await start({ files });
    const { id } = await world.create(ids(3));
    await world.until(id, ({ status }) => status === "finalizing");
    await world.engine.close();
    const record = readFileSync(join(folder(), "batches", id, "batch.json"), "utf8");
    expect(JSON.parse(record).object.status).toBe("completed");
    expect(readdirSync(join(folder(), "batches", id))).toEqual(["batch.json"]);
  });

  it("again and again, at any moment, in any state, is answered line by line once", async () => {
    const random = seededRandom(20_261_125);
    const known = new Map<string, "cancel" | "run">();
    const finals = new Map<string, string>();
    let asked = 0;
    for (let life = 1; life <= 12; life++) {
      const world = await start({ term: life });
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
