/** Workers on emulated GPUs in a cluster of real processes: the reference's tokens, and who may work together. */
import { expect, it, onTestFinished } from "vitest";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { TestCluster, tinyModel } from "../support/cluster.js";
import { emulatedLibrary, testDevice, testLibrary } from "../support/test-gpu.js";

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
