import { request as httpRequest } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, TestCluster } from "../support/cluster.js";

const generate = (tokens: number, extra: Record<string, unknown> = {}) => ({
  prompt: [11, 12, 13],
  max_tokens: tokens,
  ignore_eos: true,
  temperature: 0,
  ...extra,
});

describe("serving", () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    // By measured times a busy machine may find one micro-batch to be the fastest.
    cluster = await TestCluster.start({ model: demoModel, stages: 2, microBatches: 2 });
  });
  afterAll(async () => {
    await cluster?.stop();
  });

  it("answers 64 concurrent requests, each as if it were alone", async () => {
    const prompts = Array.from({ length: 64 }, (_, index) => [20 + index, 7, 30]);
    const alone = await cluster.post("/v1/completions", generate(12, { prompt: prompts[40] }));
    const all = await Promise.all(
      prompts.map((prompt) => cluster.post("/v1/completions", generate(12, { prompt }))),
    );
    expect(all.map(({ status }) => status)).toEqual(prompts.map(() => 200));
    expect(all[40]!.body.choices[0].text).toBe(alone.body.choices[0].text);
    expect(new Set(all.map(({ body }) => body.choices[0].text)).size).toBeGreaterThan(1);
    const idle = await cluster.until("all blocks to be free", (view) => view.blocks.used === 0);
    expect(idle.sequences).toEqual({ running: 0, waiting: 0 });
  });

  it("has more than one micro-batch in flight while several sequences run", async () => {
    const long = Promise.all(
      [1, 2, 3].map((n) => cluster.post("/v1/completions", generate(300, { prompt: [n] }))),
    );
    await cluster.until("two micro-batches at once", (view) => view.microBatchesInFlight >= 2);
    await long;
  });

  it("learns from finished steps what stages and hops take", async () => {
    // Far more than 32 steps have come back by now.
    const { timing, stages } = await cluster.view();
    expect(timing.stages).toHaveLength(stages.length);
    for (const { baseMs, rowMs, keyMs } of timing.stages) expect(baseMs + rowMs + keyMs).toBeGreaterThan(0);
    expect(timing.hopMs).toBeGreaterThan(0);
    expect(timing.rowBudget).toBeGreaterThan(0);
    expect(timing.itlTargetMs).toBe(200);
  });

  it.each([true, false])("frees the blocks of a client that leaves (streaming: %s)", async (stream) => {
    const body = JSON.stringify(generate(900, { stream }));
    const options = { method: "POST", headers: { "content-type": "application/json" } };
    const request = httpRequest(`${cluster.url}/v1/completions`, options);
    request.on("error", () => {});
    request.end(body);
    await cluster.until("the request to run", (view) => view.sequences.running === 1);
    request.destroy();
    const started = performance.now();
    await cluster.until(
      "its blocks to be free",
      (view) => view.blocks.used === 0 && view.sequences.running === 0,
    );
    expect(performance.now() - started).toBeLessThan(2_000);
  });

  it("counts what it does in /metrics", async () => {
    await cluster.post("/v1/completions", generate(5));
    const text = await (await fetch(`${cluster.url}/metrics`)).text();
    const value = (name: string) =>
      Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(text)?.[1]);
    expect(value("glm_relay_stages")).toBe(2);
    expect(value("glm_relay_redis_up")).toBe(1);
    expect(value("glm_relay_generation_tokens_total")).toBeGreaterThan(64 * 12);
    expect(text).toMatch(/^vllm:num_requests_running/m);
  });

  it("keeps every worker while the coordinator's event loop stands still for three seconds", async () => {
    const before = await cluster.view();
    cluster.coordinator.kill("SIGSTOP");
    await sleep(3_000);
    cluster.coordinator.kill("SIGCONT");
    await sleep(1_000);
    const after = await cluster.view();
    expect(after.counters.workersLost).toBe(before.counters.workersLost);
    expect(after.epoch).toEqual(before.epoch);
    expect((await cluster.post("/v1/completions", generate(3))).status).toBe(200);
  });
});

describe("SIGTERM", () => {
  it("finishes what runs, refuses what comes, and exits 0 within 10 s with nothing left behind", async () => {
    const cluster = await TestCluster.start({ model: demoModel, stages: 2 });
    const running = cluster.post("/v1/completions", generate(400));
    await cluster.until("the request to run", (view) => view.sequences.running === 1);
    const started = performance.now();
    cluster.coordinator.kill("SIGTERM");
    await cluster.until("draining", (view) => view.state === "draining", 2_000);
    const refused = await cluster.post("/v1/completions", generate(3));
    expect([refused.status, refused.body.error.code]).toEqual([503, "draining"]);
    const { status, body } = await running;
    expect([status, body.usage.completion_tokens]).toEqual([200, 400]);
    expect((await cluster.coordinator.exited).code).toBe(0);
    expect(await cluster.stop()).toEqual([0, 0, 0]);
    expect(performance.now() - started).toBeLessThan(10_000);
  });
});
