/** Sequences that begin alike share blocks, and compute only what differs. */
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { BlockPool } from "../../../coordinator/scheduler/block-pool.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const ids = (count: number, first = 1): number[] => Array.from({ length: count }, (_, i) => first + i);

/** Runs a request to its end. @returns its tokens, and those of its prompt that were not computed again. */
function run(cluster: FakeCluster, id: string, prompt: number[], overrides = {}) {
  cluster.core.admit({ ...generation(id, prompt), ...overrides });
  cluster.answerAll();
  const finish = cluster.events.get(requestId(id))!.find(({ type }) => type === "finish");
  return { tokens: cluster.tokensOf(id), cached: finish?.type === "finish" ? finish.cachedTokens : null };
}

describe("the prefix cache", () => {
  it("serves the second turn of a conversation from the first, its reply included", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const first = run(cluster, "first", ids(40));
    expect(first).toEqual({ tokens: expectedTokens(ids(40), 8), cached: 0 });
    // 48 tokens have rows but the last one; the reply's end stands in no full block.
    const second = [...ids(40), ...first.tokens, ...ids(20, 500)];
    expect(run(cluster, "second", second)).toEqual({ tokens: expectedTokens(second, 8), cached: 32 });
    expect(run(cluster, "third", second)).toEqual({ tokens: expectedTokens(second, 8), cached: 64 });
    const { used, kept } = cluster.core.view().blocks;
    expect(used).toBe(0);
    expect(kept).toBeGreaterThan(3);
  });

  it("computes the last token of a prompt in any case", () => {
    const cluster = new FakeCluster();
    cluster.start();
    run(cluster, "a", ids(32));
    expect(run(cluster, "b", ids(32))).toEqual({ tokens: expectedTokens(ids(32), 8), cached: 16 });
  });

  it("lets the choices of one prompt compute it together", () => {
    const cluster = new FakeCluster({ prefillChunk: 32 });
    cluster.start();
    const choices = Array.from({ length: 4 }, (_, seed) => ({ promptTokens: ids(200), seed: `${seed}` }));
    cluster.core.admit({ ...generation("n", []), choices });
    let rows = 0;
    while (cluster.steps.length > 0) {
      for (const sequence of cluster.steps[0]!.sequences!) rows += sequence.rowCount!;
      cluster.answer();
    }
    expect(cluster.tokensOf("n")).toHaveLength(4 * 8);
    // Each computes its last, partly filled block and its reply.
    expect(rows).toBeLessThanOrEqual(200 + 3 * 32 + 4 * 8);
  });

  it("shares nothing across salts, with a context, or where every row is scored", () => {
    const cluster = new FakeCluster();
    cluster.start();
    run(cluster, "a", ids(60), { cacheSalt: "one" });
    expect(run(cluster, "b", ids(60), { cacheSalt: "two" }).cached).toBe(0);
    expect(run(cluster, "c", ids(60)).cached).toBe(0);
    expect(run(cluster, "d", ids(60), { cacheSalt: "one" }).cached).toBe(48);
    const context = { length: 50, mask: -1, constantPosition: false, remainingMasks: [] };
    const choices = [{ promptTokens: ids(60), context, seed: "1" }];
    expect(run(cluster, "e", [], { choices }).cached).toBe(0);
    const scored = generation("f", ids(60), { promptLogprobs: true });
    cluster.core.admit(scored);
    cluster.answerAll();
    const prompt = cluster.events.get(requestId("f"))!.find(({ type }) => type === "prompt");
    expect(prompt?.type === "prompt" && prompt.scores.filter((score) => score !== null)).toHaveLength(59);
  });

  it("gives its memory to whoever needs it, the longest unused first", () => {
    const cluster = new FakeCluster({ maxBlocks: 8 });
    cluster.start();
    run(cluster, "a", ids(40));
    run(cluster, "b", ids(40, 100));
    expect(run(cluster, "a2", ids(40)).cached).toBe(32);
    // Needs six of eight blocks: what was used last is kept for longest.
    const long = ids(88, 200);
    expect(run(cluster, "c", long).tokens).toEqual(expectedTokens(long, 8));
    expect(run(cluster, "b2", ids(40, 100)).cached).toBe(0);
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("is empty in a new epoch", () => {
    const cluster = new FakeCluster();
    cluster.start();
    run(cluster, "a", ids(40));
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    expect(run(cluster, "b", ids(40))).toEqual({ tokens: expectedTokens(ids(40), 8), cached: 0 });
  });
});

describe("the pool's books", () => {
  it("count a shared block once, and keep it when nobody holds it", () => {
    const pool = new BlockPool(3);
    pool.reserve(1);
    const [block] = pool.take(1) as [number];
    const root = pool.root("t", "");
    const node = pool.know(root, [1, 2], block);
    pool.reserve(1);
    expect(pool.share(root, [1, 2])).toEqual({ block, node });
    expect(pool.share(root, [1, 3])).toBeNull();
    expect([pool.used, pool.kept, pool.available]).toEqual([1, 0, 2]);
    pool.release([block], 0);
    expect([pool.used, pool.kept]).toEqual([1, 0]);
    pool.release([block], 0);
    expect([pool.used, pool.kept, pool.available]).toEqual([0, 1, 3]);
    expect(() => pool.release([block], 0)).toThrow("was not held");
  });

  it("reserve no more than what is free and kept, also while kept blocks are shared", () => {
    const pool = new BlockPool(2);
    pool.reserve(2);
    const blocks = pool.take(2);
    const first = pool.know(pool.root("t", ""), [1], blocks[0]!);
    pool.know(first, [2], blocks[1]!);
    pool.release(blocks, 0);
    expect(pool.reserve(3)).toBe(false);
    expect(pool.reserve(2)).toBe(true);
    expect(pool.share(pool.root("t", ""), [1])!.block).toBe(blocks[0]);
    // The other kept block makes room for a new one, and is forgotten.
    expect(pool.take(1)).toEqual([blocks[1]]);
    expect(pool.share(first, [2])).toBeNull();
    expect(pool.available).toBe(0);
  });
});
