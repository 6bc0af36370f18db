/** Several pipelines in one cluster: who gets which worker, where sequences go, and what a loss costs. */
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const ids = (count: number, first = 1): number[] => Array.from({ length: count }, (_, i) => first + i);
const eventsOf = (cluster: FakeCluster, id: string) => cluster.events.get(requestId(id)) ?? [];
/** Workers of each pipeline, in stage order. */
const workersOf = (cluster: FakeCluster) =>
  cluster.core
    .view()
    .pipelines.map(({ stages }) => stages.map(({ worker }) => worker.slice("worker-".length)));
const statesOf = (cluster: FakeCluster) => cluster.core.view().pipelines.map(({ state }) => state);
const runningIn = (cluster: FakeCluster) =>
  cluster.core.view().pipelines.map(({ sequences }) => sequences.running);
/** Sequences that have rows in the steps that wait for an answer, by pipeline. */
const pipelinesOf = (cluster: FakeCluster, name: string) =>
  cluster.steps
    .filter(({ sequences }) => sequences!.some((rows) => rows.requestId === `log-${name}`))
    .map(({ pipeline }) => pipeline);

function started(pipelineCount = 2, options = {}): FakeCluster {
  const cluster = new FakeCluster({ pipelineCount, ...options });
  cluster.start();
  return cluster;
}

