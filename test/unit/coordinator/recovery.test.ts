/** A lost worker costs time and nothing else: running requests are rebuilt from their tokens and go on. */
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import type { GenerationRequest, RequestEvent } from "../../../coordinator/inference.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

/** Loses a worker and lets another one take its place, up to the first token through the new pipeline. */
function replaceWorker(cluster: FakeCluster, lost: number, fresh: number, others: number[]): void {
  cluster.core.membership.gone(lost, "its control stream broke");
  cluster.join(fresh, { worker: "worker-1" });
  cluster.pass(6_000, [...others, fresh]);
  cluster.link();
}

const eventsOf = (cluster: FakeCluster, id: string) => cluster.events.get(requestId(id)) ?? [];

/** Choices do not wait for each other: of each one the order is sure, but not between them. */
function perChoice(cluster: FakeCluster, id: string) {
  const choiceOf = (event: RequestEvent) => ("choice" in event ? event.choice : -1);
  return [...eventsOf(cluster, id)].sort((a, b) => choiceOf(a) - choiceOf(b));
}

describe("requests that a lost worker interrupts", () => {
  const requests: GenerationRequest[] = [
    generation("short", [1, 2]),
    generation(
      "long",
      Array.from({ length: 40 }, (_, i) => i + 1),
    ),
    { ...generation("two", [5]), choices: [1, 2].map((seed) => ({ promptTokens: [5], seed: `${seed}` })) },
    generation("scored", [3, 4, 5, 6], { promptLogprobs: true }),
  ];

  it("end with the same events as without it, wherever they are", () => {
    const undisturbed = new FakeCluster({ prefillChunk: 8 });
    undisturbed.start();
    for (const request of requests) undisturbed.core.admit(request);
    undisturbed.answerAll();
    for (let after = 0; after < 20; after++) {
      const cluster = new FakeCluster({ prefillChunk: 8 });
      cluster.start();
      for (const request of requests) cluster.core.admit(request);
      for (let count = 0; count < after && cluster.steps.length > 0; count++) cluster.answer();
      replaceWorker(cluster, 1, 3, [2]);
      for (const { id } of requests) {
        expect(perChoice(cluster, id), `${id} after ${after} steps`).toEqual(perChoice(undisturbed, id));
        expect(cluster.ended).toContain(id);
      }
      expect(cluster.core.requestCount).toBe(0);
      expect(cluster.core.view().blocks.used).toBe(0);
    }
  });

  it("survive any number of losses while they get on in between", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("x", [1, 2]));
    let [lost, kept] = [1, 2];
    for (let fresh = 3; fresh < 9; fresh++) {
      cluster.core.membership.gone(lost, "its control stream broke");
      cluster.join(fresh, { worker: `worker-${lost}` });
      cluster.pass(6_000, [kept, fresh]);
      // The warm-up, and with luck one token of the request.
      const epoch = cluster.core.membership.epoch!;
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LOADED");
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LINKED");
      cluster.answer();
      if (cluster.steps.length > 0) cluster.answer();
      [lost, kept] = [kept, fresh];
    }
    cluster.answerAll();
    expect(cluster.tokensOf("x")).toEqual(expectedTokens([1, 2], 8));
  });

  it("wait where they were accepted before the loss and admitted after it", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.core.admit(generation("late", [1, 2]));
    expect(eventsOf(cluster, "late")).toEqual([]);
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    expect(cluster.tokensOf("late")).toEqual(expectedTokens([1, 2], 8));
  });

  it("can be cancelled meanwhile", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("x", [1, 2]));
    cluster.answer();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.core.cancel(requestId("x"));
    expect(cluster.ended).toContain("x");
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    expect(cluster.core.requestCount).toBe(0);
    expect(cluster.tokensOf("x").length).toBeLessThanOrEqual(1);
  });

  it("get worker_lost when no pipeline forms within the timeout", () => {
    const cluster = new FakeCluster({ recoveryTimeoutMs: 5_000 });
    cluster.start();
    cluster.core.admit(generation("x", [1, 2]));
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.pass(4_900, [2]);
    expect(cluster.core.requestCount).toBe(1);
    cluster.pass(300, [2]);
    expect(eventsOf(cluster, "x").at(-1)).toMatchObject({
      type: "error",
      error: { code: "worker_lost", message: expect.stringContaining("within 5 s") },
    });
    expect(cluster.core.requestCount).toBe(0);
  });

  it("are set aside when three pipelines in a row are lost with them and they got nowhere", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("poison", [1, 2]));
    let [lost, kept] = [1, 2];
    for (let fresh = 3; fresh < 6; fresh++) {
      expect(eventsOf(cluster, "poison").some(({ type }) => type === "error")).toBe(false);
      cluster.core.membership.gone(lost, "its process crashed");
      if (fresh === 5) break;
      cluster.join(fresh, { worker: `worker-${lost}` });
      cluster.pass(6_000, [kept, fresh]);
      const epoch = cluster.core.membership.epoch!;
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LOADED");
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LINKED");
      cluster.answer();
      [lost, kept] = [kept, fresh];
    }
    expect(eventsOf(cluster, "poison").at(-1)).toMatchObject({
      type: "error",
      error: { code: "request_poisoned", message: expect.stringContaining("its process crashed") },
    });
    expect(cluster.core.requestCount).toBe(0);
  });

  it("do not drag down those that travelled with them", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const good = ["a", "b", "c"];
    for (const id of [...good, "poison", "d"]) cluster.core.admit(generation(id, [1, 2]));
    /** Every worker that would compute the poisonous request dies of it. */
    const answerUntilDeath = (): boolean => {
      while (cluster.steps.length > 0) {
        const names = cluster.steps[0]!.sequences!.map(({ requestId: name }) => name);
        if (names.includes("log-poison")) return true;
        cluster.answer();
      }
      return false;
    };
    let [lost, kept] = [1, 2];
    let deaths = 0;
    for (let fresh = 3; answerUntilDeath(); fresh++) {
      deaths++;
      cluster.core.membership.gone(lost, "its process crashed");
      cluster.join(fresh, { worker: `worker-${lost}` });
      cluster.pass(6_000, [kept, fresh]);
      const epoch = cluster.core.membership.epoch!;
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LOADED");
      for (const connection of [kept, fresh]) cluster.report(connection, epoch, "LINKED");
      [lost, kept] = [kept, fresh];
      if (deaths === 2) cluster.core.admit(generation("new", [1, 2]));
    }
    expect(deaths).toBe(3);
    expect(eventsOf(cluster, "poison").at(-1)).toMatchObject({ error: { code: "request_poisoned" } });
    for (const id of [...good, "d", "new"]) {
      expect(cluster.tokensOf(id), id).toEqual(expectedTokens([1, 2], 8));
    }
    expect(cluster.core.requestCount).toBe(0);
  });
});

