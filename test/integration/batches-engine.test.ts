import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import {
  batchUntil,
  createBatch,
  getBatch,
  hasEnded,
  linesOf,
  type OutputLine,
  requestLine,
  upload,
} from "../support/batches.js";
import { demoModel, TestCluster, until } from "../support/cluster.js";

const lineCount = 200;
const maxTokens = 8;

/** Greedy and sampled; several choices; one that is refused. */
function bodyOf(index: number): Record<string, unknown> {
  const body = { prompt: [5, 6, 7 + (index % 50)], max_tokens: maxTokens, ignore_eos: true };
  if (index === 77) return { ...body, max_tokens: -1 };
  if (index % 5 === 1) return { ...body, temperature: 0.9, seed: index, logprobs: 2 };
  if (index % 7 === 2) return { ...body, temperature: 0.9, seed: index, n: 3 };
  return { ...body, temperature: 0 };
}

const input = (count: number, from = 0) =>
  Array.from(
    { length: count },
    (_, i) => `${requestLine(`line ${from + i}`, bodyOf(from + i), "/v1/completions")}\n`,
  ).join("");

/** What has to be equal in every run. */
function essence({ custom_id, response, error }: OutputLine): unknown {
  const { choices, usage, error: refusal } = response?.body ?? {};
  return {
    custom_id,
    status: response?.status_code,
    choices,
    tokens: usage?.completion_tokens,
    refusal,
    error,
  };
}

/** All lines of both files that were answered, by custom_id. */
const answersOf = (lines: readonly OutputLine[]) =>
  new Map(lines.map((line) => [line.custom_id, essence(line)]));

