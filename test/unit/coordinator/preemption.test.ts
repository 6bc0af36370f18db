/** More sequences run than the KV cache can hold to their ends: who gives up its blocks loses time and nothing else. */
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const ids = (count: number, first: number): number[] => Array.from({ length: count }, (_, i) => first + i);

describe("sequences that are preempted", () => {
  it("end with the same events as with blocks for all, and in the order of arrival", () => {
    const requests = [1, 2, 3, 4].map((n) => generation(`r${n}`, ids(20, n), { maxTokens: 420 }));
    const roomy = new FakeCluster({ maxBlocks: 200 });
    const tight = new FakeCluster({ maxBlocks: 60 });
    for (const cluster of [roomy, tight]) {
      cluster.start();
      for (const request of requests) cluster.core.admit(request);
      cluster.answerAll();
    }
    expect(roomy.core.view().counters.preemptions).toBe(0);
    expect(tight.core.view().counters.preemptions).toBeGreaterThan(0);
    for (const [index, { id }] of requests.entries()) {
      expect(tight.tokensOf(id)).toEqual(expectedTokens(ids(20, index + 1), 420));
      // Its own blocks, found again, are no discount on its prompt.
      expect(tight.events.get(requestId(id))).toEqual(roomy.events.get(requestId(id)));
    }
    expect([...tight.ended].filter((id) => id.startsWith("r"))).toEqual(["r1", "r2", "r3", "r4"]);
    expect(tight.core.view().blocks.used).toBe(0);
  });

  it("may be cancelled while they wait again, and leave nothing", () => {
    const cluster = new FakeCluster({ maxBlocks: 40 });
    cluster.start();
    cluster.core.admit(generation("first", ids(20, 1), { maxTokens: 420 }));
    cluster.core.admit(generation("second", ids(20, 2), { maxTokens: 420 }));
    const preemptions = () => cluster.core.view().counters.preemptions;
    while (preemptions() === 0) cluster.answer();
    expect(cluster.core.view().sequences).toEqual({ running: 1, waiting: 1 });
    cluster.core.cancel(requestId("second"));
    expect(cluster.core.view().sequences).toEqual({ running: 1, waiting: 0 });
    cluster.answerAll();
    expect(cluster.tokensOf("first")).toEqual(expectedTokens(ids(20, 1), 420));
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("have every token of their prompt scored once, though it was computed in part before", () => {
    const cluster = new FakeCluster({ maxBlocks: 28, prefillChunk: 8 });
    cluster.start();
    // Many short replies, so that another one is taken to be short.
    for (let n = 0; n < 150; n++) cluster.core.admit(generation(`short${n}`, [n], { maxTokens: 2 }));
    cluster.answerAll();
    const prompt = ids(200, 3);
    cluster.core.admit(generation("first", ids(200, 1), { maxTokens: 200 }));
    while (cluster.tokensOf("first").length < 20) cluster.answer();
    cluster.core.admit(generation("scored", prompt, { maxTokens: 2, promptLogprobs: true }));
    const told = () =>
      (cluster.events.get(requestId("scored")) ?? []).filter(({ type }) => type === "prompt");
    while (cluster.core.view().counters.preemptions === 0) cluster.answer();
    expect(told()).toEqual([]);
    cluster.answerAll();
    expect(cluster.tokensOf("first")).toEqual(expectedTokens(ids(200, 1), 200));
    expect(cluster.tokensOf("scored")).toEqual(expectedTokens(prompt, 2));
    expect(told()).toHaveLength(1);
    const [scores] = told().flatMap((event) => (event.type === "prompt" ? [event.scores] : []));
    expect(scores!.map((score) => score?.token ?? null)).toEqual([null, ...prompt.slice(1)]);
  });

  it("survive a lost worker as well", () => {
    const cluster = new FakeCluster({ maxBlocks: 40 });
    cluster.start();
    for (const n of [1, 2, 3]) cluster.core.admit(generation(`r${n}`, ids(20, n), { maxTokens: 420 }));
    while (cluster.core.view().counters.preemptions === 0) cluster.answer();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.join(4, { worker: "worker-1" });
    cluster.pass(6_000, [2, 4]);
    cluster.link();
    for (const n of [1, 2, 3]) expect(cluster.tokensOf(`r${n}`)).toEqual(expectedTokens(ids(20, n), 420));
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});
