/** The next step leaves before text is made of the last one's tokens. */
import { describe, expect, it } from "vitest";
import { int32FromBytes } from "../../../common/bytes.js";
import { requestId } from "../../../common/ids.js";
import type { RequestEvent } from "../../../coordinator/inference.js";
import { expectedTokens, FakeCluster, generation, stopToken } from "../../support/fake-cluster.js";

const eventsOf = (cluster: FakeCluster, id: string): RequestEvent[] =>
  cluster.events.get(requestId(id)) ?? [];

/** Sequences of the steps that wait for an answer. */
const travelling = (cluster: FakeCluster): number[] =>
  cluster.steps.flatMap(({ sequences }) => sequences!.map(({ sequence }) => sequence!));

describe("a step's result", () => {
  it("is sent on before anything is told of it", () => {
    const cluster = new FakeCluster({ maxBlocks: 200 });
    cluster.start();
    for (let n = 0; n < 6; n++) cluster.core.admit(generation(`r${n}`, [n]));
    cluster.order.length = 0;
    cluster.answer();
    expect(cluster.order.indexOf("step")).toBeGreaterThanOrEqual(0);
    expect(cluster.order.indexOf("tokens")).toBeGreaterThan(cluster.order.indexOf("step"));
  });

  it("sends no row for a sequence that its id or its limit ends", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const whole = expectedTokens([4, 4], 64);
    const length = whole.indexOf(stopToken) + 1;
    cluster.core.admit(generation("stop", [4, 4], { ignoreEos: false, maxTokens: 64 }));
    let rows = 0;
    for (; cluster.steps.length > 0; cluster.answer()) rows += travelling(cluster).length;
    // The prompt's step, and one for each token but the last.
    expect(rows).toBe(length);
    cluster.core.admit(generation("limit", [1], { maxTokens: 5 }));
    for (rows = 0; cluster.steps.length > 0; cluster.answer()) rows += travelling(cluster).length;
    expect(rows).toBe(5);
  });

  it("has one row too many for a stop string, of which nobody hears", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const tokens = expectedTokens([1], 8);
    const stop = tokens.slice(2, 4).join("");
    cluster.core.admit(generation("s", [1], { stop: [stop] }));
    while (eventsOf(cluster, "s").at(-1)?.type !== "finish") cluster.answer();
    expect(travelling(cluster)).toHaveLength(1);
    const told = eventsOf(cluster, "s").length;
    cluster.answerAll();
    expect(eventsOf(cluster, "s")).toHaveLength(told);
    expect(cluster.tokensOf("s")).toEqual(tokens.slice(0, 4));
    expect(eventsOf(cluster, "s").at(-1)).toMatchObject({ completionTokens: 4, stopReason: stop });
    expect(cluster.core.view()).toMatchObject({
      blocks: { used: 0 },
      sequences: { running: 0, waiting: 0 },
      microBatchesInFlight: 0,
    });
  });

  it("counts min_tokens by what is decided, also where the text comes later", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("m", [1], { minTokens: 3, maxTokens: 6, stopTokenIds: [77] }));
    const bans: number[] = [];
    for (; cluster.steps.length > 0; cluster.answer()) {
      for (const { sampling } of cluster.steps[0]!.sequences!) {
        bans.push((sampling!.bannedTokens as Buffer).byteLength / 4);
      }
    }
    expect(bans).toEqual([2, 2, 2, 0, 0, 0]);
  });

  it("is told though the link to the first stage breaks while the next step is sent", () => {
    const cluster = new FakeCluster();
    cluster.start();
    for (const id of ["a", "b"]) cluster.core.admit(generation(id, [1, 2], { maxTokens: 6 }));
    cluster.answer();
    const before = eventsOf(cluster, "b").filter(({ type }) => type === "tokens").length;
    const epoch = cluster.core.membership.epoch!;
    cluster.breakLink = true;
    cluster.answer();
    expect(cluster.core.ready).toBe(false);
    expect(eventsOf(cluster, "b").filter(({ type }) => type === "tokens").length).toBe(before + 1);
    cluster.breakLink = false;
    cluster.pass(500, [1, 2]);
    expect(cluster.link().plan).toBe(epoch.plan + 1);
    for (const id of ["a", "b"]) expect(cluster.tokensOf(id)).toEqual(expectedTokens([1, 2], 6));
    expect(cluster.core.requestCount).toBe(0);
  });

  it("gives the same events wherever the link breaks, also where stop strings end replies and blanks", () => {
    const mask = 30;
    const context = { length: 4, mask: 1, constantPosition: true, remainingMasks: [3] };
    const filled = { promptTokens: [1, mask, 2, mask, 31], context, seed: "1" };
    const requests = [
      generation("s", [1], { stop: [expectedTokens([1], 8).slice(3, 5).join("")] }),
      generation("long", [5, 6], { maxTokens: 12 }),
      generation("scored", [3, 4, 5], { promptLogprobs: true, maxTokens: 3 }),
      { ...generation("blanks", [], { maxTokens: 5, stop: ["7", "4"] }), choices: [filled] },
    ];
    const run = (breakAfter: number | null) => {
      const cluster = new FakeCluster({ maxBlocks: 200 });
      cluster.start();
      for (const request of requests) cluster.core.admit(request);
      for (let count = 0; cluster.steps.length > 0; count++) {
        cluster.breakLink = count === breakAfter;
        cluster.answer();
      }
      cluster.breakLink = false;
      if (breakAfter !== null && !cluster.core.ready) {
        cluster.pass(500, [1, 2]);
        cluster.link();
      }
      expect(cluster.core.requestCount).toBe(0);
      expect(cluster.core.view().blocks.used).toBe(0);
      return requests.map(({ id }) => eventsOf(cluster, id));
    };
    const undisturbed = run(null);
    expect(undisturbed[0]!.at(-1)).toMatchObject({ type: "finish", reason: "stop" });
    expect(undisturbed[3]!.filter(({ type }) => type === "blank")).toHaveLength(2);
    for (let breakAfter = 0; breakAfter < 30; breakAfter++) {
      expect(run(breakAfter), `broken after ${breakAfter} answers`).toEqual(undisturbed);
    }
  });
});

