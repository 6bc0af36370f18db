import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import { demoModel, TestCluster, TestProcess, until } from "../support/cluster.js";

const main = join(packageRoot, "dist/cli/main.js");
const lineCount = 60;
/** Long enough that a run is still in the middle of its work when it, or a worker, is killed. */
const maxTokens = 120;

/** Several runs on a machine that has much else to do. */
const limitMs = 180_000;

/** Both endpoints, greedy and sampled; one line that the API refuses. */
function requestLine(index: number): Record<string, unknown> {
  const sampling = index % 2 === 0 ? { temperature: 0 } : { temperature: 1, seed: index };
  const common = { max_tokens: maxTokens, ignore_eos: true, ...sampling };
  const request =
    index % 3 === 0
      ? { url: "/v1/completions", body: { prompt: [11, 12, 13 + index], ...common } }
      : {
          url: "/v1/chat/completions",
          body: { messages: [{ role: "user", content: `${index} + 7 = ?` }], ...common },
        };
  if (index === 31) request.body.max_tokens = 0;
  return { custom_id: `line ${index}`, method: "POST", ...request };
}

describe(
  "a batch through a running cluster",
  () => {
    let cluster: TestCluster;
    let folder: string;
    let input: string;
    let undisturbed: Map<string, unknown>;
    beforeAll(async () => {
      folder = mkdtempSync(join(tmpdir(), "glm-relay-batch-"));
      input = join(folder, "in.jsonl");
      writeFileSync(
        input,
        Array.from({ length: lineCount }, (_, index) => `${JSON.stringify(requestLine(index))}\n`).join(""),
      );
      cluster = await TestCluster.start({ model: demoModel, stages: 2 });
      const output = join(folder, "undisturbed.jsonl");
      const run = startRun(output);
      expect((await run.exited).code).toBe(1);
      expect(summaryOf(run)).toMatchObject({ ...wholeCounts, skipped: 0, retries: 0 });
      undisturbed = answersOf(output);
    }, limitMs);
    afterAll(async () => {
      await cluster?.stop();
      rmSync(folder, { recursive: true, force: true });
    });
    beforeEach(() => cluster.revive());

    /** What every run comes to, in the end: all lines but the refused one answered in full. */
    const wholeCounts = {
      total: lineCount,
      done: lineCount - 1,
      failed: 1,
      remaining: 0,
      completion_tokens: (lineCount - 1) * maxTokens,
    };

    function startRun(output: string): TestProcess {
      const args = [
        main,
        "batch",
        "run",
        input,
        output,
        "--url",
        cluster.url,
        "--concurrency",
        "8",
        "--json",
      ];
      return new TestProcess("batch run", process.execPath, args);
    }

    function summaryOf(run: TestProcess): Record<string, number> {
      const line = /^\{.*\}$/m.exec(run.output);
      if (line === null) throw new Error(`no summary:\n${run.output}`);
      return JSON.parse(line[0]) as Record<string, number>;
    }

    /** By custom_id, without what differs from request to request. @throws for a second line of an id. */
    function answersOf(output: string): Map<string, unknown> {
      const answers = new Map<string, unknown>();
      for (const text of readFileSync(output, "utf8").trimEnd().split("\n")) {
        const { custom_id, response, error } = JSON.parse(text);
        if (answers.has(custom_id)) throw new Error(`two lines of ${custom_id}`);
        const { choices, usage, error: refusal } = response.body;
        // How much of a prompt was found computed depends on what ran before.
        const tokens = usage && [usage.prompt_tokens, usage.completion_tokens];
        answers.set(custom_id, { status: response.status_code, choices, tokens, refusal, error });
      }
      return answers;
    }

    async function linesWritten(run: TestProcess, output: string, count: number): Promise<void> {
      await until(
        `${count} lines of ${output}`,
        () => {
          if (!run.alive) throw new Error(`the run has ended:\n${run.output}`);
          try {
            return readFileSync(output, "utf8").split("\n").length > count;
          } catch {
            return false;
          }
        },
        limitMs,
        () => run.output,
      );
    }

    it("answers each line once, refused ones with their error", () => {
      expect(undisturbed.size).toBe(lineCount);
      expect(undisturbed.get("line 31")).toMatchObject({
        status: 400,
        refusal: { code: "invalid_value", param: "max_tokens" },
      });
      expect([...undisturbed.values()].filter((answer: any) => answer.status === 200)).toHaveLength(
        lineCount - 1,
      );
    });

    it("killed half-way and run again, has one line per id, exact counts and the same answers", async () => {
      const output = join(folder, "killed.jsonl");
      const first = startRun(output);
      await linesWritten(first, output, 15);
      first.kill("SIGKILL");
      await first.exited;
      const { length } = readFileSync(output, "utf8").split("\n");
      expect(length - 1).toBeLessThan(lineCount);
      // As a power failure in the middle of a write would leave it.
      appendFileSync(output, '{"id":"batch_req_0123","custom_id":"line');
      const second = startRun(output);
      await second.exited;
      expect(summaryOf(second)).toMatchObject({ ...wholeCounts, skipped: length - 1 });
      expect(answersOf(output)).toEqual(undisturbed);
    });

    it("loses nothing when a worker is killed, and gives the same answers", async () => {
      const output = join(folder, "worker.jsonl");
      const run = startRun(output);
      await linesWritten(run, output, 15);
      cluster.workers[1]!.kill("SIGKILL");
      await cluster.until("the loss", (view) => view.state !== "ready");
      cluster.startWorker(1);
      await run.exited;
      // Those that ran go on; only what was sent meanwhile is tried again.
      expect(summaryOf(run)).toMatchObject(wholeCounts);
      expect(answersOf(output)).toEqual(undisturbed);
    });

    it("loses nothing when the coordinator is killed, and gives the same answers", async () => {
      const output = join(folder, "coordinator.jsonl");
      const run = startRun(output);
      await linesWritten(run, output, 15);
      cluster.coordinator.kill("SIGKILL");
      await cluster.coordinator.exited;
      cluster.startCoordinator(Number(new URL(cluster.url).port));
      await run.exited;
      const summary = summaryOf(run);
      expect(summary).toMatchObject(wholeCounts);
      expect(summary.retries).toBeGreaterThan(0);
      expect(answersOf(output)).toEqual(undisturbed);
      // The new coordinator has also finished what the old one had; nobody fetches those answers.
      const redis = new Redis(cluster.redis.url);
      const keys = (kind: string) => redis.keys(`*:${kind}:*`);
      await until("the ledger to be empty", async () => (await keys("ledger")).length === 0);
      expect((await keys("answer")).length).toBeGreaterThan(0);
      redis.disconnect();
    });
  },
  limitMs,
);
