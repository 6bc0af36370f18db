/** A coordinator that dies leaves nothing unanswered: the next one finishes what was accepted. */
import { Redis } from "ioredis";
import { afterEach, describe, expect, it } from "vitest";
import { requestId } from "../../common/ids.js";
import { createLogger } from "../../common/log.js";
import { BullmqQueue } from "../../coordinator/queue/bullmq-queue.js";
import { fromRecord } from "../../coordinator/queue/record.js";
import { demoModel, TestCluster, TestRedis, until } from "../support/cluster.js";
import { TestUp } from "../support/up.js";

const limitMs = 240_000;
/** KV blocks for about five of the requests below: the others wait in the scheduler. */
const memory = "107MiB";

const sampled = { max_tokens: 600, ignore_eos: true, temperature: 1 };
const text = { ...sampled, prompt: "Once upon a time", stop: ["zzzz", "\n\n\n\n"] };
const chat = { ...sampled, messages: [{ role: "user", content: "Tell me a story." }] };

/** By the name under which each is found again; seeds, so that asking twice gives the same. */
const requests: Record<string, { path: string; body: Record<string, unknown> }> = {
  "chat-1": { path: "/v1/chat/completions", body: { ...chat, seed: 1 } },
  "chat-2": { path: "/v1/chat/completions", body: { ...chat, seed: 2, n: 2, max_tokens: 300 } },
  "stream-3": { path: "/v1/completions", body: { ...text, seed: 3, stream: true } },
  "ids-4": {
    path: "/v1/completions",
    body: { ...sampled, prompt: [11, 12, 13], seed: 4, return_token_ids: true },
  },
  "logprobs-5": {
    path: "/v1/completions",
    body: { ...text, seed: 5, max_tokens: 400, logprobs: 2, echo: true },
  },
  "greedy-6": { path: "/v1/completions", body: { ...text, temperature: 0 } },
  "text-7": { path: "/v1/completions", body: { ...text, seed: 7, n: 2, max_tokens: 400 } },
  "text-8": { path: "/v1/completions", body: { ...text, seed: 8 } },
  "text-9": { path: "/v1/completions", body: { ...text, seed: 9 } },
};
const names = Object.keys(requests);

function send(url: string, name: string): Promise<Response> {
  const { path, body } = requests[name]!;
  const headers = { "content-type": "application/json", "x-request-id": name };
  return fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
}

/** What each request is answered with when nothing happens, by its name. */
async function undisturbed(url: string): Promise<Map<string, any>> {
  const answers = names.map(async (name) => {
    const { path, body } = requests[name]!;
    const headers = { "content-type": "application/json" };
    const whole = JSON.stringify({ ...body, stream: false });
    const response = await fetch(url + path, { method: "POST", headers, body: whole });
    expect(response.status, name).toBe(200);
    return [name, await response.json()] as const;
  });
  return new Map(await Promise.all(answers));
}

/** All that does not differ between two answers to the same request. */
function essence({ id: _id, created: _created, usage, ...rest }: any) {
  const { prompt_tokens, completion_tokens, total_tokens } = usage;
  return { ...rest, usage: { prompt_tokens, completion_tokens, total_tokens } };
}

async function finished(url: string, id: string): Promise<any> {
  return until(
    `${id} to end`,
    async () => {
      const response = await fetch(`${url}/v1/requests/${id}`).catch(() => null);
      if (response === null || response.status >= 500) return null;
      const found: any = await response.json();
      if (response.status !== 200) throw new Error(`${id}: ${JSON.stringify(found)}`);
      return found.status === "completed" || found.status === "failed" ? found : null;
    },
    limitMs / 2,
  );
}

const keysOf = async (redis: Redis, kind: string) => redis.keys(`*:${kind}:*`);

/** The records of admitted requests by the names of the requests. */
async function ledger(redis: Redis): Promise<Map<string, any>> {
  const keys = await keysOf(redis, "ledger");
  const records = await Promise.all(keys.map(async (key) => JSON.parse((await redis.get(key))!)));
  return new Map(records.map((record) => [record.logId, record]));
}

const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

