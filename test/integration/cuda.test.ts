/** Workers on emulated GPUs in a cluster of real processes: the reference's tokens, and who may work together. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { TestCluster, TestProcess, tinyModel, until } from "../support/cluster.js";
import { emulated, emulatedLibrary, testDevice, testLibrary } from "../support/test-gpu.js";

const mainScript = join(packageRoot, "dist/cli/main.js");

it("two workers with --device draw the reference's tokens, all sequences at once", async () => {
  const expected = readExpected("chatglm-6b-tiny");
  const { mask, gmask, sop } = expected.ids!;
  const cluster = await TestCluster.start({
    model: fixtureFolder("chatglm-6b-tiny"),
    stages: 2,
    dtype: "float32",
    precision: Object.entries({ mask, gmask, sop }).flatMap(([name, id]) => [
      "--set",
      `${name}_token_id=${id}`,
    ]),
    gpu: true,
  });
  onTestFinished(async () => void (await cluster.stop()));
  expect((await cluster.view()).numericsId).toMatch(/^cuda-sm_\d+\/canon1\//);
  for (const worker of cluster.workers) expect(worker.output).toContain(`computes on ${testDevice}`);

  const answers = await Promise.all(
    expected.cases.map(({ prompt, contextLength, tokens }) =>
      cluster.post("/v1/completions", {
        prompt,
        temperature: 0,
        ignore_eos: true,
        max_tokens: tokens.length,
        ...(contextLength === 0 ? { attention_mode: "causal" } : {}),
      }),
    ),
  );
  expect(answers.map(({ body }) => body.choices[0].token_ids)).toEqual(
    expected.cases.map(({ tokens }) => tokens),
  );
});

it.runIf(emulated)("a GPU with less memory than was offered is told of with the plan's numbers", async () => {
  const emulatedBytes = 24 * 2 ** 20;
  vi.stubEnv("GLM_RELAY_EMULATED_GPU_BYTES", String(emulatedBytes));
  onTestFinished(() => void vi.unstubAllEnvs());
  const cluster = await TestCluster.start({ model: tinyModel, stages: 1, gpu: true, workers: false });
  onTestFinished(async () => void (await cluster.stop()));
  cluster.startWorker(0);
  const message = new RegExp(
    "no room for the (KV cache of \\d+ blocks|workspace of steps of \\d+ rows): " +
      "it takes \\d+ MB more, \\d+ MB of the 26 MB of GPU 0 \\(emulated\\) are free; " +
      "the plan counts \\d+ MB for weights, \\d+ MB for \\d+ KV blocks, \\d+ MB of workspace and 2\\d\\d MB of " +
      "reserve, of 537 MB that this worker offers: give the worker a smaller --memory",
  );
  await cluster.workers[0]!.line(
    /"memoryBytes":536870912,"freeBytes":25165824.*offers more memory than is free/,
  );
  await cluster.workers[0]!.line(message);
  expect(await cluster.coordinator.line(message)).not.toBeNull();
  const view = await cluster.until("the worker to have failed", ({ workers }) =>
    workers.some(({ detail }) => detail !== ""),
  );
  expect(view.workers[0]!.detail).toMatch(message);
});

it("a worker on the CPU is refused by a pipeline on GPUs", async () => {
  const cluster = await TestCluster.start({ model: tinyModel, stages: 1, gpu: true });
  onTestFinished(async () => void (await cluster.stop()));
  cluster.options.gpu = false;
  cluster.startWorker(1);
  const refusal =
    /refused by the coordinator.*computes as cpu\/canon 1, the pipeline as cuda-sm_\d+\/canon 1/;
  await cluster.workers[1]!.line(refusal);
});

/** Only an emulated GPU fails when it is told to. */
it.skipIf(testLibrary !== emulatedLibrary)(
  "a GPU that fails in the middle of an answer ends its worker, and the next one of that name goes on",
  async () => {
    const request = { prompt: [11, 12, 13], max_tokens: 40, ignore_eos: true, temperature: 0 };
    let failing = false;
    const cluster = await TestCluster.start({
      model: tinyModel,
      stages: 2,
      gpu: true,
      workerEnvironment: (index): Record<string, string> =>
        failing && index === 1 ? { GLM_RELAY_EMULATED_GPU_FAILS_AT: "600" } : {},
    });
    onTestFinished(async () => void (await cluster.stop()));
    const expected = await cluster.post("/v1/completions", request);
    expect(expected.status).toBe(200);

    // The second worker comes back with a GPU that computes some steps more.
    failing = true;
    cluster.workers[1]!.kill("SIGKILL");
    await cluster.workers[1]!.exited;
    await cluster.revive();
    failing = false;
    const worker = cluster.workers[1]!;
    const running = cluster.post("/v1/completions", request);
    expect(await worker.exited).toEqual({ code: 1, signal: null });
    expect(worker.output).toMatch(
      /the device is lost to this process: the GPU failed while .*: unspecified launch failure/,
    );
    await cluster.revive();
    const answer = await running;
    expect(answer.status).toBe(200);
    expect(answer.body.choices).toEqual(expected.body.choices);
  },
);

