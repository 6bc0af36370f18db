import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { demoModel, TestCluster } from "../support/cluster.js";

/** Eight choices of 900 tokens: long enough to be in the middle of it, also on a fast machine. */
const long = { prompt: [11, 12, 13], max_tokens: 900, ignore_eos: true, temperature: 0, n: 8 };

describe("a worker killed with SIGKILL in the middle of an answer", () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: demoModel, stages: 4 });
  });
  afterAll(async () => {
    await cluster?.stop();
  });
  beforeEach(() => cluster.revive());

  it.each([0, 1, 3])("stage %i: the answer is the same as without it, in a new epoch", async (index) => {
    const before = await cluster.view();
    const expected = await cluster.post("/v1/completions", long);
    const running = cluster.post("/v1/completions", long);
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    await sleep(100);
    cluster.workers[index]!.kill("SIGKILL");
    await cluster.until("the loss", (view) => view.state !== "ready");
    const waiting = await cluster.post("/v1/completions", long);
    expect([waiting.status, waiting.body.error.code]).toEqual([503, "model_loading"]);
    expect(waiting.headers.get("retry-after")).toMatch(/^\d+$/);

    cluster.startWorker(index);
    const { status, body } = await running;
    expect(status).toBe(200);
    expect(body.choices).toEqual(expected.body.choices);
    const after = await cluster.view();
    expect(after.epoch!.term).toBe(before.epoch!.term);
    expect(after.epoch!.plan).toBeGreaterThan(before.epoch!.plan);
    await cluster.until("all blocks to be back", (view) => view.blocks.used === 0);
  });

  it("a stream pauses and goes on, byte for byte", async () => {
    const stream = async () => {
      const response = await fetch(`${cluster.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...long, temperature: 1, seed: 5, logprobs: 2, stream: true }),
      });
      expect(response.status).toBe(200);
      return response.body!.pipeThrough(new TextDecoderStream()).getReader();
    };
    const choicesOf = (text: string) => {
      const events = text.split("\n\n").filter((event) => event.startsWith("data: {"));
      return events.map((event) => JSON.parse(event.slice("data: ".length)).choices[0]);
    };
    /** Steps of several choices may come in another order: each choice's own order counts. */
    const byChoice = (text: string) =>
      choicesOf(text).sort((a: { index: number }, b: { index: number }) => a.index - b.index);
    const all = async (reader: Awaited<ReturnType<typeof stream>>, begin = "") => {
      let text = begin;
      for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
      return text;
    };
    const expected = await all(await stream());
    const reader = await stream();
    const begin = (await reader.read()).value!;
    cluster.workers[2]!.kill("SIGKILL");
    await cluster.workers[2]!.exited;
    cluster.startWorker(2);
    const text = await all(reader, begin);
    expect(byChoice(text)).toEqual(byChoice(expected));
    expect(text.trim().endsWith("data: [DONE]")).toBe(true);
  });

  it("a worker that stands still (SIGSTOP) loses its lease and its place", async () => {
    const before = await cluster.view();
    cluster.workers[1]!.kill("SIGSTOP");
    await cluster.until("the loss", (view) => view.counters.workersLost > before.counters.workersLost, 5_000);
    cluster.workers[1]!.kill("SIGCONT");
    const after = await cluster.until("the cluster to be ready again", (view) => view.state === "ready");
    expect(after.epoch!.plan).toBeGreaterThan(before.epoch!.plan);
    expect((await cluster.post("/v1/completions", { ...long, max_tokens: 3 })).status).toBe(200);
  });
});

describe("a coordinator killed with SIGKILL", () => {
  it("comes back with a higher term, and the same workers join it again", async () => {
    const cluster = await TestCluster.start({ model: demoModel, stages: 2 });
    try {
      const before = await cluster.view();
      cluster.coordinator.kill("SIGKILL");
      await cluster.coordinator.exited;
      cluster.startCoordinator(Number(new URL(cluster.url).port));
      await cluster.ready();
      const after = await cluster.view();
      expect(after.epoch!.term).toBeGreaterThan(before.epoch!.term);
      expect(after.workers.map((worker) => worker.pid)).toEqual(before.workers.map((worker) => worker.pid));
      expect((await cluster.post("/v1/completions", { ...long, max_tokens: 3 })).status).toBe(200);
    } finally {
      await cluster.stop();
    }
  });
});

describe("Redis lost while running", () => {
  it("gives 503 with Retry-After at once, lets running answers finish, and recovers", async () => {
    const cluster = await TestCluster.start({ model: demoModel, stages: 2 });
    try {
      const running = cluster.post("/v1/completions", { ...long, max_tokens: 600 });
      await cluster.until("the request to run", (view) => view.sequences.running > 0);
      await cluster.redis.kill();
      await cluster.until("the loss to be noticed", (view) => !view.redisUp, 5_000);
      const asked = performance.now();
      const refused = await cluster.post("/v1/completions", { ...long, max_tokens: 3 });
      expect(performance.now() - asked).toBeLessThan(2_000);
      expect([refused.status, refused.body.error.code]).toEqual([503, "queue_unavailable"]);
      expect(refused.headers.get("retry-after")).toMatch(/^\d+$/);
      expect((await fetch(`${cluster.url}/readyz`)).status).toBe(503);
      expect((await fetch(`${cluster.url}/livez`)).status).toBe(200);
      expect((await running).status).toBe(200);
      await cluster.redis.resume();
      await cluster.until("Redis to be back", (view) => view.redisUp);
      const again = await cluster.post("/v1/completions", { ...long, max_tokens: 3 });
      expect(again.status).toBe(200);
    } finally {
      await cluster.stop();
    }
  });
});
