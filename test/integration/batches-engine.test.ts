import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
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
import { TestCluster, tinyModel, until } from "../support/cluster.js";

const lineCount = 200;

/** Greedy and sampled; several choices; one that is refused. */
function bodyOf(index: number): Record<string, unknown> {
  const body = { prompt: [5, 6, 7 + (index % 50)], max_tokens: 24, ignore_eos: true };
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

describe("batches on a running cluster", () => {
  let cluster: TestCluster;
  let data: string;
  beforeAll(async () => {
    data = mkdtempSync(join(tmpdir(), "glm-relay-batches-"));
    cluster = await TestCluster.start({ model: tinyModel, stages: 2, data });
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
    expect(readdirSync(join(data, "batches", id))).toEqual(["batch.json"]);
  });
});
