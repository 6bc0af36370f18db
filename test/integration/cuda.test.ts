/** Workers on emulated GPUs in a cluster of real processes: the reference's tokens, and who may work together. */
import { expect, it, onTestFinished, vi } from "vitest";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { TestCluster, tinyModel } from "../support/cluster.js";
import { emulated, testDevice } from "../support/test-gpu.js";

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
