/** A step that is away for long: lost on its way, or computed by a stage that takes its time. */
import { describe, expect, it } from "vitest";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

/** Two stages, and a request whose first step is on its way. */
function computing(): FakeCluster {
  const cluster = new FakeCluster({ stageCount: 2 });
  cluster.start();
  cluster.core.admit(generation("long", [1, 2, 3]));
  return cluster;
}

/** Passes time in heartbeats; a stage is busy while `busy` says so. */
function beat(cluster: FakeCluster, ms: number, busy: (stage: number, passedMs: number) => boolean): void {
  for (let passed = 0; passed < ms; passed += 500) {
    cluster.nowMs += 500;
    for (const stage of [1, 2]) cluster.heartbeat(stage, cluster.nowMs, busy(stage, passed + 500));
    cluster.core.tick();
  }
}

describe("a step that is away for long", () => {
  it("is lost when nobody has computed anything for a while", () => {
    const cluster = computing();
    const { epoch } = cluster.core.view();
    beat(cluster, 4_500, () => false);
    expect(cluster.core.view().epoch).toEqual(epoch);
    beat(cluster, 1_000, () => false);
    expect(cluster.core.ready).toBe(false);
  });

  it("is not lost between two stages that take seconds each, though both say at a time that they are idle", () => {
    const cluster = computing();
    // The first computes for eight seconds, then for a second neither has it, then the second computes.
    beat(cluster, 20_000, (stage, passed) => (stage === 1 ? passed <= 8_000 : passed > 9_000));
    expect(cluster.core.ready).toBe(true);
    cluster.answerAll();
    expect(cluster.tokensOf("long")).toEqual(expectedTokens([1, 2, 3], 8));
  });

  it("is lost behind a stage that had computed it", () => {
    const cluster = computing();
    beat(cluster, 10_000, (stage, passed) => stage === 1 && passed <= 8_000);
    expect(cluster.core.ready).toBe(true);
    beat(cluster, 2_000, () => false);
    expect(cluster.core.ready).toBe(false);
  });
});