describe("batches on a running cluster", () => {
  let cluster: TestCluster;
  let data: string;
  beforeAll(async () => {
    data = mkdtempSync(join(tmpdir(), "glm-relay-batches-"));
    cluster = await TestCluster.start({ model: demoModel, stages: 2, data });
  });
  afterAll(async () => {
    await cluster?.stop();
    rmSync(data, { recursive: true, force: true });
  });

  const begin = async (content: string, fields: Record<string, unknown> = {}) => {
    const file = await upload(cluster.url, content);
    return createBatch(cluster.url, file.id, { endpoint: "/v1/completions", ...fields });
  };
  const ended = (id: string, limitMs?: number) => batchUntil(cluster.url, id, hasEnded, limitMs);
  const filesOf = async (batch: BatchObject) => ({
    output: await linesOf(cluster.url, batch.output_file_id),
    errors: await linesOf(cluster.url, batch.error_file_id),
  });
  const begun = (id: string, count = 1) =>
    batchUntil(cluster.url, id, ({ request_counts: { completed } }) => completed >= count);
  const cancel = async (id: string) => cluster.post(`/v1/batches/${id}/cancel`, {});
  const foldersOf = (id: string) => readdirSync(join(data, "batches", id));
  const cleaned = (id: string) => until("the rest to be gone", () => foldersOf(id).join() === "batch.json");
  const restart = async () => {
    cluster.coordinator.kill("SIGKILL");
    await cluster.coordinator.exited;
    cluster.startCoordinator(Number(new URL(cluster.url).port));
    await cluster.ready();
  };

  it("answers every line once, in the order of the input, failures apart", async () => {
    const { id, status } = await begin(input(lineCount));
    expect(status).toBe("validating");
    const batch = await ended(id);
    expect(batch).toMatchObject({
      status: "completed",
      request_counts: { total: lineCount, completed: lineCount - 1, failed: 1 },
    });
    const { output, errors } = await filesOf(batch);
    const ids = Array.from({ length: lineCount }, (_, i) => `line ${i}`);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(ids.filter((id) => id !== "line 77"));
    expect(errors.map(({ custom_id }) => custom_id)).toEqual(["line 77"]);
    expect(errors[0]!.response!.status_code).toBe(400);
    const tokens = output.map(({ response }) => response!.body.usage.completion_tokens as number);
    expect(batch.usage.output_tokens).toBe(tokens.reduce((sum, count) => sum + count, 0));
    await cleaned(id);
    // Each as its endpoint would have answered it.
    for (const index of [0, 1, 2, 77]) {
      const { status, body } = await cluster.post("/v1/completions", bodyOf(index));
      const line = [...output, ...errors].find(({ custom_id }) => custom_id === `line ${index}`)!;
      expect(line.response!.status_code).toBe(status);
      expect(line.response!.body.choices).toEqual(body.choices);
      expect(line.response!.body.error).toEqual(body.error);
    }
  });

  it("makes one batch for one key, also after the coordinator was killed", async () => {
    const file = await upload(cluster.url, input(3));
    const body = { input_file_id: file.id, endpoint: "/v1/completions", completion_window: "24h" };
    const make = (more: object = {}) =>
      cluster.post("/v1/batches", { ...body, ...more }, { "idempotency-key": "run-1" });
    const made = await Promise.all([make(), make(), make()]);
    expect(made.map(({ status }) => status)).toEqual([200, 200, 200]);
    const { id } = made[0]!.body;
    expect(made.map(({ body }) => body.id)).toEqual([id, id, id]);
    await restart();
    const again = await make();
    expect([again.status, again.body.id]).toEqual([200, id]);
    const other = await make({ priority: 1 });
    const { code, param } = other.body.error;
    expect([other.status, code, param]).toEqual([409, "conflict", "idempotency-key"]);
    expect(other.headers.get("x-should-retry")).toBe("false");
    await ended(id);
  });

  it("makes no secret for webhooks that nobody allowed", () => {
    expect(readdirSync(data)).toContain("batches");
    expect(readdirSync(data)).not.toContain("webhook-secret");
  });

  it("draws the same for a line without a seed, whenever it is run again", async () => {
    const sampled = { prompt: [5, 6], max_tokens: 12, ignore_eos: true, temperature: 1.5 };
    const lines = ["a", "b"].map((name) => requestLine(name, sampled, "/v1/completions"));
    const { output } = await filesOf(await ended((await begin(lines.join("\n"))).id));
    const [a, b] = output.map(({ response }) => response!.body.choices[0].text);
    expect(a).not.toBe(b);
  });

  it("goes on through a killed coordinator, worker and Redis: one line per custom_id, the answers of a quiet run", async () => {
    const count = 1_500;
    const quiet = await ended((await begin(input(count))).id);
    const expected = await filesOf(quiet);
    const { id } = await begin(input(count));
    const kills: [string, () => Promise<unknown>][] = [
      ["coordinator", restart],
      [
        "worker",
        async () => {
          cluster.workers[1]!.kill("SIGKILL");
          await cluster.workers[1]!.exited;
          await cluster.revive();
        },
      ],
      [
        "Redis",
        async () => {
          await cluster.redis.kill();
          await cluster.redis.resume();
        },
      ],
    ];
    for (const [name, kill] of kills) {
      const { status, request_counts } = await begun(
        id,
        50 + kills.findIndex(([each]) => each === name) * 350,
      );
      expect(status, `${name}: ${request_counts.completed}`).toBe("in_progress");
      await kill();
    }
    const batch = await ended(id);
    expect(batch.request_counts).toEqual(quiet.request_counts);
    const { output, errors } = await filesOf(batch);
    expect(output.map(({ custom_id }) => custom_id)).toEqual(
      expected.output.map(({ custom_id }) => custom_id),
    );
    expect(answersOf(output)).toEqual(answersOf(expected.output));
    expect(answersOf(errors)).toEqual(answersOf(expected.errors));
    expect(batch.usage.output_tokens).toBe(quiet.usage.output_tokens);
  }, 180_000);

  it("is cancelled while it runs: what is answered stays, the rest says why it is not", async () => {
    const { id } = await begin(input(5_000));
    await begun(id, 100);
    const { status, body } = await cancel(id);
    expect(status).toBe(200);
    expect(body.status).toBe("cancelling");
    expect((await cancel(id)).status).toBe(200);
    const batch = await ended(id);
    expect(batch.status).toBe("cancelled");
    expect(batch.cancelling_at).not.toBeNull();
    const { output, errors } = await filesOf(batch);
    expect(output.length).toBe(batch.request_counts.completed);
    expect(output.length).toBeGreaterThanOrEqual(100);
    expect(new Set([...output, ...errors].map(({ custom_id }) => custom_id)).size).toBe(5_000);
    expect(output.length + errors.length).toBe(5_000);
    const unanswered = errors.filter(({ response }) => response === null);
    expect(unanswered.length).toBeGreaterThan(0);
    expect(new Set(unanswered.map(({ error }) => error!.code))).toEqual(new Set(["batch_cancelled"]));
    await cluster.until("nothing to run", ({ sequences }) => sequences.running + sequences.waiting === 0);
    const again = await cancel(id);
    expect([again.status, again.body.error.code]).toEqual([409, "conflict"]);
    expect(again.headers.get("x-should-retry")).toBe("false");
  });

  it("is cancelled in any state, also by a coordinator that is killed right after", async () => {
    const early = await begin(input(20_000));
    expect((await cancel(early.id)).body.status).toBe("cancelling");
    expect(await ended(early.id)).toMatchObject({ status: "cancelled", output_file_id: null });
    const { id } = await begin(input(3_000));
    await begun(id, 20);
    await cancel(id);
    await restart();
    const batch = await ended(id);
    expect(batch.status).toBe("cancelled");
    const { output, errors } = await filesOf(batch);
    expect(output.length).toBe(batch.request_counts.completed);
    expect(output.length + errors.length).toBe(3_000);
  });

  it("expires: no line begins behind its window", async () => {
    const { id } = await begin(input(20_000), { completion_window: "2s" });
    const batch = await ended(id);
    expect(batch.status).toBe("expired");
    expect(batch.expired_at!).toBeGreaterThanOrEqual(batch.expires_at);
    const { output, errors } = await filesOf(batch);
    expect(output.length + errors.length).toBe(20_000);
    expect(errors.at(-1)).toMatchObject({ response: null, error: { code: "batch_expired" } });
  });

  it("begins no line once its token budget is used", async () => {
    const budget = 2_000;
    const { id } = await begin(input(4_000), { token_budget: budget });
    const batch = await ended(id);
    expect(batch.status).toBe("completed");
    expect(batch.usage.total_tokens).toBeGreaterThanOrEqual(budget);
    const { total, completed, failed } = batch.request_counts;
    expect(completed + failed).toBe(total);
    const { output, errors } = await filesOf(batch);
    expect([output.length, errors.length]).toEqual([completed, failed]);
    expect(errors.at(-1)).toMatchObject({ response: null, error: { code: "token_budget_exceeded" } });
    // One line's more: a few tokens of prompt, and its reply.
    expect(batch.usage.total_tokens).toBeLessThan(budget + 2 * maxTokens + 32);
  });

  it("whose lines all fail is completed, without an output file", async () => {
    const bad = Array.from({ length: 50 }, (_, i) =>
      requestLine(`${i}`, { prompt: [-1 - i] }, "/v1/completions"),
    );
    const batch = await ended((await begin(bad.join("\n"))).id);
    expect(batch).toMatchObject({
      status: "completed",
      output_file_id: null,
      request_counts: { total: 50, completed: 0, failed: 50 },
    });
    const { errors } = await filesOf(batch);
    expect(errors.map(({ custom_id }) => custom_id)).toEqual(Array.from({ length: 50 }, (_, i) => `${i}`));
    expect(new Set(errors.map(({ response }) => response!.status_code))).toEqual(new Set([400]));
  });

  it("with a bad line fails before anything is run, and names it", async () => {
    const batch = await ended((await begin(`${input(10)}{"custom_id":"x"}\n`)).id);
    expect(batch).toMatchObject({ status: "failed", output_file_id: null, error_file_id: null });
    expect(batch.errors!.data).toEqual([
      expect.objectContaining({ line: 11, code: "missing_required_parameter", param: "method" }),
    ]);
    await cleaned(batch.id);
  });

  it("of a higher priority goes first, and interactive requests before all", async () => {
    const slow = await begin(input(3_000), { priority: 10 });
    await begun(slow.id, 10);
    const urgent = await begin(input(200, 10_000), { priority: -10 });
    const { status } = await cluster.post("/v1/completions", bodyOf(0));
    expect(status).toBe(200);
    await ended(urgent.id);
    const { request_counts } = await getBatch(cluster.url, slow.id);
    expect(request_counts.completed).toBeLessThan(request_counts.total);
    await cancel(slow.id);
    await ended(slow.id);
  });

  it("leaves neither jobs nor ledgers, and is counted", async () => {
    const page = await (await fetch(`${cluster.url}/metrics`)).text();
    expect(page).toMatch(/glm_relay_batch_lines_total\{model="[^"]+",result="completed"\} [1-9]/);
    expect(page).toMatch(/glm_relay_batches\{model="[^"]+",status="completed"\} [1-9]/);
    expect(page).toMatch(/glm_relay_batches\{model="[^"]+",status="in_progress"\} 0/);
    for (const id of readdirSync(join(data, "batches"))) await cleaned(id);
    const redis = new Redis(cluster.redis.url);
    const keys = await redis.keys("*batch-lines:batch_*");
    redis.disconnect();
    expect(keys).toEqual([]);
  });

  it("outlives a coordinator that is stopped in the middle of it", async () => {
    const { id } = await begin(input(3_000));
    await begun(id, 100);
    cluster.coordinator.kill("SIGTERM");
    expect((await cluster.coordinator.exited).code).toBe(0);
    cluster.startCoordinator(Number(new URL(cluster.url).port));
    await cluster.ready();
    const batch = await ended(id);
    expect(batch.request_counts).toMatchObject({ total: 3_000, completed: 2_999, failed: 1 });
  }, 120_000);
});
