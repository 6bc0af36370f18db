/** Contexts in slices through the coordinator's core: what clients see of them is what they see of whole ones. */
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import type { GenerationRequest, SamplingParams } from "../../../coordinator/inference.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const tokens = (count: number, first: number): number[] =>
  Array.from({ length: count }, (_, i) => (first + i) % 10);

/** A prompt whose last tokens follow its context. */
function reading(
  id: string,
  prompt: number[],
  behind: number,
  overrides: Partial<SamplingParams> = {},
): GenerationRequest {
  const context = { length: prompt.length - behind, mask: -1, constantPosition: false, remainingMasks: [] };
  return { ...generation(id, [], overrides), choices: [{ promptTokens: prompt, context, seed: "1" }] };
}

const eventsOf = (cluster: FakeCluster, id: string) => cluster.events.get(requestId(id)) ?? [];
const slicesOf = (cluster: FakeCluster) => cluster.core.view().counters.contextSlices;

/** A cluster with a stream that has begun. */
function streaming(options: ConstructorParameters<typeof FakeCluster>[0] = {}): FakeCluster {
  const cluster = new FakeCluster({ prefillChunk: 8, maxBlocks: 200, ...options });
  cluster.start();
  cluster.core.admit(generation("stream", [1, 2], { maxTokens: 60 }));
  for (let n = 0; n < 3; n++) cluster.answer();
  return cluster;
}

describe("a context beside a stream", () => {
  it.each([1, 2, 4])("is read layer by layer and answered as alone, in %i stages", (stageCount) => {
    const cluster = streaming({ stageCount });
    const prompt = tokens(100, 3);
    cluster.core.admit(reading("reader", prompt, 1));
    const before = cluster.tokensOf("stream").length;
    while (cluster.tokensOf("reader").length === 0) cluster.answer();
    expect(cluster.slices.seen.map(({ layerBegin, layerEnd }) => [layerBegin, layerEnd])).toEqual([
      [0, 1],
      [1, 2],
      [2, 3],
      [3, 4],
    ]);
    expect(slicesOf(cluster)).toBe(4);
    // A token of the stream for every slice but the first, which may have found its decode on its way.
    expect(cluster.tokensOf("stream").length - before).toBeGreaterThanOrEqual(3);
    cluster.answerAll();
    expect(cluster.tokensOf("reader")).toEqual(expectedTokens(prompt, 8));
    expect(cluster.tokensOf("stream")).toEqual(expectedTokens([1, 2], 60));
    expect(eventsOf(cluster, "reader").filter(({ type }) => type === "started")).toHaveLength(1);
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("is told of like one that comes whole, with scores of what follows it", () => {
    const prompt = tokens(50, 3);
    const request = reading("reader", prompt, 6, { promptLogprobs: true, maxTokens: 3 });
    const alone = new FakeCluster({ prefillChunk: 8, maxBlocks: 200 });
    alone.start();
    alone.core.admit(request);
    alone.answerAll();
    expect(alone.slices.seen).toEqual([]);
    const cluster = streaming();
    cluster.core.admit(request);
    cluster.answerAll();
    expect(cluster.slices.seen).toHaveLength(4);
    expect(eventsOf(cluster, "reader")).toEqual(eventsOf(alone, "reader"));
    const prompts = eventsOf(cluster, "reader").filter(({ type }) => type === "prompt");
    expect(prompts).toHaveLength(1);
  });

  it("may be cancelled after any number of slices, and leaves nothing", () => {
    for (let after = 0; after <= 4; after++) {
      const cluster = streaming();
      cluster.core.admit(reading("reader", tokens(100, 3), 1));
      while (cluster.slices.seen.length < after) cluster.answer();
      cluster.core.cancel(requestId("reader"));
      const next = tokens(90, 4);
      cluster.core.admit(reading("next", next, 1));
      cluster.answerAll();
      expect(cluster.tokensOf("next")).toEqual(expectedTokens(next, 8));
      expect(cluster.tokensOf("stream")).toEqual(expectedTokens([1, 2], 60));
      expect(cluster.core.view().sequences).toEqual({ running: 0, waiting: 0 });
      expect(cluster.core.view().blocks.used).toBe(0);
    }
  });

  it("begins again when a worker is lost between its slices", () => {
    for (let after = 1; after <= 4; after++) {
      const cluster = streaming();
      const prompt = tokens(100, 3);
      cluster.core.admit(reading("reader", prompt, 1));
      while (cluster.slices.seen.length < after) cluster.answer();
      cluster.core.membership.gone(1, "its control stream broke");
      cluster.join(3, { worker: "worker-1" });
      cluster.pass(6_000, [2, 3]);
      cluster.link();
      expect(cluster.tokensOf("reader")).toEqual(expectedTokens(prompt, 8));
      expect(cluster.tokensOf("stream")).toEqual(expectedTokens([1, 2], 60));
      expect(cluster.core.view().blocks.used).toBe(0);
    }
  });

  it("begins again when it gave its blocks to a sequence before it", () => {
    const cluster = new FakeCluster({ prefillChunk: 8, maxBlocks: 11 });
    cluster.start();
    // Many short replies, so that another one is taken to be short.
    for (let n = 0; n < 150; n++) cluster.core.admit(generation(`short${n}`, [n % 10], { maxTokens: 2 }));
    cluster.answerAll();
    const [older, prompt] = [tokens(60, 1), tokens(100, 3)];
    cluster.core.admit(generation("older", older, { maxTokens: 100 }));
    while (cluster.tokensOf("older").length < 2) cluster.answer();
    cluster.core.admit(reading("reader", prompt, 1));
    while (cluster.core.view().counters.preemptions === 0) cluster.answer();
    const begun = cluster.slices.seen.length;
    expect(begun).toBeGreaterThan(0);
    expect(begun).toBeLessThan(4);
    cluster.answerAll();
    expect(cluster.tokensOf("reader")).toEqual(expectedTokens(prompt, 8));
    expect(cluster.tokensOf("older")).toEqual(expectedTokens(older, 100));
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});
