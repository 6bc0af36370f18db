import { Redis } from "ioredis";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createLogger } from "../../common/log.js";
import { BullmqJobs } from "../../coordinator/batches/bullmq-jobs.js";
import type { JobName } from "../../coordinator/batches/jobs.js";
import { jobConcurrency } from "../../coordinator/batches/limits.js";
import { TestRedis, until } from "../support/cluster.js";

const log = createLogger("test", "silent");
const jobsOf = (batchId: string, count: number): JobName[] =>
  Array.from({ length: count }, (_, index) => ({ batchId, index }));
const nameOf = ({ batchId, index }: JobName) => `${batchId} ${index}`;
const all = (batchId: string, count: number) => jobsOf(batchId, count).map(nameOf).sort();

describe("jobs of batches on real Redis", () => {
  let redis: TestRedis;
  let reader: Redis;
  const opened: BullmqJobs[] = [];
  beforeEach(async () => {
    redis = await TestRedis.start();
    reader = new Redis(redis.url);
    reader.on("error", () => undefined);
  });
  afterEach(async () => {
    for (const jobs of opened.splice(0)) await jobs.close();
    reader.disconnect();
    await redis.stop();
  });

  const open = () => {
    const jobs = new BullmqJobs(redis.url, "t", log);
    opened.push(jobs);
    return jobs;
  };
  const keys = async () => (await reader.keys("glm-relay:t:batch-lines:batch_*")).length;

  it("are handed on once each, as many at a time as may run, and leave nothing", async () => {
    const jobs = open();
    const seen: string[] = [];
    let running = 0;
    let most = 0;
    await jobs.start(async (job) => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setTimeout(resolve, 10));
      running--;
      seen.push(nameOf(job));
    });
    await jobs.add(jobsOf("batch_a", 600), 0);
    await jobs.add(jobsOf("batch_a", 600), 0);
    await until("all", () => seen.length === 600 && running === 0);
    expect(seen.sort()).toEqual(all("batch_a", 600));
    expect(most).toBe(jobConcurrency);
    await until("none to be left", async () => (await keys()) === 0);
  });

  it("come by priority, and of one priority in their order", async () => {
    const jobs = open();
    const seen: string[] = [];
    const busy: (() => void)[] = [];
    await jobs.start((job) => {
      if (job.batchId === "batch_first") return new Promise<void>((resolve) => busy.push(resolve));
      seen.push(nameOf(job));
      return new Promise((resolve) => setTimeout(resolve, 5));
    });
    await jobs.add(jobsOf("batch_first", jobConcurrency), 0);
    await until("all to be busy", () => busy.length === jobConcurrency);
    await jobs.add(jobsOf("batch_low", 20), 100);
    await jobs.add(jobsOf("batch_middle", 20), 0);
    await jobs.add(jobsOf("batch_high", 20), -100);
    busy.pop()!();
    await until("all others", () => seen.length === 60);
    expect(seen).toEqual(
      ["high", "middle", "low"].flatMap((name) => jobsOf(`batch_${name}`, 20).map(nameOf)),
    );
    for (const end of busy) end();
  });

  it("of a large batch come behind the first ones of a small one that is younger", async () => {
    const jobs = open();
    const seen: string[] = [];
    const busy: (() => void)[] = [];
    await jobs.start((job) => {
      if (job.batchId === "batch_first") return new Promise<void>((resolve) => busy.push(resolve));
      seen.push(nameOf(job));
      return new Promise((resolve) => setTimeout(resolve, 5));
    });
    await jobs.add(jobsOf("batch_first", jobConcurrency), 0);
    await until("all to be busy", () => busy.length === jobConcurrency);
    await jobs.add(jobsOf("batch_large", 40), 0);
    await jobs.add(jobsOf("batch_small", 3), 0);
    busy.pop()!();
    await until("all others", () => seen.length === 43);
    const [large, small] = [jobsOf("batch_large", 40).map(nameOf), jobsOf("batch_small", 3).map(nameOf)];
    const turns = [0, 1, 2].flatMap((index) => [large[index]!, small[index]!]);
    expect(seen).toEqual([...turns, ...large.slice(3)]);
    for (const end of busy) end();
  });

  it("that Redis has forgotten are put there again, and those that it still has are not doubled", async () => {
    const jobs = open();
    const seen: string[] = [];
    let ups = 0;
    let isOpen = false;
    const waiting: (() => void)[] = [];
    await jobs.start(async (job) => {
      seen.push(nameOf(job));
      if (!isOpen) await new Promise<void>((resolve) => waiting.push(resolve));
    });
    jobs.onUp(() => {
      ups++;
      void jobs.add(jobsOf("batch_a", 40), 0).catch(() => undefined);
    });
    await jobs.add(jobsOf("batch_a", 40), 0);
    await until("some to run", () => waiting.length === jobConcurrency);
    await reader.flushall();
    await redis.kill();
    await expect(jobs.add(jobsOf("batch_a", 1), 0)).rejects.toMatchObject({ code: "queue_unavailable" });
    await redis.resume();
    await until("Redis to be back", () => ups > 0);
    isOpen = true;
    for (const end of waiting.splice(0)) end();
    // What ran is handed on once more: whoever runs it finds nothing left to do.
    await until("all", () => new Set(seen).size === 40);
    await until("none to be left", async () => (await keys()) === 0);
    expect([...new Set(seen)].sort()).toEqual(all("batch_a", 40));
  });

  it("of a process that was killed hold up nobody: the next one begins with an empty queue", async () => {
    const first = open();
    let running = 0;
    await first.start(() => {
      running++;
      return new Promise(() => undefined);
    });
    await first.add(jobsOf("batch_a", 50), 0);
    await until("some to run", () => running === jobConcurrency);
    const next = open();
    const seen: string[] = [];
    const began = performance.now();
    await next.start(async (job) => {
      seen.push(nameOf(job));
    });
    await next.add(jobsOf("batch_b", 5), 0);
    await next.add(jobsOf("batch_a", 50), 0);
    // Otherwise their locks would have to run out first, which takes half a minute.
    await until("all that it put there", () => new Set(seen).size === 5 + 50, 10_000);
    expect(performance.now() - began).toBeLessThan(10_000);
  });

  it("can be started while Redis is away", async () => {
    await redis.kill();
    const jobs = open();
    const seen: string[] = [];
    let isStarted = false;
    const start = jobs.start(async (job) => {
      seen.push(nameOf(job));
    });
    void start.then(() => {
      isStarted = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(isStarted).toBe(false);
    await redis.resume();
    await start;
    await jobs.add(jobsOf("batch_a", 3), 0);
    await until("all", () => seen.length === 3);
  });
});
