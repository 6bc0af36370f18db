import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { expectedTokens, FakeCluster, generation, stopToken } from "../../support/fake-cluster.js";

describe("the coordinator's core", () => {
  it("runs a request without a socket, a timer or a real clock", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("a", [1, 2, 3]));
    cluster.answerAll();
    expect(cluster.tokensOf("a")).toEqual(expectedTokens([1, 2, 3], 8));
    expect(cluster.events.get(requestId("a"))!.at(-1)).toMatchObject({
      type: "finish",
      reason: "length",
      completionTokens: 8,
    });
    expect(cluster.ended).toContain("a");
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("has two micro-batches in flight when two sequences run on two stages", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("a", [1]));
    cluster.core.admit(generation("b", [2]));
    expect(cluster.core.view().microBatchesInFlight).toBe(2);
    cluster.answerAll();
    expect(cluster.tokensOf("a")).toEqual(expectedTokens([1], 8));
    expect(cluster.tokensOf("b")).toEqual(expectedTokens([2], 8));
  });

  it("is ready only after a token has come back through all stages", () => {
    const cluster = new FakeCluster();
    cluster.join(1);
    expect(cluster.core.notReady()!.message).toMatch(/waiting for workers: 1 of 2/);
    cluster.join(2);
    expect(cluster.core.notReady()!.message).toMatch(/loading: 0 of 2/);
    const epoch = cluster.core.membership.epoch!;
    cluster.heartbeat(1, 0, true, { loadedBytes: 30, loadBytes: 100 });
    expect(cluster.core.notReady()!.message).toMatch(/0 of 2 stages ready, 15 % of the weights read/);
    cluster.report(2, epoch, "LOADED");
    expect(cluster.core.notReady()!.message).toMatch(/1 of 2 stages ready, 65 % of the weights read/);
    expect(cluster.core.view().workers.map((worker) => worker.loadedRatio)).toEqual([0.3, 1]);
    cluster.report(1, epoch, "LOADED");
    for (const connection of [1, 2]) cluster.report(connection, epoch, "LINKED");
    expect(cluster.core.notReady()!.message).toMatch(/first token/);
    cluster.answerAll();
    expect(cluster.core.notReady()).toBeNull();
  });

  it("ends at a stop token, at a stop string and at the limit", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const whole = expectedTokens([4, 4], 64);
    expect(whole).toContain(stopToken);
    const before = whole.slice(0, whole.indexOf(stopToken));
    cluster.core.admit(generation("stop", [4, 4], { ignoreEos: false, maxTokens: 64 }));
    const text = expectedTokens([1], 8).join("");
    cluster.core.admit(generation("string", [1], { stop: [text.slice(3, 6)] }));
    cluster.answerAll();
    expect(cluster.tokensOf("stop")).toEqual(before);
    const events = cluster.events.get(requestId("string"))!;
    const shown = events
      .map((event) => (event.type === "tokens" || event.type === "finish" ? event.text : ""))
      .join("");
    const stopAt = text.indexOf(text.slice(3, 6));
    expect(shown).toBe(text.slice(0, stopAt));
    expect(events.at(-1)).toMatchObject({ reason: "stop", stopReason: text.slice(3, 6) });
  });

  it("scores a prompt without generating", () => {
    const cluster = new FakeCluster({ prefillChunk: 2 });
    cluster.start();
    cluster.core.admit(generation("s", [3, 1, 4, 1, 5], { maxTokens: 0, promptLogprobs: true }));
    cluster.answerAll();
    const [, scores, finish] = cluster.events.get(requestId("s"))!;
    expect(scores).toMatchObject({ type: "prompt" });
    expect(scores!.type === "prompt" && scores!.scores.map((score) => score?.token ?? null)).toEqual([
      null,
      1,
      4,
      1,
      5,
    ]);
    expect(finish).toMatchObject({ type: "finish", completionTokens: 0 });
  });

  it("finishes at once when neither tokens nor scores are wanted", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("e", [3], { maxTokens: 0 }));
    expect(cluster.steps).toEqual([]);
    expect(cluster.ended).toContain("e");
  });

  it("frees the blocks of a cancelled request when its step has come back", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("c", [1, 2]));
    cluster.core.cancel(requestId("c"));
    expect(cluster.core.view().blocks.used).toBe(1);
    cluster.answerAll();
    expect(cluster.core.view().blocks.used).toBe(0);
    expect(cluster.tokensOf("c")).toEqual([]);
  });

  it("refuses what can never fit, by its size", () => {
    const cluster = new FakeCluster({ maxBlocks: 2 });
    cluster.start();
    cluster.core.admit(generation("big", [1], { maxTokens: 64 }));
    expect(cluster.events.get(requestId("big"))).toMatchObject([
      { type: "error", error: { code: "context_length_exceeded" } },
    ]);
  });

  it("re-forms with a newer epoch when a worker goes, and serves again", () => {
    const cluster = new FakeCluster();
    const epoch = cluster.start();
    cluster.core.membership.gone(1, "its control stream broke");
    expect(cluster.sent.at(-1)).toMatchObject({ connection: 2, message: { release: { epoch } } });
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    const next = cluster.link();
    expect(next).toEqual({ term: 5, plan: epoch.plan + 1 });
    cluster.core.admit(generation("y", [1, 2]));
    cluster.answerAll();
    expect(cluster.tokensOf("y")).toEqual(expectedTokens([1, 2], 8));
  });

  it("drops the answer to a step of an older epoch", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("x", [1, 2]));
    const stale = cluster.steps[0]!;
    cluster.core.membership.gone(1, "gone");
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    cluster.steps.push(stale);
    cluster.answer();
    expect(cluster.core.ready).toBe(true);
  });

  it("does not listen to what workers say, or a last stage answers, of a plan of an older term", () => {
    const cluster = new FakeCluster();
    for (const connection of [1, 2]) cluster.join(connection, { highestTerm: 6 });
    const { plan } = cluster.core.membership.epoch!;
    expect(cluster.core.membership.epoch).toEqual({ term: 7, plan });
    for (const phase of ["LOADED", "LINKED"] as const) {
      for (const connection of [1, 2]) cluster.report(connection, { term: 6, plan }, phase);
    }
    expect(cluster.steps).toEqual([]);
    cluster.link();
    cluster.core.admit(generation("x", [1, 2]));
    cluster.report(1, { term: 6, plan }, "FAILED", "worker_lost");
    const step = Number(cluster.steps[0]!.step);
    cluster.core.stepResult({ epoch: { term: 6, plan }, pipeline: 0, step, sequences: [], stageUs: [] });
    expect(cluster.core.ready).toBe(true);
    cluster.answerAll();
    expect(cluster.tokensOf("x")).toEqual(expectedTokens([1, 2], 8));
  });

  it("loses no worker while its own loop stands still for three seconds", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.pass(1_000, [1, 2]);
    cluster.nowMs += 3_000;
    cluster.core.tick();
    cluster.pass(1_000, [1, 2]);
    expect(cluster.core.membership.counters.workersLost).toBe(0);
  });

  it("loses a worker that is silent for longer than its lease", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.pass(3_000, [2]);
    expect(cluster.core.membership.counters.workersLost).toBe(1);
    expect(cluster.core.notReady()!.code).toBe("model_loading");
  });

  it("notices a step that vanished between idle workers", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("v", [1, 2]));
    cluster.steps.length = 0;
    cluster.pass(6_000, [1, 2]);
    expect(cluster.core.ready).toBe(false);
    cluster.link();
    expect(cluster.tokensOf("v")).toEqual(expectedTokens([1, 2], 8));
  });

  it("tells once that a request has started, before its first token", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const two = generation("two", [1, 2, 3]);
    cluster.core.admit({ ...two, choices: [two.choices[0]!, { ...two.choices[0]!, seed: "2" }] });
    cluster.answerAll();
    const types = cluster.events.get(requestId("two"))!.map(({ type }) => type);
    expect(types[0]).toBe("started");
    expect(types.filter((type) => type === "started")).toHaveLength(1);
    expect(types.filter((type) => type === "finish")).toHaveLength(2);
  });

  it("names the request with the first rows of a sequence, and with no others", () => {
    const cluster = new FakeCluster({ prefillChunk: 2 });
    cluster.start();
    cluster.core.admit(generation("a", [1, 2, 3]));
    const names: string[] = [];
    while (cluster.steps.length > 0) {
      names.push(...cluster.steps[0]!.sequences!.map((rows) => rows.requestId!));
      cluster.answer();
    }
    expect(names.slice(0, 3)).toEqual(["log-a", "", ""]);
    expect(names.filter((name) => name !== "")).toHaveLength(1);
  });

  it("tells how long nothing was served after a loss, from the first loss on, and why", () => {
    const cluster = new FakeCluster();
    cluster.start();
    expect(cluster.recoveries).toEqual([]);
    cluster.core.membership.gone(2, "its control stream broke");
    cluster.pass(1_000, [1]);
    cluster.join(3);
    cluster.report(3, cluster.core.membership.epoch!, "FAILED", "stage_failed");
    cluster.pass(2_000, [1, 3]);
    cluster.link();
    expect(cluster.recoveries).toEqual([{ reason: "worker_lost", afterMs: 3_000 }]);
    const { counters } = cluster.core.view();
    expect(counters.workersLostByReason).toEqual({ left: 0, disconnected: 1, lease_over: 0, replaced: 0 });
    expect(counters.placementsByReason).toEqual({ start: 1, worker_lost: 1, stage_failed: 1 });
  });

  it("logs the way of a request under its name, and which requests a loss interrupted", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("a", [1, 2]));
    cluster.answerAll();
    cluster.core.admit(generation("b", [1, 2]));
    cluster.core.cancel(requestId("b"));
    cluster.answerAll();
    cluster.core.admit(generation("c", [1, 2]));
    cluster.core.membership.gone(2, "its control stream broke");
    const about = (id: string) =>
      cluster.logged.flatMap(({ message, fields }) => (fields?.["requestId"] === id ? [message] : []));
    expect(about("log-a")).toEqual(["request admitted", "request finished"]);
    expect(about("log-b")).toEqual(["request admitted", "request cancelled"]);
    expect(about("log-c")).toEqual(["request admitted"]);
    expect(cluster.logged).toContainEqual({
      level: "warn",
      message: "requests were interrupted",
      fields: { code: "worker_lost", count: 1, requestIds: ["log-c"] },
    });
  });

  it("refuses a worker of another protocol version or of another canon, with both printed", () => {
    const cluster = new FakeCluster();
    cluster.join(1, { protocolVersion: 99, softwareVersion: "9.9" });
    expect(cluster.sent.at(-1)!.message.refused!.message).toMatch(
      /protocol 99 \(version 9\.9\).*protocol \d/,
    );
    cluster.join(2);
    cluster.join(3, { canonVersion: 2 });
    expect(cluster.sent.at(-1)!.message.refused!.message).toMatch(/cpu\/canon 2.*cpu\/canon 1/);
  });

  it("tells every worker how the model is to be read", () => {
    const cluster = new FakeCluster();
    for (const worker of [1, 2]) cluster.join(worker);
    const plans = cluster.sent.flatMap(({ message }) => message.assign ?? []);
    expect(plans).toHaveLength(2);
    for (const plan of plans) {
      expect(plan).toMatchObject({
        modelDirectory: "/model",
        configOverrides: '{"seq_length":64}',
        prefixEncoder: "/prefix",
      });
    }
  });

  it("assigns the layers of a cut by hand, and says which stage of it does not fit", () => {
    const cut = [
      { layerBegin: 0, layerEnd: 3 },
      { layerBegin: 3, layerEnd: 4 },
    ];
    const cluster = new FakeCluster({ cut });
    cluster.join(1, { memoryBytes: 1_000_000 });
    cluster.join(2);
    expect(cluster.core.membership.notFormedReason).toMatch(
      /^the model does not fit: stage 0 with layers 0-2 needs \d+ bytes, worker "worker-1" offers 1000000: \d+ more$/,
    );
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    const assigned = cluster.sent.flatMap(({ message }) => message.assign ?? []);
    expect(assigned).toMatchObject(cut);
  });

  it("takes a term above the highest that any worker reports", () => {
    const cluster = new FakeCluster();
    cluster.join(1, { highestTerm: 41 });
    cluster.join(2);
    expect(cluster.core.membership.epoch).toEqual({ term: 42, plan: 1 });
  });

  it("takes another term than one that workers have from a process before it", () => {
    const cluster = new FakeCluster();
    cluster.join(1, { highestTerm: 5 });
    cluster.join(2, { highestTerm: 5 });
    expect(cluster.core.membership.epoch).toEqual({ term: 6, plan: 1 });
  });

  it("keeps its term when a worker comes back that has it from this process", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.membership.gone(1, "its control stream ended");
    cluster.join(3, { worker: "worker-1", highestTerm: 5 });
    cluster.pass(500, [2, 3]);
    expect(cluster.core.membership.epoch).toEqual({ term: 5, plan: 2 });
  });

  it("serves again after a loss that finds as many requests as it takes", () => {
    const cluster = new FakeCluster({ queueLimit: 2 });
    cluster.start();
    for (const id of ["y", "z"]) cluster.core.admit(generation(id, [1, 2]));
    cluster.core.membership.gone(1, "its control stream ended");
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(500, [2, 3]);
    cluster.link();
    for (const id of ["y", "z"]) expect(cluster.tokensOf(id)).toEqual(expectedTokens([1, 2], 8));
  });

  it("ends the epoch when the last stage answers something that was not asked", () => {
    const cluster = new FakeCluster();
    const epoch = cluster.start();
    cluster.core.admit(generation("z", [1, 2]));
    cluster.core.stepResult({ epoch, pipeline: 0, step: 77, sequences: [], stageUs: [] });
    expect(cluster.core.ready).toBe(false);
    cluster.pass(500, [1, 2]);
    expect(cluster.link()).toEqual({ term: 5, plan: epoch.plan + 1 });
    expect(cluster.tokensOf("z")).toEqual(expectedTokens([1, 2], 8));
  });

  it("ends the epoch when an answer lacks the compute time of a stage", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("z", [1, 2]));
    cluster.stageTimes = () => [7];
    cluster.answer();
    expect(cluster.core.ready).toBe(false);
    expect(cluster.logged).toContainEqual(
      expect.objectContaining({ message: "requests were interrupted", level: "warn" }),
    );
    cluster.stageTimes = () => [7, 7];
    cluster.pass(500, [1, 2]);
    cluster.link();
    expect(cluster.tokensOf("z")).toEqual(expectedTokens([1, 2], 8));
  });

  it("tries again, at growing intervals, when a stage cannot be built", () => {
    const cluster = new FakeCluster();
    cluster.join(1);
    cluster.join(2);
    for (let attempt = 1; attempt <= 4; attempt++) {
      const epoch = cluster.core.membership.epoch!;
      expect(epoch.plan).toBe(attempt);
      cluster.report(2, epoch, "FAILED", "stage_failed");
      expect(cluster.core.membership.epoch).toBeNull();
      cluster.pass(100 * 2 ** (attempt - 1) + 100, [1, 2]);
    }
  });
});