describe("a coordinator killed with SIGKILL under `up`", () => {
  it(
    "leaves running, waiting and queued requests to the next one, which answers each as if nothing had happened",
    async () => {
      const server = await TestRedis.start();
      undo.push(() => server.stop());
      const redis = new Redis(server.url);
      undo.push(async () => redis.disconnect());
      const args = ["--model", demoModel, "--stages", "2", "--memory-per-worker", memory];
      const up = await TestUp.start([...args, "--redis", server.url]);
      undo.push(() => up.stop());
      const expected = await undisturbed(up.url);
      expect(await keysOf(redis, "ledger")).toEqual([]);

      const lost = names.map((name) =>
        send(up.url, name)
          .then((response) => response.text())
          .catch(() => null),
      );
      const view = await until("some to run and some to wait, with tokens in the ledger", async () => {
        const { sequences } = (await (await fetch(`${up.url}/api/cluster`)).json()) as any;
        const tokens = await keysOf(redis, "tokens");
        const long = await Promise.all(tokens.map((key) => redis.strlen(key)));
        return sequences.waiting > 0 && long.filter((bytes) => bytes > 4 * 30).length >= 3 ? sequences : null;
      });
      expect(view.running).toBeGreaterThan(0);

      // While `up` stands still the dead coordinator stays dead.
      const { command } = up.child("coordinator")!;
      const name = command[command.indexOf("--name") + 1]!;
      up.process.kill("SIGSTOP");
      up.kill("coordinator");
      await Promise.all(lost);
      const admitted = await ledger(redis);
      expect([...admitted.keys()].sort()).toEqual([...names].sort());

      // One that BullMQ still has, and records that nobody can read.
      const queue = await BullmqQueue.open(server.url, name, createLogger("test", "silent"));
      const queued = { ...fromRecord(admitted.get("text-9")), id: requestId("cmpl-queued"), logId: "queued" };
      await queue.add(queued);
      await queue.close();
      const bad = { ...admitted.get("text-8"), id: "cmpl-bad", sampling: 5 };
      await redis.set(`glm-relay:${name}:ledger:cmpl-bad`, JSON.stringify(bad));
      await redis.set(`glm-relay:${name}:ledger:cmpl-worse`, '{"id":"cmpl-worse');
      up.process.kill("SIGCONT");

      // The next one does not get far either.
      await until("it to go on", async () => {
        const running = await Promise.all(
          [...admitted.values()].map(async ({ id }) => {
            const response = await fetch(`${up.url}/v1/requests/${id}`).catch(() => null);
            return response?.status === 200 && ((await response.json()) as any).status === "running";
          }),
        );
        return running.some(Boolean);
      });
      up.kill("coordinator");

      for (const [name, { id }] of admitted) {
        const found = await finished(up.url, id);
        expect(found, name).toMatchObject({ id, object: "request", status: "completed", response: { id } });
        expect(Number.isInteger(found.created_at)).toBe(true);
        expect(await finished(up.url, name)).toEqual(found);
        expect(essence(found.response), name).toEqual(essence(expected.get(name)));
      }
      const { response } = await finished(up.url, "cmpl-queued");
      expect(essence(response)).toEqual(essence(expected.get("text-9")));

      await until("the ledger to be empty", async () => {
        const left = await Promise.all(["ledger", "tokens"].map((kind) => keysOf(redis, kind)));
        return left.flat().length === 0;
      });
      expect((await keysOf(redis, "aside")).map((key) => key.split(":").at(-1)).sort()).toEqual([
        "cmpl-bad",
        "cmpl-worse",
      ]);
      const answers = await keysOf(redis, "answer");
      expect(answers).toHaveLength(names.length + 1);
      for (const key of answers) expect(await redis.ttl(key)).toBeGreaterThan(0);
      expect(await redis.keys(`glm-relay:${name}:requests:cmpl-*`)).toEqual([]);

      const log = up.log("coordinator");
      const [first, second] = [...log.matchAll(/"requests":(\d+),"tokens":(\d+)[^\n]*taken up again/g)];
      expect(Number(first![1])).toBe(names.length);
      expect(Number(first![2])).toBeGreaterThan(90);
      expect(Number(second![2])).toBeGreaterThanOrEqual(Number(first![2]));
      expect(log).toContain("sampling: 5, expected an object");
      const { blocks } = (await (await fetch(`${up.url}/api/cluster`)).json()) as any;
      expect(blocks.used).toBe(0);
    },
    limitMs,
  );

  it(
    "finishes what was accepted also when Redis is killed with it",
    async () => {
      const up = await TestUp.start(["--model", demoModel, "--stages", "2"]);
      undo.push(() => up.stop());
      const body = { ...text, max_tokens: 900, n: 8, seed: 5 };
      const ask = (init: RequestInit = {}) =>
        fetch(`${up.url}/v1/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
          ...init,
        });
      const expected = await (await ask()).json();
      const lost = ask().catch(() => null);
      const port = /:(\d+)/.exec(up.child("redis-server")!.command.join(" "))![1];
      const redis = new Redis(Number(port), "127.0.0.1", { lazyConnect: true });
      redis.on("error", () => undefined);
      await redis.connect();
      const [record] = await until("its record", async () => {
        const found = await ledger(redis);
        return found.size === 1 ? [...found.values()] : null;
      });
      // Redis writes its file to the disk once a second; a fast machine would have answered by then.
      up.kill("coordinator", "SIGSTOP");
      await new Promise((resolve) => setTimeout(resolve, 2_000));
      redis.disconnect();
      up.kill("coordinator");
      up.kill("redis-server");
      await lost;
      const found = await finished(up.url, record.id);
      expect(found.status).toBe("completed");
      expect(essence(found.response)).toEqual(essence(expected));
    },
    limitMs,
  );
});

describe("a coordinator that ends in order", () => {
  it(
    "ends what it has with an error and leaves nothing in the ledger",
    async () => {
      const server = await TestRedis.start();
      undo.push(() => server.stop());
      const redis = new Redis(server.url);
      undo.push(async () => redis.disconnect());
      const cluster = await TestCluster.start({ model: demoModel, stages: 2, redis: server });
      undo.push(() => cluster.stop());
      const answer = cluster.post("/v1/completions", { ...text, max_tokens: 900, n: 4, seed: 1 });
      await until("tokens in the ledger", async () => (await keysOf(redis, "tokens")).length === 4);
      // Without its worker nothing is finished while the coordinator drains.
      cluster.workers[1]!.kill("SIGKILL");
      cluster.coordinator.kill("SIGTERM");
      const { status, body } = await answer;
      expect([status, body.error.code]).toEqual([503, "draining"]);
      expect((await cluster.coordinator.exited).code).toBe(0);
      for (const kind of ["ledger", "tokens", "answer"]) expect(await keysOf(redis, kind)).toEqual([]);

      // Neither did the client's leaving: that cancels.
      cluster.startWorker(1);
      cluster.startCoordinator(Number(new URL(cluster.url).port));
      await cluster.ready();
      const left = new AbortController();
      const aborted = fetch(`${cluster.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...text, max_tokens: 900 }),
        signal: left.signal,
      }).catch(() => null);
      await until("its record", async () => (await keysOf(redis, "ledger")).length === 1);
      left.abort();
      await aborted;
      await until("it to be gone", async () => (await keysOf(redis, "ledger")).length === 0);
    },
    limitMs,
  );
});
