/** docs/metrics.md against the pages that coordinator and worker really serve, in both directions. */
import { Registry } from "prom-client";
import { expect, test } from "vitest";
import { BatchMetrics } from "../../../coordinator/batches/metrics.js";
import { QueueMetrics } from "../../../coordinator/queue/metrics.js";
import { GrpcClient } from "../../support/grpc-client.js";
import { type MetricFacts, readDocumented, readPage } from "../../support/metrics-page.js";
import { contextLength, finishEvent, post, ScriptedService, startApi, tokensEvent } from "../api/support.js";
import { LinkClient } from "../worker/support/link-client.js";
import { startLinkedWorker } from "../worker/support/start.js";
import { headerOf, rowsOf, stepOf } from "../worker/support/steps.js";

/** The whole is compared, so that neither side has a metric, a label or a bucket that the other lacks. */
function expectDocumented(page: string, headings: string[]): void {
  const served = readPage(page);
  // Labels are read off samples: a metric without one would pass with any.
  expect([...served].filter(([, { samples }]) => samples === 0).map(([name]) => name)).toEqual([]);
  const facts = (of: Map<string, MetricFacts>) =>
    Object.fromEntries([...of].map(([name, { type, labels, buckets }]) => [name, { type, labels, buckets }]));
  expect(facts(served)).toEqual(facts(readDocumented(headings, [1, 2, 5, 10, 20, 50, 100, 200, 500])));
}

test("the coordinator serves what docs/metrics.md says, and nothing else", async () => {
  expect(contextLength).toBeLessThanOrEqual(500);
  const service = new ScriptedService();
  service.script = async function* (request) {
    yield { type: "started" };
    yield tokensEvent(request, 0, "a");
    yield tokensEvent(request, 0, "b");
    yield finishEvent(0, 2);
  };
  const registry = new Registry();
  const queue = new QueueMetrics(registry, "requests", async () => ({ waiting: 1 }));
  await queue.timed(async () => undefined);
  new BatchMetrics(registry, service.model.id, () => ["completed"]).answered(true);
  const api = await startApi(service, {}, registry, undefined, 0);
  const grpc = new GrpcClient(api.grpcAddress!);
  try {
    expect((await post(api, "/v1/completions", { prompt: [1, 2] })).status).toBe(200);
    await grpc.listModels();
    for (const listener of service.stepListeners) listener(8);
    for (const listener of service.recoveryListeners) listener("worker_lost", 1.5);
    expectDocumented(await api.metrics(), ["Coordinator", "Aliases"]);
  } finally {
    grpc.close();
    await api.close();
  }
});

test("a worker serves what docs/metrics.md says, and nothing else", async () => {
  const { worker, link } = await startLinkedWorker({ probePort: 0 });
  const results = new LinkClient(worker.address);
  await results.opened();
  link.send(stepOf(headerOf(1, [rowsOf(1, [1, 2], { newBlocks: Buffer.alloc(4) })])));
  await results.frames.next(({ result }) => result?.step === 1);
  const page = await fetch(`http://${worker.probeAddress}/metrics`);
  expectDocumented(await page.text(), ["Worker"]);
});
