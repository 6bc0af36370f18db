import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import { getBatch } from "../support/batches.js";
import { demoModel, TestCluster, TestProcess, until } from "../support/cluster.js";

const main = join(packageRoot, "dist/cli/main.js");
const lineCount = 60;
/** Several runs on a machine that has much else to do. */
const limitMs = 240_000;

/** Greedy and sampled, of many lengths, so that they end one after the other; one line that the API refuses. */
function requestLine(index: number): Record<string, unknown> {
  const sampling = index % 2 === 0 ? { temperature: 0 } : { temperature: 1, seed: index };
  return {
    custom_id: `line ${index}`,
    method: "POST",
    url: "/v1/chat/completions",
    body: {
      messages: [{ role: "user", content: `${index} + 7 = ?` }],
      max_tokens: index === 31 ? 0 : lengthOf(index),
      ignore_eos: true,
      ...sampling,
    },
  };
}

const lengthOf = (index: number) => 10 + 5 * index;

describe(
  "batch run through a cluster",
  () => {
    let cluster: TestCluster;
    let folder: string;
    let input: string;
    let undisturbed: unknown[];
    beforeAll(async () => {
      folder = mkdtempSync(join(tmpdir(), "glm-relay-batch-"));
      input = join(folder, "in.jsonl");
      writeFileSync(
        input,
        Array.from({ length: lineCount }, (_, index) => `${JSON.stringify(requestLine(index))}\n`).join(""),
      );
      cluster = await TestCluster.start({ model: demoModel, stages: 2, data: join(folder, "data") });
      const output = join(folder, "undisturbed.jsonl");
      const run = startRun(output);
      await expectWhole(run, output);
      undisturbed = answersOf(output);
    }, limitMs);
    afterAll(async () => {
      await cluster?.stop();
      rmSync(folder, { recursive: true, force: true });
    });
    beforeEach(() => cluster.revive());

    function startRun(output: string, ...more: string[]): TestProcess {
      const args = ["batch", "run", input, output, "--url", cluster.url, "--json", ...more];
      return new TestProcess("batch run", process.execPath, [main, ...args]);
    }

    /** What every run comes to, in the end: all lines but the refused one answered in full. */
    async function expectWhole(run: TestProcess, output: string): Promise<void> {
      const { code } = await run.exited;
      const all = Array.from({ length: lineCount }, (_, index) => (index === 31 ? 0 : lengthOf(index)));
      expect(summaryOf(run)).toMatchObject({
        status: "completed",
        total: lineCount,
        done: lineCount - 1,
        failed: 1,
        remaining: 0,
        completion_tokens: all.reduce((sum, count) => sum + count),
        output,
      });
      expect(code).toBe(1);
      expect(existsSync(`${output}.batch.json`)).toBe(false);
    }

    function summaryOf(run: TestProcess): Record<string, number> {
      const line = /^\{.*\}$/m.exec(run.output);
      if (line === null) throw new Error(`no summary:\n${run.output}`);
      return JSON.parse(line[0]);
    }

    /** In the order of the file, without what differs from run to run. */
    function answersOf(output: string): unknown[] {
      const lines = readFileSync(output, "utf8").trimEnd().split("\n");
      return lines.map((text) => {
        const { custom_id, response, error } = JSON.parse(text);
        const { choices, usage, error: refusal } = response.body;
        // How much of a prompt was found computed depends on what ran before.
        const tokens = usage && [usage.prompt_tokens, usage.completion_tokens];
        return { custom_id, status: response.status_code, choices, tokens, refusal, error };
      });
    }

    /** Waits until some lines are answered and others are not. */
    async function halfWay(run: TestProcess, output: string): Promise<void> {
      await until(
        "the batch to be half-way",
        async () => {
          if (!run.alive) throw new Error(`the run has ended:\n${run.output}`);
          if (!existsSync(`${output}.batch.json`)) return false;
          const { batchId } = JSON.parse(readFileSync(`${output}.batch.json`, "utf8"));
          if (batchId === null) return false;
          const { completed } = (await getBatch(cluster.url, batchId)).request_counts;
          if (completed > lineCount - 10) throw new Error(`${completed} are answered already`);
          return completed >= 10;
        },
        limitMs,
        () => run.output,
      );
    }

    it("answers each line once, refused ones with their error, in the order of the input", () => {
      expect(undisturbed.map((answer: any) => answer.custom_id)).toEqual(
        Array.from({ length: lineCount }, (_, index) => `line ${index}`),
      );
      expect(undisturbed[31]).toMatchObject({
        status: 400,
        refusal: { code: "invalid_value", param: "max_tokens" },
      });
    });

    it("tells of each line that was not answered when its window is over", async () => {
      const output = join(folder, "window.jsonl");
      cluster.workers[1]!.kill("SIGKILL");
      await cluster.until("the loss", (view) => view.state !== "ready");
      const run = startRun(output, "--window", "1s");
      expect((await run.exited).code).toBe(1);
      const { total, done, failed, remaining, ...rest } = summaryOf(run);
      expect({ total, done, status: rest.status }).toEqual({ total: lineCount, done: 0, status: "expired" });
      expect(failed! + remaining!).toBe(lineCount);
      const lines = readFileSync(output, "utf8").trimEnd().split("\n");
      const all = lines.map((line) => JSON.parse(line));
      expect(all.map(({ custom_id }) => custom_id)).toEqual(
        Array.from({ length: lineCount }, (_, index) => `line ${index}`),
      );
      const unanswered = all.filter(({ response }) => response === null);
      expect(unanswered).toHaveLength(remaining!);
      expect(unanswered.every(({ error }) => error.code === "batch_expired")).toBe(true);
      expect(run.output).toContain(`${unanswered.length} failed with batch_expired, the first is "line `);
    });

    it("killed half-way and run again, goes on with its batch", async () => {
      const output = join(folder, "killed.jsonl");
      const first = startRun(output);
      await halfWay(first, output);
      const { batchId } = JSON.parse(readFileSync(`${output}.batch.json`, "utf8"));
      first.kill("SIGKILL");
      await first.exited;
      expect(existsSync(output)).toBe(false);
      const second = startRun(output);
      await expectWhole(second, output);
      expect(second.output).toContain(`going on with ${batchId}\n`);
      expect(answersOf(output)).toEqual(undisturbed);
    });

    it("loses nothing when a worker is killed, and gives the same answers", async () => {
      const output = join(folder, "worker.jsonl");
      const run = startRun(output);
      await halfWay(run, output);
      cluster.workers[1]!.kill("SIGKILL");
      await cluster.until("the loss", (view) => view.state !== "ready");
      cluster.startWorker(1);
      await expectWhole(run, output);
      expect(answersOf(output)).toEqual(undisturbed);
    });

    it("waits for a coordinator that is killed and started again, and gives the same answers", async () => {
      const output = join(folder, "coordinator.jsonl");
      const run = startRun(output);
      await halfWay(run, output);
      cluster.coordinator.kill("SIGKILL");
      await cluster.coordinator.exited;
      await run.line(/waiting for the coordinator: no answer from .*/);
      cluster.startCoordinator(Number(new URL(cluster.url).port));
      await expectWhole(run, output);
      expect(answersOf(output)).toEqual(undisturbed);
    });
  },
  limitMs,
);