describe("the workers of several pipelines", () => {
  it("fill the first pipeline first, by their names, each with an epoch of its own", () => {
    const cluster = new FakeCluster({ pipelineCount: 2 });
    for (const connection of [4, 2, 1, 3]) cluster.join(connection);
    cluster.link();
    expect(workersOf(cluster)).toEqual([
      ["1", "2"],
      ["3", "4"],
    ]);
    expect(cluster.core.view().pipelines.map(({ epoch }) => epoch)).toEqual([
      { term: 5, plan: 1 },
      { term: 5, plan: 2 },
    ]);
    const assigned = cluster.sent.flatMap(({ message }) => message.assign ?? []);
    expect(assigned.map(({ pipeline, stage }) => [pipeline, stage])).toEqual([
      [0, 0],
      [0, 1],
      [1, 0],
      [1, 1],
    ]);
  });

  it("serve when they are enough for one pipeline, after a moment for the others to come", () => {
    const cluster = new FakeCluster({ pipelineCount: 2 });
    for (const connection of [1, 2, 3]) cluster.join(connection);
    cluster.pass(2_900, [1, 2, 3]);
    expect(cluster.core.notReady()!.message).toContain("waiting for workers: 3 of 4 have joined");
    cluster.pass(300, [1, 2, 3]);
    cluster.link();
    expect(cluster.core.notReady()).toBeNull();
    expect(statesOf(cluster)).toEqual(["ready", "waiting"]);
    expect(cluster.core.view().pipelines[1]!.reason).toBe("waiting for workers: 1 of 2 have joined");
    cluster.join(4);
    cluster.link();
    expect(statesOf(cluster)).toEqual(["ready", "ready"]);
  });

  it("keep their places when they come back", () => {
    const cluster = started();
    for (const connection of [1, 3, 2, 4]) cluster.core.membership.gone(connection, "restarted");
    for (const [connection, worker] of [3, 4, 1, 2].entries()) {
      cluster.join(10 + connection, { worker: `worker-${worker}` });
    }
    cluster.pass(500, [10, 11, 12, 13]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([
      ["1", "2"],
      ["3", "4"],
    ]);
  });

  it("take the place of a lost one when they are spare, and keep the others' stages", () => {
    const cluster = started();
    cluster.join(5);
    cluster.core.membership.gone(3, "its machine is gone");
    cluster.pass(300, [1, 2, 4, 5]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([
      ["1", "2"],
      ["5", "4"],
    ]);
    cluster.join(6, { worker: "worker-3" });
    cluster.pass(300, [1, 2, 4, 5, 6]);
    expect(workersOf(cluster)[1]).toEqual(["5", "4"]);
  });

  it("make one pipeline whole when two wait in vain, rather than two with fewer stages", () => {
    const cluster = started();
    cluster.core.membership.gone(2, "its machine is gone");
    cluster.core.membership.gone(3, "its machine is gone");
    cluster.pass(9_500, [1, 4]);
    expect(statesOf(cluster)).toEqual(["waiting", "waiting"]);
    cluster.pass(1_000, [1, 4]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([["1", "4"], []]);
    cluster.join(5, { worker: "worker-2" });
    cluster.join(6, { worker: "worker-3" });
    cluster.pass(6_000, [1, 4, 5, 6]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([
      ["1", "4"],
      ["3", "2"],
    ]);
  });

  it("go on with fewer stages when nobody makes them whole, and grow again when nothing runs there", () => {
    const cluster = started();
    cluster.core.membership.gone(2, "its machine is gone");
    cluster.pass(11_000, [1, 3, 4]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([["1"], ["3", "4"]]);
    cluster.core.admit(generation("x", [1, 2]));
    cluster.core.admit(generation("y", [3, 4]));
    expect(runningIn(cluster)).toEqual([1, 1]);
    cluster.join(5, { worker: "worker-2" });
    cluster.pass(300, [1, 3, 4, 5]);
    expect(workersOf(cluster)[0]).toEqual(["1"]);
    // So that nothing runs there some day.
    for (const id of ["p", "q", "r"]) cluster.core.admit(generation(id, [5]));
    expect(runningIn(cluster)).toEqual([1, 4]);
    cluster.answerAll();
    cluster.pass(300, [1, 3, 4, 5]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([
      ["1", "2"],
      ["3", "4"],
    ]);
    expect(cluster.tokensOf("x")).toEqual(expectedTokens([1, 2], 8));
    expect(cluster.tokensOf("y")).toEqual(expectedTokens([3, 4], 8));
  });

  it("go to a pipeline that waits before one that could grow", () => {
    const cluster = started();
    cluster.core.membership.gone(2, "its machine is gone");
    cluster.pass(11_000, [1, 3, 4]);
    cluster.link();
    cluster.core.membership.gone(4, "its machine is gone");
    cluster.join(5);
    cluster.pass(300, [1, 3, 5]);
    cluster.link();
    expect(workersOf(cluster)).toEqual([["1"], ["3", "5"]]);
  });
});

describe("sequences of several pipelines", () => {
  it("are spread, and answered alike", () => {
    const cluster = started();
    for (const id of ["a", "b", "c", "d"]) cluster.core.admit(generation(id, [id.charCodeAt(0)]));
    expect(runningIn(cluster)).toEqual([2, 2]);
    cluster.answerAll();
    for (const id of ["a", "b", "c", "d"]) {
      expect(cluster.tokensOf(id)).toEqual(expectedTokens([id.charCodeAt(0)], 8));
    }
    const view = cluster.core.view();
    expect(view.blocks.used).toBe(0);
    expect(view.blocks.total).toBe(2 * view.pipelines[0]!.blocks.total);
  });

  it("of one request are spread as well, but choices of one long prompt compute it together", () => {
    const cluster = started();
    const two = [1, 2].map((seed) => ({ promptTokens: ids(seed), seed: `${seed}` }));
    cluster.core.admit({ ...generation("two", []), choices: two });
    expect(runningIn(cluster)).toEqual([1, 1]);
    const prompt = Int32Array.from(ids(100));
    const same = [1, 2, 3].map((seed) => ({ promptTokens: prompt, seed: `${seed}` }));
    cluster.core.admit({ ...generation("same", []), choices: same });
    expect(runningIn(cluster)).toEqual([4, 1]);
  });

  it("go where their beginning is held", () => {
    const cluster = started();
    cluster.core.admit(generation("other", [7]));
    cluster.core.admit(generation("first", ids(40)));
    expect(pipelinesOf(cluster, "first")).toEqual([1]);
    cluster.answerAll();
    const second = [...ids(40), ...cluster.tokensOf("first"), ...ids(20, 500)];
    cluster.core.admit(generation("second", second));
    expect(pipelinesOf(cluster, "second")).toEqual([1]);
    cluster.answerAll();
    expect(cluster.tokensOf("second")).toEqual(expectedTokens(second, 8));
    const finish = eventsOf(cluster, "second").find(({ type }) => type === "finish");
    expect(finish).toMatchObject({ cachedTokens: 32 });
    // Another tenant shares nothing, and is not drawn there.
    cluster.core.admit({ ...generation("stranger", second), tenant: "other" });
    expect(pipelinesOf(cluster, "stranger")).toEqual([0]);
  });

  it("do not all crowd where the beginning that all share is held", () => {
    const cluster = started(2, { maxBlocks: 2_000 });
    cluster.core.admit(generation("first", ids(400)));
    cluster.answerAll();
    for (let n = 0; n < 30; n++) {
      cluster.core.admit(generation(`n${n}`, [...ids(400), n]));
      const [first, second] = runningIn(cluster) as [number, number];
      // When the second holds it too, they share what comes.
      if (n <= 8) expect([first, second]).toEqual([n + 1, 0]);
      else expect(first - second).toBeLessThanOrEqual(8);
    }
    expect(runningIn(cluster)).toEqual([15, 15]);
    cluster.answerAll();
    for (let n = 0; n < 30; n++) {
      expect(cluster.tokensOf(`n${n}`)).toEqual(expectedTokens([...ids(400), n], 8));
    }
  });
});

describe("the loss of one of several pipelines", () => {
  it("moves its sequences at once, wherever they are, and leaves the others alone", () => {
    const requests = [
      generation("a", ids(40)),
      generation("b", [5]),
      generation("scored", [3, 4, 5, 6], { promptLogprobs: true }),
      { ...generation("two", [5]), choices: [1, 2].map((seed) => ({ promptTokens: [5], seed: `${seed}` })) },
      generation("c", ids(30, 7)),
    ];
    const undisturbed = started(2, { prefillChunk: 8 });
    for (const request of requests) undisturbed.core.admit(request);
    undisturbed.answerAll();
    for (let after = 0; after < 16; after++) {
      const cluster = started(2, { prefillChunk: 8 });
      for (const request of requests) cluster.core.admit(request);
      for (let count = 0; count < after; count++) cluster.answer();
      const before = cluster.core.view().pipelines[1]!;
      const inFlight = cluster.steps.filter(({ pipeline }) => pipeline === 1).length;
      cluster.core.membership.gone(1, "its control stream broke");
      cluster.steps.splice(0, cluster.steps.length, ...cluster.steps.filter((step) => step.pipeline === 1));
      expect(cluster.core.ready).toBe(true);
      expect(cluster.core.view().pipelines[1]!.epoch).toEqual(before.epoch);
      expect(cluster.steps.length).toBeGreaterThanOrEqual(inFlight);
      cluster.answerAll();
      for (const { id } of requests) {
        const byChoice = (events: ReturnType<typeof eventsOf>) =>
          [0, 1].map((choice) => events.filter((event) => "choice" in event && event.choice === choice));
        expect(byChoice(eventsOf(cluster, id)), `${id} after ${after} steps`).toEqual(
          byChoice(eventsOf(undisturbed, id)),
        );
        expect(cluster.ended).toContain(id);
      }
      expect(cluster.core.requestCount).toBe(0);
      expect(cluster.core.view().blocks.used).toBe(0);
    }
  });

  it("is got over in portions when thousands are moved", () => {
    const cluster = started(2, { maxBlocks: 2_000 });
    for (let n = 0; n < 1_200; n++) cluster.core.admit(generation(`n${n}`, [n % 7], { maxTokens: 2 }));
    const waiting = () => cluster.core.view().sequences.running + cluster.core.view().sequences.waiting;
    expect(waiting()).toBe(1_200);
    cluster.core.membership.gone(1, "its control stream broke");
    const taken = () => cluster.core.view().pipelines[1]!.sequences;
    expect(taken().running + taken().waiting).toBe(600 + 256);
    expect(waiting()).toBe(1_200);
    cluster.pass(100, [2, 3, 4]);
    cluster.pass(100, [2, 3, 4]);
    expect(taken().running + taken().waiting).toBe(1_200);
    cluster.answerAll();
    expect(cluster.core.requestCount).toBe(0);
    expect(cluster.tokensOf("n1199")).toEqual(expectedTokens([1199 % 7], 2));
  });

  it("is over for new sequences when the pipeline has answered a first token again", () => {
    const cluster = started();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.core.admit(generation("a", [1]));
    cluster.core.admit(generation("b", [2]));
    expect(runningIn(cluster)).toEqual([0, 2]);
    cluster.join(5, { worker: "worker-1" });
    cluster.pass(300, [2, 3, 4, 5]);
    cluster.linkOnly();
    cluster.core.admit(generation("c", [3]));
    // The warm-up is all that runs there.
    expect(runningIn(cluster)).toEqual([1, 3]);
    cluster.answer(0);
    expect(cluster.recoveries).toEqual([{ reason: "worker_lost", afterMs: 300 }]);
    cluster.core.admit(generation("d", [4]));
    expect(runningIn(cluster)).toEqual([1, 3]);
    cluster.answerAll();
    for (const [index, id] of ["a", "b", "c", "d"].entries()) {
      expect(cluster.tokensOf(id)).toEqual(expectedTokens([index + 1], 8));
    }
  });

  it("makes sequences wait when no other one serves", () => {
    const cluster = started();
    cluster.core.admit(generation("a", [1]));
    cluster.core.admit(generation("b", [2]));
    cluster.answer();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.core.membership.gone(3, "its control stream broke");
    cluster.core.admit(generation("late", [3]));
    expect(cluster.core.notReady()!.code).toBe("model_loading");
    expect(cluster.core.requestCount).toBe(3);
    cluster.join(5, { worker: "worker-3" });
    cluster.pass(500, [2, 4, 5]);
    cluster.link();
    expect(statesOf(cluster)).toEqual(["waiting", "ready"]);
    expect(cluster.tokensOf("a")).toEqual(expectedTokens([1], 8));
    expect(cluster.tokensOf("b")).toEqual(expectedTokens([2], 8));
    expect(cluster.tokensOf("late")).toEqual(expectedTokens([3], 8));
  });

  it("makes a sequence wait that only the lost one has room for, but not for ever", () => {
    // A worker that offers less: its pipeline has fewer blocks.
    const small = () => {
      const cluster = new FakeCluster({ pipelineCount: 2, recoveryTimeoutMs: 20_000 });
      for (const connection of [1, 2]) cluster.join(connection);
      cluster.join(3, { memoryBytes: 5_050_000 });
      cluster.join(4, { memoryBytes: 5_050_000 });
      cluster.link();
      const [large, less] = cluster.core.view().pipelines.map(({ blocks }) => blocks.total);
      expect(less).toBeLessThan(large!);
      return { cluster, tokens: less! * 16 + 1 };
    };
    for (const comesBack of [true, false]) {
      const { cluster, tokens } = small();
      cluster.core.admit(generation("big", ids(tokens)));
      cluster.core.admit(generation("little", [1]));
      cluster.answer();
      cluster.core.membership.gone(1, "its control stream broke");
      expect(cluster.core.ready).toBe(true);
      cluster.answerAll();
      expect(cluster.ended.has(requestId("little"))).toBe(true);
      expect(cluster.ended.has(requestId("big"))).toBe(false);
      if (comesBack) {
        cluster.join(5, { worker: "worker-1" });
        cluster.pass(500, [2, 3, 4, 5]);
        cluster.link();
        expect(cluster.tokensOf("big")).toEqual(expectedTokens(ids(tokens), 8));
      } else {
        cluster.core.membership.gone(2, "its control stream broke");
        cluster.pass(19_500, [3, 4]);
        expect(cluster.core.requestCount).toBe(1);
        cluster.pass(1_000, [3, 4]);
        expect(eventsOf(cluster, "big").at(-1)).toMatchObject({
          type: "error",
          error: {
            code: "worker_lost",
            message: expect.stringContaining("within 20 s: waiting for workers"),
          },
        });
        expect(cluster.core.ready).toBe(true);
      }
      expect(cluster.core.requestCount).toBe(0);
    }
  });

  it("refuses what no pipeline could ever hold", () => {
    const cluster = started(2, { maxBlocks: 4 });
    cluster.core.admit(generation("huge", ids(80)));
    expect(eventsOf(cluster, "huge").at(-1)).toMatchObject({ error: { code: "context_length_exceeded" } });
  });
});

describe("a request that kills the workers which compute it", () => {
  it("is found across pipelines, and those beside it are answered", () => {
    const cluster = started();
    const good = ["a", "b", "c", "d", "e"];
    for (const id of [...good, "poison"]) cluster.core.admit(generation(id, [1, 2]));
    const poison = () =>
      cluster.steps.find(({ sequences }) => sequences!.some((rows) => rows.requestId === "log-poison"));
    let deaths = 0;
    let fresh = 5;
    const seats = new Map([1, 2, 3, 4].map((worker) => [`worker-${worker}`, worker]));
    for (let step = 0; step < 10_000; step++) {
      const killed = poison();
      if (killed !== undefined) {
        deaths++;
        const [stage] = cluster.core.view().pipelines[killed.pipeline!]!.stages;
        const { worker } = stage!;
        cluster.core.membership.gone(seats.get(worker)!, "its process crashed");
        seats.set(worker, fresh);
        cluster.join(fresh++, { worker });
        cluster.steps.splice(
          0,
          cluster.steps.length,
          ...cluster.steps.filter(({ pipeline }) => pipeline !== killed.pipeline),
        );
        continue;
      }
      if (cluster.steps.length > 0) cluster.answer();
      else if (cluster.core.requestCount === 0) break;
      else {
        cluster.pass(100, [...seats.values()]);
        cluster.linkOnly();
      }
    }
    expect(deaths).toBe(3);
    expect(eventsOf(cluster, "poison").at(-1)).toMatchObject({ error: { code: "request_poisoned" } });
    for (const id of good) expect(cluster.tokensOf(id), id).toEqual(expectedTokens([1, 2], 8));
    expect(cluster.core.requestCount).toBe(0);
  });
});

describe("a value that is not finite", () => {
  const asked = generation("x", ids(20), { maxTokens: 12 });
  const errorOf = (cluster: FakeCluster) =>
    eventsOf(cluster, "x").flatMap((event) => (event.type === "error" ? [event.error.code] : []));

  it("has the sequence computed once more by another pipeline, which its answer does not show", () => {
    const sound = started();
    sound.core.admit(asked);
    sound.answerAll();
    const cluster = started();
    cluster.core.admit(asked);
    for (let count = 0; count < 5; count++) cluster.answer();
    const [first] = cluster.steps.map(({ pipeline }) => pipeline!);
    cluster.broken.add(first!);
    cluster.answerAll();
    expect(eventsOf(cluster, "x")).toEqual(eventsOf(sound, "x"));
    expect(cluster.tokensOf("x")).toEqual(expectedTokens(ids(20), 12));
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("ends the request when the other pipeline computes one too, and nothing else", () => {
    const cluster = started();
    cluster.core.admit(asked);
    cluster.core.admit(generation("y", ids(20, 50), { maxTokens: 12 }));
    cluster.answer();
    cluster.answer();
    for (const pipeline of [0, 1]) cluster.broken.add(pipeline);
    while (errorOf(cluster).length === 0) cluster.answer();
    expect(errorOf(cluster)).toEqual(["numeric_error"]);
    expect(statesOf(cluster)).toEqual(["ready", "ready"]);
  });

  it("ends the request at once where there is no other pipeline", () => {
    const cluster = started(1);
    cluster.core.admit(asked);
    cluster.broken.add(0);
    cluster.answerAll();
    expect(errorOf(cluster)).toEqual(["numeric_error"]);
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});