describe("a worker that stays away", () => {
  const serving = (cluster: FakeCluster) => cluster.core.membership.stageViews().map(({ worker }) => worker);

  it("is replaced by the others after a while, and takes its place again when nothing runs", () => {
    const cluster = new FakeCluster({ stageCount: 3 });
    cluster.start();
    cluster.core.admit(generation("x", [1, 2]));
    cluster.answer();
    cluster.core.membership.gone(2, "its machine is gone");
    cluster.pass(9_000, [1, 3]);
    expect(cluster.core.membership.epoch).toBeNull();
    cluster.pass(6_000, [1, 3]);
    cluster.link();
    expect(serving(cluster)).toEqual(["worker-1", "worker-3"]);
    expect(cluster.tokensOf("x")).toEqual(expectedTokens([1, 2], 8));

    cluster.core.admit(generation("y", [3]));
    cluster.join(4, { worker: "worker-2" });
    cluster.pass(500, [1, 3, 4]);
    expect(serving(cluster)).toEqual(["worker-1", "worker-3"]);
    cluster.answerAll();
    cluster.pass(6_000, [1, 3, 4]);
    cluster.link();
    expect(serving(cluster)).toEqual(["worker-1", "worker-2", "worker-3"]);
    cluster.core.admit(generation("z", [4]));
    cluster.answerAll();
    expect(cluster.tokensOf("z")).toEqual(expectedTokens([4], 8));
  });

  it("is waited for where the others have no room, with the reason told", () => {
    const cluster = new FakeCluster({ stageCount: 3, workerMemoryMB: 4.5 });
    cluster.start();
    cluster.core.membership.gone(2, "its machine is gone");
    cluster.pass(15_000, [1, 3]);
    expect(cluster.core.membership.epoch).toBeNull();
    expect(cluster.core.notReady()!.message).toContain("does not fit");
  });
});