describe("up --device", () => {
  const environment = { GLM_RELAY_CUDA_LIBRARY: testLibrary, GLM_RELAY_EMULATED_GPUS: "2" };
  const start = (env: Record<string, string>, flags: string[]) => {
    const data = mkdtempSync(join(tmpdir(), "glm-relay-up-"));
    const args = [mainScript, "up", "--model", tinyModel, "--port", "0", "--data", data, ...flags];
    const up = new TestProcess("up", process.execPath, args, env);
    onTestFinished(async () => {
      up.kill("SIGTERM");
      await up.exited;
      rmSync(data, { recursive: true, force: true });
    });
    return { up, data };
  };

  it.runIf(emulated)(
    "cuda: three workers share two GPUs and their memory, and one that is lost comes back",
    async () => {
      const { up, data } = start(environment, ["--stages", "3", "--device", "cuda"]);
      const [, url] = await up.line(/^ready (http:\S+)$/m, 60_000);
      expect(up.output).toContain("starting 3 workers on cuda:0 (emulated), cuda:1 (emulated)\n");
      const view = async () => (await (await fetch(`${url}/api/cluster`)).json()) as ClusterView;
      const { workers, numericsId } = await view();
      expect(numericsId).toMatch(/^cuda-sm_86\//);
      const context = 512 * 2 ** 20;
      const shared = Math.floor((0.9 * (8 * 2 ** 30 - context)) / 2);
      const offers = workers.map(({ memoryBytes }) => memoryBytes);
      expect(offers).toEqual([shared, Math.floor(0.9 * 8 * 2 ** 30), shared]);
      const logOf = (index: number) => readFileSync(join(data, `logs/worker-${index}.log`), "utf8");
      for (const [index, device] of [0, 1, 0].entries())
        expect(logOf(index)).toContain(`computes on cuda:${device}`);
      // The memory that the others have taken meanwhile changes nothing of what it offers.
      process.kill(workers[2]!.pid, "SIGKILL");
      const revived = await until("the worker to come back", async () => {
        const now = await view();
        return now.state === "ready" && now.workers[2]?.pid !== workers[2]!.pid ? now : null;
      });
      expect(revived.workers.map(({ memoryBytes }) => memoryBytes)).toEqual(offers);
    },
  );

  it("auto: on the CPU where there is no GPU", async () => {
    const { up } = start({ GLM_RELAY_CUDA_LIBRARY: "/nonexistent" }, ["--stages", "2", "--device", "auto"]);
    const [, url] = await up.line(/^ready (http:\S+)$/m, 60_000);
    const { numericsId } = (await (await fetch(`${url}/api/cluster`)).json()) as ClusterView;
    expect(numericsId).toMatch(/^cpu\//);
  });

  it.each([
    ["cuda", "/nonexistent", /value 'cuda': no CUDA library at \/nonexistent: run "make cuda"/],
    ["cuda:7", testLibrary, /value 'cuda:7': there are \d+ GPUs here/],
  ])("%s: tells what is missing before anything starts", async (device, library, message) => {
    const { up } = start({ ...environment, GLM_RELAY_CUDA_LIBRARY: library }, [
      "--stages",
      "2",
      "--device",
      device,
    ]);
    expect((await up.exited).code).toBe(1);
    expect(up.output).toMatch(message);
    expect(up.output).not.toContain("starting");
  });
});
