/** What a running cluster shows of itself: probes and metrics of every process, and one request in all logs. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import {
  linesOf as answersOf,
  batchUntil,
  createBatch,
  hasEnded,
  requestLine,
  upload,
} from "../support/batches.js";
import {
  demoModel,
  freePort,
  TestCluster,
  TestProcess,
  TestRedis,
  tinyModel,
  until,
} from "../support/cluster.js";
import { readDocumented, readPage } from "../support/metrics-page.js";

const main = join(packageRoot, "dist/cli/main.js");

interface Line {
  level: number;
  msg: string;
  requestId?: string;
  completionId?: string;
  [field: string]: unknown;
}

function linesOf(process: TestProcess): Line[] {
  return process.output
    .split("\n")
    .filter((line) => line.startsWith("{") && line.endsWith("}"))
    .map((line) => JSON.parse(line) as Line);
}

const about = (process: TestProcess, requestId: string): Line[] =>
  linesOf(process).filter((line) => line.requestId === requestId);

async function get(address: string, path: string): Promise<{ status: number; body: string }> {
  const response = await fetch(`http://${address}${path}`);
  return { status: response.status, body: await response.text() };
}

const addressesOf = ({ probeAddress, workers }: ClusterView): string[] =>
  [probeAddress, ...workers.map((worker) => worker.probeAddress)].map((address) => {
    if (address === null) throw new Error("a process serves no probes");
    return address;
  });

describe("a cluster with probes and debug logs", () => {
  let cluster: TestCluster;
  let data: string;
  beforeAll(async () => {
    data = mkdtempSync(join(tmpdir(), "glm-relay-observed-"));
    cluster = await TestCluster.start({ model: demoModel, stages: 2, probes: true, logLevel: "debug", data });
  });
  afterAll(async () => {
    await cluster?.stop();
    rmSync(data, { recursive: true, force: true });
  });

  it("answers livez, readyz and metrics on a port of every process", async () => {
    const addresses = addressesOf(await cluster.view());
    expect(new Set(addresses).size).toBe(3);
    for (const address of addresses) {
      expect(address).toMatch(/^127\.0\.0\.1:\d+$/);
      expect((await get(address, "/livez")).status).toBe(200);
      expect(await get(address, "/readyz")).toEqual({ status: 200, body: "ok\n" });
    }
  });

  it("serves documented metrics only, and those that a request moves have moved", async () => {
    const request = { prompt: [11, 12], max_tokens: 8, ignore_eos: true };
    expect((await cluster.post("/v1/completions", request)).status).toBe(200);
    const [coordinator, ...workers] = addressesOf(await cluster.view());
    const page = (await get(coordinator!, "/metrics")).body;
    const names = (text: string) => [...readPage(text).keys()].sort();
    expect(names(page)).toEqual([...readDocumented(["Coordinator", "Aliases"], []).keys()].sort());
    const value = (text: string, series: string) =>
      Number(new RegExp(`^${series}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(text)?.[1]);
    for (const series of [
      "glm_relay_request_queue_seconds_count",
      "glm_relay_request_prefill_seconds_count",
      "glm_relay_request_decode_seconds_count",
      "glm_relay_redis_roundtrip_seconds_count",
      "vllm:request_queue_time_seconds_count",
    ]) {
      expect([series, value(page, series)]).toEqual([series, expect.toSatisfy((count) => count > 0)]);
    }
    await until("the counts of jobs", async () =>
      (await get(coordinator!, "/metrics")).body.includes(
        'glm_relay_queue_jobs{queue="requests",state="prioritized"} 0',
      ),
    );
    expect(value(page, "glm_relay_queue_oldest_age_seconds")).toBe(0);
    for (const address of workers) {
      const { body } = await get(address, "/metrics");
      expect(names(body)).toEqual([...readDocumented(["Worker"], []).keys()].sort());
      for (const series of [
        "glm_relay_stage_busy_seconds_total",
        "glm_relay_stage_idle_seconds_total",
        "glm_relay_link_send_seconds_count",
        "glm_relay_link_credits",
      ]) {
        expect([series, value(body, series)]).toEqual([series, expect.toSatisfy((count) => count > 0)]);
      }
    }
  });

  it("shows one request under its id in the log of every process, without what was said", async () => {
    const requestId = "trace:7/observed=1";
    const headers = { "x-request-id": requestId, authorization: "Bearer sk-very-secret" };
    const said = "What is the capital of Japan?";
    const { status, body } = await cluster.post(
      "/v1/chat/completions",
      { messages: [{ role: "user", content: said }], n: 2, temperature: 0 },
      headers,
    );
    expect(status).toBe(200);
    const [coordinator, ...workers] = [cluster.coordinator, ...cluster.workers];
    await until("the line of the response", () =>
      about(coordinator!, requestId).some(({ msg }) => msg === "response"),
    );
    const lines = about(coordinator!, requestId);
    expect(lines.map(({ msg }) => msg).sort()).toEqual([
      "request admitted",
      "request finished",
      "request queued",
      "response",
    ]);
    for (const { completionId } of lines) expect(completionId).toBe(body.id);
    expect(lines.find(({ msg }) => msg === "response")).toMatchObject({
      level: 30,
      route: "/v1/chat/completions",
      status: 200,
      promptTokens: body.usage.prompt_tokens,
      completionTokens: body.usage.completion_tokens,
    });
    for (const [stage, worker] of workers.entries()) {
      const first = await until("the first rows of both choices", () => {
        const found = about(worker, requestId);
        return found.length >= 2 ? found : null;
      });
      expect(first.map(({ msg, stage }) => [msg, stage])).toEqual([
        ["first rows of a sequence", stage],
        ["first rows of a sequence", stage],
      ]);
    }
    const answer: string = body.choices[0].message.content;
    expect(answer.length).toBeGreaterThan(2);
    for (const process of [coordinator!, ...workers]) {
      for (const secret of [said, answer, "very-secret"]) expect(process.output).not.toContain(secret);
    }
  });

  it("shows a batch and its lines under their ids in the log, without what they say", async () => {
    const said = "What is the capital of Canada?";
    const body = { messages: [{ role: "user", content: said }], temperature: 0 };
    const file = await upload(cluster.url, `${requestLine("a private name", body)}\n`);
    const { id } = await createBatch(cluster.url, file.id, { metadata: { note: "a private note" } });
    const batch = await batchUntil(cluster.url, id, hasEnded);
    const [line] = await answersOf(cluster.url, batch.output_file_id);
    const answer: string = line!.response!.body.choices[0].message.content;
    expect(answer.length).toBeGreaterThan(2);
    const { coordinator, workers } = cluster;
    expect(linesOf(coordinator).some(({ batchId }) => batchId === id)).toBe(true);
    expect(about(coordinator, line!.id).map(({ msg }) => msg)).toContain("request admitted");
    for (const process of [coordinator, ...workers]) {
      for (const secret of [said, answer, "a private name", "a private note"]) {
        expect(process.output).not.toContain(secret);
      }
    }
  });

  it("logs a client that left as 499, and names the requests that a lost worker interrupted", async () => {
    const long = { prompt: [11, 12, 13], max_tokens: 900, ignore_eos: true, temperature: 0, n: 8 };
    const leaving = new AbortController();
    const left = fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-request-id": "leaves" },
      body: JSON.stringify(long),
      signal: leaving.signal,
    }).catch(() => null);
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    leaving.abort();
    await left;
    await until("the cancelled request's lines", () => {
      const messages = about(cluster.coordinator, "leaves").map(({ msg }) => msg);
      return messages.includes("request cancelled") && messages.includes("response");
    });
    expect(about(cluster.coordinator, "leaves").find(({ msg }) => msg === "response")).toMatchObject({
      status: 499,
      code: "cancelled",
    });
    await cluster.until("its sequences to end", (view) => view.sequences.running === 0);

    const interrupted = cluster.post("/v1/completions", long, { "x-request-id": "interrupted" });
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    await sleep(100);
    cluster.workers[1]!.kill("SIGKILL");
    const line = await until("the line about the loss", () =>
      linesOf(cluster.coordinator).find(({ msg }) => msg === "requests were interrupted"),
    );
    expect(line).toMatchObject({ code: "worker_lost", count: 1, requestIds: ["interrupted"] });

    // Alive all the time, ready not before the first token of the next pipeline.
    const { probeAddress } = await cluster.view();
    expect((await get(probeAddress!, "/livez")).status).toBe(200);
    expect(await get(probeAddress!, "/readyz")).toMatchObject({
      status: 503,
      body: expect.stringMatching(/^the model is not being served: ./),
    });
    await cluster.revive();
    expect((await interrupted).status).toBe(200);
    expect((await get(probeAddress!, "/readyz")).status).toBe(200);
    const page = (await get(probeAddress!, "/metrics")).body;
    expect(page).toMatch(/glm_relay_recovery_seconds_count\{model="[^"]+",reason="worker_lost"\} 1/);
    expect(page).toMatch(/glm_relay_workers_lost_total\{model="[^"]+",reason="disconnected"\} 1/);
    expect(page).toMatch(/glm_relay_placements_total\{model="[^"]+",reason="worker_lost"\} 1/);
  });
});

describe("a coordinator that still waits for its workers", () => {
  it("is alive and not ready, and says why", async () => {
    const redis = await TestRedis.start();
    const port = await freePort();
    const args = [main, "coordinator", "--model", tinyModel, "--stages", "2", "--redis", redis.url];
    args.push("--port", "0", "--probe-port", `${port}`);
    const coordinator = new TestProcess("coordinator", process.execPath, args);
    const address = `127.0.0.1:${port}`;
    try {
      await until("the probe port", () => get(address, "/livez").catch(() => null));
      expect((await get(address, "/livez")).status).toBe(200);
      const { status, body } = await get(address, "/readyz");
      expect([status, body]).toEqual([503, expect.stringMatching(/starting|0 of 2 have joined/)]);
      const page = await until("the whole page", async () => {
        const { body } = await get(address, "/metrics");
        return body.includes("glm_relay_stages{") ? body : null;
      });
      expect(page).toContain('glm_relay_stages{model="chatglm3-tiny",pipeline="0",state="placed"} 0');
      expect((await get(address, "/readyz")).body).toContain("waiting for workers: 0 of 2 have joined");
    } finally {
      coordinator.kill("SIGKILL");
      await coordinator.exited;
      await redis.stop();
    }
  });
});
