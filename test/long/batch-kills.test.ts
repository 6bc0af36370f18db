/**
 * A batch of 50,000 lines while kill -9 hits the coordinator, each worker and Redis in turn: one line per custom_id,
 * and each answer is that of an undisturbed run. That run also shows whether the coordinator's memory stays flat.
 * GLM_RELAY_SEED replays a run's choices (not its timing).
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { seededRandom } from "../native/support.js";
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
import { demoModel, TestCluster } from "../support/cluster.js";

const seed = Number(process.env.GLM_RELAY_SEED ?? 20_261_126);
const random = seededRandom(seed);
const below = (bound: number) => Math.floor(random() * bound);

const lineCount = 50_000;
const stages = 2;
const kills = 24;
const limitMs = 600_000;
const sampleMs = 250;
/** Between a kill and the start of the next process. */
const mostPauseMs = 300;
/**
 * What the coordinator's memory may grow by from the middle third of a run to the last. It does not grow; V8 takes
 * and gives back some tens of MB when it likes.
 */
const growthMax = 0.15;

/** Greedy, sampled with a seed, and some that are refused. */
function bodyOf(index: number): Record<string, unknown> {
  const body = {
    prompt: [1 + below(1_500), 1 + below(1_500), 1 + below(1_500)],
    max_tokens: 1 + (index % 4),
  };
  if (index % 1_000 === 999) return { ...body, max_tokens: -1 };
  return index % 2 === 0 ? { ...body, temperature: 0 } : { ...body, temperature: 0.9, seed: index };
}
const input = Array.from(
  { length: lineCount },
  (_, index) => `${requestLine(`line ${index}`, bodyOf(index), "/v1/completions")}\n`,
).join("");

/** What has to be equal in every run. */
function essence({ id, custom_id, response, error }: OutputLine): string {
  expect(id).toMatch(/^batch_req_[0-9a-f]{32}$/);
  const { choices, usage, error: refusal } = response?.body ?? {};
  const equal = {
    custom_id,
    status: response?.status_code,
    choices,
    tokens: usage?.completion_tokens,
    refusal,
    error,
  };
  return JSON.stringify(equal);
}

describe(`${lineCount} lines`, () => {
  let cluster: TestCluster;
  let data: string;
  let expected: string[];
  let undisturbed: BatchObject;
  beforeAll(async () => {
    data = mkdtempSync(join(tmpdir(), "glm-relay-batch-kills-"));
    cluster = await TestCluster.start({ model: demoModel, stages, data });
  });
  afterAll(async () => {
    await cluster?.stop();
    if (data !== undefined) rmSync(data, { recursive: true, force: true });
  });

  const begin = async () => {
    const file = await upload(cluster.url, input);
    return (await createBatch(cluster.url, file.id, { endpoint: "/v1/completions" })).id;
  };
  /** Both files, in the order of the input. */
  const answersOf = async (batch: BatchObject) => {
    const lines = [
      ...(await linesOf(cluster.url, batch.output_file_id)),
      ...(await linesOf(cluster.url, batch.error_file_id)),
    ];
    const place = (line: OutputLine) => Number(line.custom_id.slice("line ".length));
    return lines.sort((a, b) => place(a) - place(b)).map(essence);
  };

  it(
    "undisturbed: all are answered, and the coordinator's memory stays flat",
    async () => {
      const rssMiB = () => {
        const status = readFileSync(`/proc/${cluster.coordinator.pid}/status`, "utf8");
        return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1_024;
      };
      const began = performance.now();
      const id = await begin();
      const samples: number[] = [];
      for (
        let batch = await getBatch(cluster.url, id);
        !hasEnded(batch);
        batch = await getBatch(cluster.url, id)
      ) {
        if (batch.status === "in_progress") samples.push(rssMiB());
        await sleep(sampleMs);
      }
      undisturbed = await getBatch(cluster.url, id);
      const seconds = (performance.now() - began) / 1_000;
      expected = await answersOf(undisturbed);
      expect(expected).toHaveLength(lineCount);
      expect(undisturbed.request_counts).toEqual({ total: lineCount, completed: lineCount - 50, failed: 50 });
      const third = Math.floor(samples.length / 3);
      const middle = median(samples.slice(third, 2 * third));
      const last = median(samples.slice(2 * third));
      const growth = last / middle - 1;
      console.log(
        `${lineCount} lines in ${seconds.toFixed(1)} s, ${(lineCount / seconds).toFixed(0)} lines/s; RSS of the ` +
          `coordinator: middle third ${middle.toFixed(1)} MiB, last third ${last.toFixed(1)} MiB, ` +
          `${(100 * growth).toFixed(1)} %, most ${Math.max(...samples).toFixed(1)} MiB`,
      );
      expect(growth).toBeLessThan(growthMax);
    },
    limitMs,
  );

  it(
    `${kills} kills: one line per custom_id, each answer that of the undisturbed run`,
    async () => {
      const port = Number(new URL(cluster.url).port);
      const killed: Record<string, number> = {};
      const began = performance.now();
      const id = await begin();
      const pause = () => sleep(below(mostPauseMs));
      const victims: [string, () => Promise<void>][] = [
        [
          "coordinator",
          async () => {
            cluster.coordinator.kill("SIGKILL");
            await cluster.coordinator.exited;
            await pause();
            cluster.startCoordinator(port);
          },
        ],
        ...Array.from({ length: stages }, (_, index): [string, () => Promise<void>] => [
          `worker ${index}`,
          async () => {
            cluster.workers[index]!.kill("SIGKILL");
            await cluster.workers[index]!.exited;
            await pause();
            cluster.startWorker(index);
          },
        ]),
        [
          "Redis",
          async () => {
            await cluster.redis.kill();
            await pause();
            await cluster.redis.resume();
          },
        ],
      ];
      for (let kill = 0; kill < kills; kill++) {
        const due = Math.floor(((kill + 0.5) * lineCount) / kills);
        const reached = ({ request_counts: { completed }, status }: BatchObject) =>
          completed >= due || status !== "in_progress";
        const inProgress = ({ status }: BatchObject) => status !== "validating";
        await batchUntil(cluster.url, id, inProgress, limitMs);
        const batch = await batchUntil(cluster.url, id, reached, limitMs);
        // A coordinator that has just been started shows the counts of the last one until it has read the ledgers.
        expect(batch.status, `before kill ${kill}`).toBe("in_progress");
        const [name, act] = victims[kill % victims.length]!;
        await act();
        killed[name] = (killed[name] ?? 0) + 1;
      }
      const batch = await batchUntil(cluster.url, id, hasEnded, limitMs);
      const seconds = (performance.now() - began) / 1_000;
      console.log(`${kills} kills in ${seconds.toFixed(1)} s: ${JSON.stringify(killed)}, seed ${seed}`);
      expect(batch.request_counts).toEqual(undisturbed.request_counts);
      const answers = await answersOf(batch);
      expect(answers).toHaveLength(lineCount);
      for (const [line, answer] of answers.entries()) {
        if (answer !== expected[line]) expect(answer, `line ${line}, seed ${seed}`).toBe(expected[line]);
      }
    },
    limitMs,
  );
});

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
