/** Blanks of a prefix-LM's context through the coordinator's core, one after the other. */
import { describe, expect, it } from "vitest";
import { int32FromBytes } from "../../../common/bytes.js";
import { requestId } from "../../../common/ids.js";
import { maxContextRows } from "../../../common/limits.js";
import type { GenerationRequest, PromptContext, SamplingParams } from "../../../coordinator/inference.js";
import { FakeCluster, generation, nextToken, stopToken } from "../../support/fake-cluster.js";

const mask = 20;
const sop = 30;

/** Of a prompt that holds `sop`: its blanks are filled from left to right. */
function contextOf(prompt: number[]): PromptContext {
  const length = prompt.indexOf(sop);
  const places = prompt.flatMap((token, index) => (token === mask && index < length ? [index] : []));
  const [first = -1, ...remainingMasks] = places;
  return { length, mask: first, constantPosition: true, remainingMasks };
}

function filling(
  id: string,
  prompt: number[],
  overrides: Partial<SamplingParams> = {},
  n = 1,
): GenerationRequest {
  const choices = Array.from({ length: n }, (_, index) => ({
    promptTokens: prompt,
    context: contextOf(prompt),
    seed: `${index}`,
  }));
  return { ...generation(id, [], overrides), choices };
}

/** What the fake model writes behind a prompt: until the stop token if that counts, within the limit. */
function replyTo(prompt: number[], limit: number, ignoreEos = true): { tokens: number[]; stopped: boolean } {
  const all = [...prompt];
  for (let count = 0; count < limit; count++) {
    const token = nextToken(all);
    if (token === stopToken && !ignoreEos) return { tokens: all.slice(prompt.length), stopped: true };
    all.push(token);
  }
  return { tokens: all.slice(prompt.length), stopped: false };
}

/** Every blank's reply, each in the context in which those before are filled. */
function fillings(
  prompt: number[],
  limit: number,
  ignoreEos: boolean,
): { tokens: number[]; stopped: boolean }[] {
  const replies: { tokens: number[]; stopped: boolean }[] = [];
  for (let ids = prompt; ; ) {
    const { length, mask: at, remainingMasks } = contextOf(ids);
    const reply = replyTo(ids, limit, ignoreEos);
    replies.push(reply);
    if (remainingMasks.length === 0) return replies;
    ids = [...ids.slice(0, at), ...ids.slice(length + 1), ...reply.tokens, ...ids.slice(at + 1, length), sop];
  }
}

const eventsOf = (cluster: FakeCluster, id: string) => cluster.events.get(requestId(id)) ?? [];

