import { Redis } from "ioredis";
import { Registry } from "prom-client";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { requestId } from "../../common/ids.js";
import { createLogger } from "../../common/log.js";
import type { GenerationRequest } from "../../coordinator/inference.js";
import { BullmqQueue } from "../../coordinator/queue/bullmq-queue.js";
import { fromRecord } from "../../coordinator/queue/record.js";
import { TestRedis, until } from "../support/cluster.js";
import { generation } from "../support/fake-cluster.js";
import { LogLines } from "../support/log-lines.js";

const log = createLogger("test", "silent");

/** Prompts as lists, which is how tests write them. */
const listed = (request: GenerationRequest): GenerationRequest => ({
  ...request,
  choices: request.choices.map(({ promptTokens, seed }) => ({
    promptTokens: Array.from(promptTokens),
    seed,
  })),
});

describe("the request queue on real Redis", () => {
  let redis: TestRedis;
  let queue: BullmqQueue;
  let registry: Registry;
  beforeEach(async () => {
    redis = await TestRedis.start();
    registry = new Registry();
    queue = await BullmqQueue.open(redis.url, "t", log, registry);
  });
  afterEach(async () => {
    await queue.close();
    await redis.stop();
  });

  it("hands over every request once, in the order of arrival, as it was", async () => {
    const admitted: GenerationRequest[] = [];
    const sent = Array.from({ length: 100 }, (_, index) => generation(`r${index}`, [index, 1, 2]));
    for (const request of sent) await queue.add(request);
    await queue.start((request) => admitted.push(request));
    await until("all to be admitted", () => admitted.length === sent.length);
    expect(new Set(admitted.map((request) => request.id)).size).toBe(sent.length);
    const inOrder = [...admitted].sort((a, b) => Number(a.id.slice(1)) - Number(b.id.slice(1)));
    expect(inOrder.map(listed)).toEqual(sent);
  });

  it("hands over interactive requests before batch ones", async () => {
    const admitted: string[] = [];
    for (let n = 0; n < 10; n++) await queue.add({ ...generation(`b${n}`, [n]), class: "batch" });
    for (let n = 0; n < 10; n++) await queue.add(generation(`i${n}`, [n]));
    await queue.start((request) => admitted.push(request.id));
    await until("all to be admitted", () => admitted.length === 20);
    expect(admitted.map((name) => name[0]).join("")).toBe("i".repeat(10) + "b".repeat(10));
  });

  it("has written the ledger record when a request is admitted, and deletes it when it ended", async () => {
    const reader = new Redis(redis.url);
    const records: (string | null)[] = [];
    const reads: Promise<void>[] = [];
    await queue.start((request) => {
      reads.push(reader.get(`glm-relay:t:ledger:${request.id}`).then((text) => void records.push(text)));
    });
    const request = generation("a", [1, 2, 3]);
    await queue.add(request);
    await until("its admission", () => reads.length === 1);
    await Promise.all(reads);
    expect(listed(fromRecord(JSON.parse(records[0]!)))).toEqual(request);
    queue.ledger.ended(request.id);
    await until(
      "the record to be gone",
      async () => (await reader.exists(`glm-relay:t:ledger:${request.id}`)) === 0,
    );
    expect(await reader.keys("*:requests:a")).toEqual([]);
    reader.disconnect();
  });

  it("forgets the ledger records of many requests that end at once", async () => {
    const count = 600;
    const reader = new Redis(redis.url);
    const admitted: GenerationRequest[] = [];
    await queue.start((request) => admitted.push(request));
    await Promise.all(Array.from({ length: count }, (_, i) => queue.add(generation(`r${i}`, [i]))));
    await until("all to be admitted", () => admitted.length === count);
    expect(await reader.keys("glm-relay:t:ledger:*")).toHaveLength(count);
    for (const { id } of admitted) queue.ledger.ended(id);
    await until("the records to be gone", async () => (await reader.keys("*:ledger:*")).length === 0);
    reader.disconnect();
  });

  it("keeps a prompt that its choices share once", async () => {
    const admitted: GenerationRequest[] = [];
    await queue.start((request) => admitted.push(request));
    const promptTokens = Int32Array.from({ length: 100_000 }, (_, i) => i);
    const request: GenerationRequest = {
      ...generation("shared", []),
      choices: ["1", "-2", "3"].map((seed) => ({ promptTokens, seed })),
    };
    await queue.add(request);
    await until("its admission", () => admitted.length === 1);
    expect(admitted[0]).toEqual(request);
    expect(new Set(admitted[0]!.choices.map((choice) => choice.promptTokens)).size).toBe(1);
  });

  it("takes the same id only once while it is queued, and a removed one not at all", async () => {
    await queue.add(generation("twice", [1]));
    await queue.add(generation("twice", [1]));
    await queue.add(generation("gone", [1]));
    await queue.remove(requestId("gone"));
    const admitted: string[] = [];
    await queue.start((request) => admitted.push(request.id));
    await queue.add(generation("last", [1]));
    await until("the last one", () => admitted.includes("last"));
    expect(admitted).toEqual(["twice", "last"]);
  });

  it("says at once that Redis is away, keeps what it had, and goes on when it is back", async () => {
    const admitted: string[] = [];
    const changes: boolean[] = [];
    queue.onUpChange((up) => changes.push(up));
    await queue.add(generation("before", [1]));
    await redis.kill();
    await until("the loss to be noticed", () => !queue.up);
    const asked = performance.now();
    await expect(queue.add(generation("lost", [1]))).rejects.toMatchObject({ code: "queue_unavailable" });
    expect(performance.now() - asked).toBeLessThan(2_000);
    await redis.resume();
    await until("Redis to be back", () => queue.up);
    expect(changes).toEqual([false, true]);
    await queue.start((request) => admitted.push(request.id));
    await queue.add(generation("after", [1]));
    await until("both", () => admitted.length === 2);
    expect(admitted).toEqual(["before", "after"]);
  });

  it("counts terms upwards, also after a restart of Redis and from a raised one", async () => {
    const first = await queue.nextTerm();
    expect(await queue.nextTerm()).toBe(first + 1);
    queue.raiseTerm(40);
    await until("the raised term", async () => (await queue.nextTerm()) > 40);
    // One that has begun meanwhile keeps the higher number.
    queue.raiseTerm(3);
    expect(await queue.nextTerm()).toBeGreaterThan(41);
  });

  const jobs = (page: string, state: string) =>
    Number(
      new RegExp(`^glm_relay_queue_jobs\\{queue="requests",state="${state}"\\} (\\d+)$`, "m").exec(page)?.[1],
    );

  it("counts its jobs and the round trips to Redis at a scrape", async () => {
    for (const id of ["a", "b", "c"]) await queue.add(generation(id, [1]));
    const page = await until("the counts", async () => {
      const text = await registry.metrics();
      return Number.isNaN(jobs(text, "prioritized")) ? null : text;
    });
    expect(["prioritized", "waiting", "active", "delayed"].map((state) => jobs(page, state))).toEqual([
      3, 0, 0, 0,
    ]);
    const trips = async () =>
      Number(/^glm_relay_redis_roundtrip_seconds_count (\d+)$/m.exec(await registry.metrics())?.[1]);
    const before = await trips();
    expect(before).toBeGreaterThan(0);
    await queue.start(() => undefined);
    await until("the queue to be empty", async () => jobs(await registry.metrics(), "prioritized") === 0);
    // One for each ledger record, and at least one more for counting.
    expect(await trips()).toBeGreaterThanOrEqual(before + 3 + 1);
  });

  it.each(["SIGSTOP", "SIGKILL"] as const)(
    "a scrape works without counts while Redis is gone (%s), and with them afterwards",
    async (signal) => {
      await queue.add(generation("a", [1]));
      redis.process!.kill(signal);
      if (signal === "SIGKILL") await until("the loss to be noticed", () => !queue.up);
      const pages = await Promise.all([registry.metrics(), registry.metrics()]);
      for (const page of pages) {
        expect(page).toContain("# TYPE glm_relay_queue_jobs gauge");
        expect(page).not.toContain("glm_relay_queue_jobs{");
      }
      if (signal === "SIGKILL") await redis.resume();
      else redis.process!.kill("SIGCONT");
      await until("the counts", async () => jobs(await registry.metrics(), "prioritized") === 1);
    },
  );

  it("counts admissions that are tried again, and logs them under the request's name without its prompt", async () => {
    const lines = new LogLines();
    const figures = new Registry();
    const other = await BullmqQueue.open(redis.url, "u", lines.log, figures);
    const admin = new Redis(redis.url);
    const admitted: string[] = [];
    try {
      // The queue works, the ledger's keys are out of bounds.
      await admin.acl("SETUSER", "default", "resetkeys", "~glm-relay:u:requests*");
      await other.add(generation("a", [424_242]));
      await other.start((request) => admitted.push(request.id));
      const failures = () => lines.of("a request could not be admitted");
      await until("the last attempt", () => failures().length === 5);
      expect(await figures.metrics()).toContain('glm_relay_jobs_retried_total{queue="requests"} 4');
      expect(failures()[0]).toMatchObject({ requestId: "log-a", completionId: "a" });
      expect(JSON.stringify(failures()[0])).toContain("NOPERM");
      expect(lines.text).not.toContain("424242");
      expect(admitted).toEqual([]);
    } finally {
      await admin.acl("SETUSER", "default", "allkeys");
      admin.disconnect();
      await other.close();
    }
  });
});
