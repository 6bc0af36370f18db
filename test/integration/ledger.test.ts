import { Redis } from "ioredis";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createLogger } from "../../common/log.js";
import type { GenerationRequest } from "../../coordinator/inference.js";
import { BullmqQueue } from "../../coordinator/queue/bullmq-queue.js";
import { tokensFromBytes } from "../../coordinator/queue/decided-tokens.js";
import { TestRedis, until } from "../support/cluster.js";
import { generation } from "../support/fake-cluster.js";
import { LogLines } from "../support/log-lines.js";

const log = createLogger("test", "silent");
const tokenCount = 1_000;

function accepted(id: string, atMs: number, prompt = [1, 2]): GenerationRequest {
  const request = generation(id, []);
  return {
    ...request,
    choices: [1, 2].map((seed) => ({ promptTokens: Int32Array.from(prompt), seed: `${seed}` })),
    answer: { n: 2, asTokenIds: false, options: {} },
    accepted: { term: 1, atMs, numericsId: "n/f", recoveries: 0, tokens: 0 },
  };
}

describe("the ledger on real Redis", () => {
  let redis: TestRedis;
  let reader: Redis;
  const queues: BullmqQueue[] = [];
  beforeEach(async () => {
    redis = await TestRedis.start();
    reader = new Redis(redis.url);
    reader.on("error", () => undefined);
  });
  afterEach(async () => {
    for (const queue of queues.splice(0)) await queue.close();
    reader.disconnect();
    await redis.stop();
  });

  const open = async (logger = log) => {
    const queue = await BullmqQueue.open(redis.url, "t", logger);
    queues.push(queue);
    return queue;
  };
  /** Admits requests, as a coordinator would that dies afterwards. */
  const admit = async (queue: BullmqQueue, requests: GenerationRequest[]) => {
    let count = 0;
    await queue.start(() => count++);
    await Promise.all(requests.map((request) => queue.add(request)));
    await until("all to be admitted", () => count === requests.length);
  };
  const tokensOf = async (id: string, choice: number) => {
    const bytes = (await reader.getBuffer(`glm-relay:t:tokens:${id}:${choice}`)) ?? Buffer.alloc(0);
    return Array.from(tokensFromBytes(bytes, tokenCount, 10_000));
  };

  it("gives the next process all requests in the order of acceptance, with their tokens", async () => {
    const first = await open();
    const count = 700;
    const requests = Array.from({ length: count }, (_, i) => accepted(`r${i}`, 1_000 + ((i * 11) % count)));
    await admit(first, requests);
    first.ledger.decided(requests[3]!.id, 1, [5, 6]);
    first.ledger.decided(requests[3]!.id, 1, [7]);
    first.ledger.decided(requests[4]!.id, 0, [0]);
    await until("the tokens", async () => (await tokensOf("r3", 1)).length === 3);
    expect(await reader.ttl("glm-relay:t:tokens:r3:1")).toBeGreaterThan(0);

    const entries = await (await open()).ledger.read(tokenCount);
    expect(entries.map(({ request }) => request.accepted!.atMs)).toEqual(
      Array.from({ length: count }, (_, i) => 1_000 + i),
    );
    const read = new Map(entries.map((entry) => [entry.request.id as string, entry]));
    expect(read.get("r3")!.decided.map((tokens) => Array.from(tokens))).toEqual([[], [5, 6, 7]]);
    expect(read.get("r4")!.decided.map((tokens) => Array.from(tokens))).toEqual([[0], []]);
    const { request } = read.get("r3")!;
    expect(request).toEqual(requests[3]);
  });

  it("writes tokens of all requests at once and seldom, and those that come again not once more", async () => {
    const queue = await open();
    const requests = Array.from({ length: 50 }, (_, i) => accepted(`r${i}`, i));
    await admit(queue, requests);
    const writes = async () =>
      Number(/cmdstat_setrange:calls=(\d+)/.exec(await reader.info("commandstats"))?.[1] ?? 0);
    for (let round = 0; round < 20; round++) {
      for (const { id } of requests) queue.ledger.decided(id, 0, [round]);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await until("all tokens", async () => (await tokensOf("r49", 0)).length === 20);
    // 20 rounds took some hundred milliseconds at most: a few writes each, not one per token.
    expect(await writes()).toBeLessThanOrEqual(50 * 10);
    expect(await tokensOf("r7", 0)).toEqual(Array.from({ length: 20 }, (_, i) => i));

    const next = await open();
    await next.ledger.read(tokenCount);
    const before = await writes();
    for (let round = 0; round < 20; round++) next.ledger.decided(requests[7]!.id, 0, [round]);
    next.ledger.decided(requests[7]!.id, 0, [20]);
    await until("the new one", async () => (await tokensOf("r7", 0)).length === 21);
    expect((await writes()) - before).toBe(1);
  });

  it("leaves nothing of a request that ended, and its answer alone of one that ended without its client", async () => {
    const queue = await open();
    const [ended, orphan] = [accepted("ended", 1), accepted("orphan", 2)];
    await admit(queue, [ended, orphan]);
    for (const { id } of [ended, orphan]) for (const choice of [0, 1]) queue.ledger.decided(id, choice, [1]);
    await until("the tokens", async () => (await tokensOf("orphan", 1)).length === 1);
    queue.ledger.ended(ended.id);
    queue.ledger.keepAnswer(orphan, "the answer");
    const keys = async () => (await reader.keys("*")).filter((key) => !key.includes(":requests:")).sort();
    await until("the rest to be gone", async () => (await keys()).length === 2);
    expect(await keys()).toEqual(["glm-relay:t:answer-of:default:log-orphan", "glm-relay:t:answer:orphan"]);
    for (const key of await keys()) {
      expect(await reader.ttl(key)).toBeGreaterThan(3_500);
      expect(await reader.ttl(key)).toBeLessThanOrEqual(3_600);
    }
    expect(await queue.ledger.answer("orphan", "anyone")).toBe("the answer");
    expect(await queue.ledger.answer("log-orphan", "default")).toBe("the answer");
    expect(await queue.ledger.answer("log-orphan", "other")).toBeNull();
  });

  it("sets records aside that cannot be read, with their field and without their prompt", async () => {
    const lines = new LogLines();
    const queue = await open(lines.log);
    await reader.set("glm-relay:t:ledger:torn", '{"prompts":["secret"');
    await reader.set("glm-relay:t:ledger:other", JSON.stringify({ id: "other" }));
    await reader.rpush("glm-relay:t:ledger:list", "x");
    await reader.set("glm-relay:t:tokens:nobody:0", "abcd");
    await reader.set("glm-relay:tt:ledger:of-another-cluster", "x");
    expect(await queue.ledger.read(tokenCount)).toEqual([]);
    expect((await reader.keys("glm-relay:t:aside:*")).sort()).toEqual([
      "glm-relay:t:aside:other",
      "glm-relay:t:aside:torn",
    ]);
    expect(await reader.ttl("glm-relay:t:aside:torn")).toBeGreaterThan(0);
    expect(await reader.exists("glm-relay:t:tokens:nobody:0")).toBe(0);
    expect(await reader.exists("glm-relay:tt:ledger:of-another-cluster")).toBe(1);
    expect(lines.of("a ledger record cannot be read: it is set aside")).toHaveLength(2);
    expect(lines.text).toContain("logId: missing");
    expect(lines.text).not.toContain("secret");
  });

  it("catches up when Redis was away: with tokens, with what ended, and with an answer", async () => {
    const queue = await open();
    const [runs, ended, orphan] = [accepted("runs", 1), accepted("ended", 2), accepted("orphan", 3)];
    await admit(queue, [runs, ended, orphan]);
    queue.ledger.decided(runs.id, 0, [1, 2]);
    queue.ledger.decided(ended.id, 0, [1]);
    await until("the tokens", async () => (await tokensOf("ended", 0)).length === 1);
    await redis.kill();
    await until("the loss to be noticed", () => !queue.up);
    queue.ledger.decided(runs.id, 0, [3]);
    queue.ledger.ended(ended.id);
    queue.ledger.keepAnswer(orphan, "the answer");
    expect(await queue.ledger.answer("log-orphan", "default")).toBe("the answer");
    await expect(queue.ledger.answer("nobody", "default")).rejects.toMatchObject({
      code: "queue_unavailable",
    });
    await new Promise((resolve) => setTimeout(resolve, 300));
    queue.ledger.decided(runs.id, 0, [4]);
    await redis.resume();
    await until("the tokens", async () => (await tokensOf("runs", 0).catch(() => [])).length === 4);
    await until("what ended to be gone", async () => (await reader.keys("*:ended*")).length === 0);
    await until("the answer", async () => (await reader.get("glm-relay:t:answer:orphan")) === "the answer");
    expect(await reader.keys("glm-relay:t:ledger:*")).toEqual(["glm-relay:t:ledger:runs"]);
    expect(await tokensOf("runs", 0)).toEqual([1, 2, 3, 4]);
  });

  it("writes a record anew, with or without the tokens decided for it", async () => {
    const queue = await open();
    const request = accepted("a", 1);
    await admit(queue, [request]);
    queue.ledger.decided(request.id, 0, [1, 2, 3]);
    await until("the tokens", async () => (await tokensOf("a", 0)).length === 3);
    queue.ledger.restate({ ...request, accepted: { ...request.accepted!, recoveries: 1 } }, true);
    const [kept] = await (await open()).ledger.read(tokenCount);
    expect(kept!.request.accepted!.recoveries).toBe(1);
    expect(kept!.decided.map((tokens) => Array.from(tokens))).toEqual([[1, 2, 3], []]);
    queue.ledger.restate({ ...request, accepted: { ...request.accepted!, numericsId: "m/f" } }, false);
    queue.ledger.decided(request.id, 0, [9]);
    await until("the new token", async () => (await tokensOf("a", 0))[0] === 9);
    const [entry] = await (await open()).ledger.read(tokenCount);
    expect(entry!.request.accepted!.numericsId).toBe("m/f");
    expect(entry!.decided.map((tokens) => Array.from(tokens))).toEqual([[9], []]);
  });
});