describe("the message of a sequence that decodes", () => {
  /** What each step says of the only sequence, in turn: a header is read before it is answered. */
  function messages(cluster: FakeCluster) {
    const seen = [];
    for (; cluster.steps.length > 0; cluster.answer()) {
      const rows = cluster.steps[0]!.sequences![0]!;
      const banned = int32FromBytes(rows.sampling!.bannedTokens as Uint8Array);
      seen.push({
        message: rows,
        start: rows.validLength,
        tokens: [...int32FromBytes(rows.tokenIds as Uint8Array)],
        newBlocks: int32FromBytes(rows.newBlocks as Uint8Array).length,
        requestId: rows.requestId,
        banned: banned.length,
      });
    }
    return seen;
  }

  it("is made once, while the prompt is on its way, and filled in with each token", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const prompt = Array.from({ length: 14 }, (_, i) => i);
    const tokens = expectedTokens(prompt, 6);
    cluster.core.admit(generation("a", prompt, { maxTokens: 6 }));
    const [first, ...decodes] = messages(cluster);
    expect(first).toMatchObject({ start: 0, tokens: prompt, newBlocks: 1 });
    expect(first!.requestId).not.toBe("");
    expect(decodes).toMatchObject(
      tokens.slice(0, 5).map((token, index) => ({
        ...{ start: 14 + index, tokens: [token], newBlocks: 14 + index === 16 ? 1 : 0, requestId: "" },
      })),
    );
    expect(new Set(decodes.map(({ message }) => message)).size).toBe(1);
    expect(decodes[0]!.message).not.toBe(first!.message);
  });

  it("is not made before min_tokens are drawn, and bans nothing then", () => {
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(generation("b", [1, 2], { maxTokens: 7, minTokens: 3 }));
    expect(messages(cluster).map(({ banned }) => banned > 0)).toEqual([
      ...[true, true, true, false, false, false, false],
    ]);
  });
});