describe("blanks in a context", () => {
  it.each([
    ["at the end of a piece", [1, mask, 2, mask, 3, mask, sop], { maxTokens: 12, ignoreEos: false }],
    ["at the limit", [1, mask, 2, mask, sop], { maxTokens: 3, ignoreEos: true }],
    ["with tokens behind the start", [1, mask, 2, mask, 4, sop, 5, 6], { maxTokens: 2, ignoreEos: true }],
    ["side by side and at both ends", [mask, mask, 7, mask, sop], { maxTokens: 5, ignoreEos: false }],
  ] as const)("are filled one after the other, ended %s", (_, ids, overrides) => {
    const prompt = [...ids];
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(filling("b", prompt, overrides, 3));
    cluster.answerAll();
    const expected = fillings(prompt, overrides.maxTokens, overrides.ignoreEos);
    for (let choice = 0; choice < 3; choice++) {
      const own = eventsOf(cluster, "b").filter((event) => "choice" in event && event.choice === choice);
      const blanks = own.flatMap((event) => (event.type === "blank" ? [event] : []));
      expect(blanks.map(({ blank }) => blank)).toEqual(expected.map((__, index) => index));
      expect(blanks.every((blank) => blank.mask === mask)).toBe(true);
      const finish = own.at(-1);
      expect(own.flatMap((event) => (event.type === "tokens" ? event.tokens : []))).toEqual(
        expected.flatMap(({ tokens }) => tokens),
      );
      expect(blanks.map(({ reason }) => reason)).toEqual(
        expected.map(({ stopped }) => (stopped ? "stop" : "length")),
      );
      // The token that ends a blank counts, as one that ends a reply does.
      expect(finish).toMatchObject({
        type: "finish",
        text: "",
        completionTokens: expected.reduce(
          (sum, { tokens, stopped }) => sum + tokens.length + Number(stopped),
          0,
        ),
      });
    }
    expect(cluster.core.requestCount).toBe(0);
    expect(cluster.core.view().blocks.used).toBe(0);
  });

  it("obey stop rules and the least number of tokens each on their own", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const prompt = [1, mask, 2, mask, sop];
    const [first] = replyTo(prompt, 4).tokens;
    cluster.core.admit(filling("s", prompt, { maxTokens: 6, minTokens: 2, stopTokenIds: [first!] }));
    const bans: number[] = [];
    while (cluster.steps.length > 0) {
      const [rows] = cluster.steps[0]!.sequences!;
      bans.push((rows!.sampling!.bannedTokens as Uint8Array).length / 4);
      cluster.answer();
    }
    const perBlank: number[][] = [];
    let counted = 0;
    let started = 0;
    for (const event of eventsOf(cluster, "s")) {
      if (event.type === "tokens") counted++;
      if (event.type !== "blank") continue;
      const drawn = counted + Number(event.reason === "stop");
      perBlank.push(bans.slice(started, started + drawn));
      started += drawn;
      counted = 0;
    }
    expect(perBlank).toHaveLength(2);
    // Both stop tokens are banned twice at the beginning of either blank.
    for (const banned of perBlank) expect(banned.slice(0, 3)).toEqual([2, 2, 0].slice(0, banned.length));
  });

  it.each([
    [false, 1],
    [true, 3],
  ])("ended by a stop string go on in a context with what was told of them (stop told: %s)", (told, kept) => {
    const cluster = new FakeCluster();
    cluster.start();
    const prompt = [1, mask, 2, mask, sop];
    const reply = replyTo(prompt, 3).tokens;
    const stop = reply.slice(1).join("");
    const overrides = { maxTokens: 6, stop: [stop], includeStopInOutput: told };
    cluster.core.admit(filling("t", prompt, overrides));
    while (eventsOf(cluster, "t").every(({ type }) => type !== "blank")) cluster.answer();
    const blank = eventsOf(cluster, "t").at(-1);
    expect(blank).toMatchObject({ type: "blank", reason: "stop" });
    // Before it travels the row that was sent before the text showed the stop string.
    const [next] = cluster.steps.at(-1)!.sequences!;
    expect([...int32FromBytes(next!.tokenIds as Uint8Array)]).toEqual([
      1,
      ...reply.slice(0, kept),
      2,
      mask,
      sop,
    ]);
  });

  it("can be cancelled between two of them and leave nothing behind", () => {
    for (let after = 1; after < 9; after++) {
      const cluster = new FakeCluster();
      cluster.start();
      cluster.core.admit(filling("c", [1, mask, 2, mask, 3, mask, sop], { maxTokens: 3 }));
      for (let count = 0; count < after; count++) cluster.answer();
      cluster.core.cancel(requestId("c"));
      const told = eventsOf(cluster, "c").length;
      cluster.answerAll();
      expect(eventsOf(cluster, "c")).toHaveLength(told);
      expect(cluster.core.requestCount).toBe(0);
      const { blocks, sequences } = cluster.core.view();
      expect([blocks.used, sequences.running, sequences.waiting]).toEqual([0, 0, 0]);
    }
  });

  it("go on where they were when a worker is lost, wherever that is", () => {
    const undisturbed = new FakeCluster();
    undisturbed.start();
    undisturbed.core.admit(filling("w", [1, mask, 2, mask, sop], { maxTokens: 3 }));
    undisturbed.answerAll();

    for (let after = 1; after < 6; after++) {
      const cluster = new FakeCluster();
      cluster.start();
      cluster.core.admit(filling("w", [1, mask, 2, mask, sop], { maxTokens: 3 }));
      for (let count = 0; count < after; count++) cluster.answer();
      cluster.core.membership.gone(1, "its control stream broke");
      cluster.join(3, { worker: "worker-1" });
      cluster.pass(500, [2, 3]);
      cluster.link();
      expect(eventsOf(cluster, "w")).toEqual(eventsOf(undisturbed, "w"));
      expect(cluster.core.requestCount).toBe(0);
    }
  });

  it("score a prompt once, behind its context", () => {
    const cluster = new FakeCluster();
    cluster.start();
    const prompt = [1, mask, 2, mask, sop, 5, 6];
    cluster.core.admit(filling("p", prompt, { maxTokens: 2, promptLogprobs: true }));
    cluster.answerAll();
    const scored = eventsOf(cluster, "p").flatMap((event) => (event.type === "prompt" ? [event.scores] : []));
    expect(scored.map((scores) => scores.map((score) => score?.token ?? null))).toEqual([
      [null, null, null, null, null, 5, 6],
    ]);
  });

  it("count with all they may take when a request is admitted", () => {
    const cluster = new FakeCluster({ maxBlocks: 2 });
    cluster.start();
    cluster.core.admit(filling("fits", [1, mask, mask, sop], { maxTokens: 14 }));
    cluster.answerAll();
    expect(eventsOf(cluster, "fits").at(-1)).toMatchObject({ type: "finish", completionTokens: 28 });
    cluster.core.admit(filling("more", [1, mask, mask, sop], { maxTokens: 15 }));
    expect(eventsOf(cluster, "more")).toMatchObject([
      {
        type: "error",
        error: { code: "context_length_exceeded", message: expect.stringContaining("30 new") },
      },
    ]);
  });

  it("and contexts longer than one step reads are refused, those before filled", () => {
    const cluster = new FakeCluster({ maxBlocks: 1_000 });
    cluster.start();
    const prompt = (length: number) => [mask, mask, ...Array.from({ length: length - 2 }, () => 1), sop];
    cluster.core.admit(filling("long", prompt(maxContextRows), { maxTokens: 1 }));
    cluster.answerAll();
    expect(eventsOf(cluster, "long").at(-1)).toMatchObject({ type: "finish" });
    for (const [id, length, maxTokens] of [
      ["longer", maxContextRows + 1, 1],
      ["filled", maxContextRows, 2],
    ] as const) {
      cluster.core.admit(filling(id, prompt(length), { maxTokens }));
      expect(eventsOf(cluster, id)).toMatchObject([
        { type: "error", error: { code: "context_length_exceeded" } },
      ]);
    }
    expect(cluster.core.view().blocks.used).toBe(0);
  });
});

describe("a prefix encoder's slots", () => {
  it("are in front of every sequence's own blocks", () => {
    const cluster = new FakeCluster({ maxBlocks: 3, prefixLength: 20 });
    cluster.start();
    expect(cluster.core.sequenceTokens).toBe(28);
    cluster.core.admit(
      generation(
        "fits",
        Array.from({ length: 24 }, () => 1),
        { maxTokens: 5 },
      ),
    );
    cluster.answerAll();
    expect(eventsOf(cluster, "fits").at(-1)).toMatchObject({ type: "finish", completionTokens: 5 });
    cluster.core.admit(
      generation(
        "more",
        Array.from({ length: 24 }, () => 1),
        { maxTokens: 6 },
      ),
    );
    expect(eventsOf(cluster, "more").at(-1)).toMatchObject({ error: { code: "context_length_exceeded" } });
  });

  it("must fit with one token before a pipeline is formed", () => {
    const cluster = new FakeCluster({ prefixLength: 3_000_000 });
    for (const connection of [1, 2]) cluster.join(connection);
    expect(cluster.core.membership.epoch).toBeNull();
    expect(cluster.core.notReady()!.message).toMatch(/does not fit/);
  });
});
