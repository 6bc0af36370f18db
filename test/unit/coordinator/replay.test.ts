/** Decided tokens put a choice back to where it was, wherever the coordinator died. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import type { GenerationRequest, PromptContext, RequestEvent } from "../../../coordinator/inference.js";
import { ChoiceOutput } from "../../../coordinator/output/choice-output.js";
import { ChoicePrompt } from "../../../coordinator/output/choice-prompt.js";
import { canReplay, replay } from "../../../coordinator/output/replay.js";
import { type Detokenizer, StreamDetokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { FakeCluster, generation, sampling } from "../../support/fake-cluster.js";

const eos = 256;

/** Tokens are bytes, so that characters come in halves and quarters. */
function bytes(): Detokenizer {
  return new StreamDetokenizer(
    {
      tokenText: (id) =>
        id === eos ? { kind: "special", name: "<end>" } : { kind: "bytes", bytes: Buffer.of(id) },
      leadingSpaces: "keep",
      replacement: "perByte",
    },
    { skipSpecialTokens: true },
  );
}

/** All that an answer is made of. */
function outcome(events: readonly RequestEvent[]) {
  let text = "";
  const tokens: number[] = [];
  for (const event of events) {
    if (event.type === "tokens") tokens.push(...event.tokens);
    if (event.type === "tokens" || event.type === "finish") text += event.text;
  }
  const { text: _, ...finish } = events.find(({ type }) => type === "finish") as Extract<
    RequestEvent,
    { type: "finish" }
  >;
  return { text, tokens, finish };
}

describe("decided tokens that are replayed", () => {
  const stops = fc.array(fc.constantFrom("é", "ab", "aba", "☃b", "a😀"), { maxLength: 3 });
  const text = fc.string({ unit: fc.constantFrom("a", "b", "é", "☃", "😀"), minLength: 1, maxLength: 24 });
  const rules = fc.record({
    stop: stops,
    maxTokens: fc.integer({ min: 1, max: 60 }),
    minTokens: fc.integer({ min: 0, max: 6 }),
    ignoreEos: fc.boolean(),
    includeStopInOutput: fc.boolean(),
    stopTokenIds: fc.array(fc.constant("b".charCodeAt(0)), { maxLength: 1 }),
  });

  it("leave the text, the tokens and the end as they were, wherever the cut is", () => {
    fc.assert(
      fc.property(text, rules, fc.boolean(), fc.nat({ max: 1_000 }), (words, overrides, ends, at) => {
        const drawn = [...Buffer.from(words), ...(ends ? [eos] : []), ...Buffer.from("tail".repeat(20))];
        const newOutput = () =>
          new ChoiceOutput(0, { sampling: sampling(overrides), modelStopTokens: new Set([eos]) }, bytes());
        const undisturbed = newOutput();
        const expected: RequestEvent[] = [];
        let decided = 0;
        while (expected.at(-1)?.type !== "finish") {
          expected.push(...undisturbed.push({ token: drawn[decided++]!, logprob: 0, top: [] }));
        }
        // Any cut, that at the end and that before the first token included.
        const cut = at % (decided + 1);
        const output = newOutput();
        const prompt = new ChoicePrompt(0, [1], null);
        const { events, generated } = replay(output, prompt, drawn.slice(0, cut));
        expect(generated).toEqual(drawn.slice(0, cut));
        const all = [...events];
        for (let next = cut; all.at(-1)?.type !== "finish"; next++) {
          all.push(...output.push({ token: drawn[next]!, logprob: 0, top: [] }));
        }
        expect(outcome(all)).toEqual(outcome(expected));
        expect(output.tokensBehindEnd).toBe(undisturbed.tokensBehindEnd);
      }),
      { numRuns: 2_000 },
    );
  });

  it("come as one event, and none of them counts behind the end", () => {
    const rule = { sampling: sampling({ maxTokens: 3 }), modelStopTokens: new Set<number>() };
    const output = new ChoiceOutput(0, rule, bytes());
    const { events, generated } = replay(output, new ChoicePrompt(0, [1], null), [...Buffer.from("abcdef")]);
    expect(generated).toEqual([...Buffer.from("abc")]);
    expect(events.map(({ type }) => type)).toEqual(["tokens", "finish"]);
    expect(events.at(-1)).toMatchObject({ reason: "length", completionTokens: 3 });
  });

  it("fill the only blank of a context as they would have", () => {
    const context: PromptContext = { length: 3, mask: 1, constantPosition: false, remainingMasks: [] };
    const rule = { sampling: sampling({ maxTokens: 3 }), modelStopTokens: new Set<number>() };
    const prompt = new ChoicePrompt(0, [7, 8, 9, 1], context);
    const { events } = replay(new ChoiceOutput(0, rule, bytes()), prompt, [...Buffer.from("abc")]);
    expect(events.map(({ type }) => type)).toEqual(["tokens", "blank", "finish"]);
    expect(events).toMatchObject([{ text: "ab" }, { mask: 8, text: "c" }, { text: "" }]);
  });
});

describe("whether a request can be replayed", () => {
  it("a plain one can, one that is scored cannot", () => {
    expect(canReplay(generation("a", [1]))).toBe(true);
    expect(canReplay(generation("a", [1], { topLogprobs: 0 }))).toBe(false);
    expect(canReplay(generation("a", [1], { promptLogprobs: true }))).toBe(false);
  });

  it("not with several blanks", () => {
    const context = (remainingMasks: number[]) => ({
      length: 4,
      mask: 0,
      constantPosition: false,
      remainingMasks,
    });
    const filling = (masks: number[]): GenerationRequest => ({
      ...generation("a", []),
      choices: [{ promptTokens: [1, 2, 3, 4, 5], seed: "1", context: context(masks) }],
    });
    expect(canReplay(filling([]))).toBe(true);
    expect(canReplay(filling([2]))).toBe(false);
  });
});

describe("a core that is given decided tokens", () => {
  const requests: GenerationRequest[] = [
    generation("plain", [1, 2], { maxTokens: 12 }),
    generation("ends", [8], { ignoreEos: false }),
    generation("ends-late", [1, 2], { maxTokens: 12, stopTokenIds: [2], minTokens: 5 }),
    generation("stops", [1, 2], { maxTokens: 30, stop: ["626", "2486248"] }),
    {
      ...generation("two", [5]),
      choices: [1, 2].map((seed) => ({ promptTokens: [5, seed], seed: `${seed}` })),
    },
  ];

  const run = (request: GenerationRequest, decided?: number[][]) => {
    const cluster = new FakeCluster({ prefillChunk: 4 });
    cluster.start();
    cluster.core.admit(request, decided);
    cluster.answerAll();
    expect(cluster.ended).toContain(request.id);
    expect(cluster.core.view().blocks.used).toBe(0);
    const events = cluster.events.get(requestId(request.id))!;
    return {
      events,
      choices: request.choices.map((_, index) =>
        outcome(events.filter((event) => "choice" in event && event.choice === index)),
      ),
    };
  };

  it.each(requests.map((request) => [request.id, request] as const))(
    "answers as an undisturbed one, whatever was decided of it: %s",
    (_, request) => {
      const { choices: expected } = run(request);
      const counts = expected.map(({ tokens }) => tokens.length);
      for (let first = 0; first <= counts[0]!; first++) {
        for (let second = 0; second <= (counts[1] ?? 0); second++) {
          const decided = expected.map(({ tokens }, i) => tokens.slice(0, i === 0 ? first : second));
          const again = run(request, decided).choices;
          // Only what is computed now can have been found in a cache.
          const plain = (outcomes: typeof expected) =>
            outcomes.map(({ finish: { cachedTokens: _cached, ...finish }, ...rest }) => ({
              ...rest,
              finish,
            }));
          expect(plain(again), `after ${first} and ${second} tokens`).toEqual(plain(expected));
        }
      }
    },
  );

  it("is tried with requests that end in every way", () => {
    const ends = requests.map((request) => run(request).choices[0]!.finish);
    expect(ends.map(({ reason, stopReason }) => [reason, stopReason])).toEqual([
      ["length", null],
      ["stop", null],
      ["stop", 2],
      ["stop", "2486248"],
      ["length", null],
    ]);
  });

  it("sends nothing for a request whose last token was decided", () => {
    const request = generation("x", [1, 2], { maxTokens: 4 });
    const { tokens } = run(request).choices[0]!;
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(request, [tokens]);
    expect(cluster.steps).toEqual([]);
    expect(cluster.events.get(request.id)!.map(({ type }) => type)).toEqual(["tokens", "finish"]);
  });

  it("computes prompt and decided tokens together, and draws only what is missing", () => {
    const request = generation("x", [1, 2, 3], { maxTokens: 10 });
    const { tokens } = run(request).choices[0]!;
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(request, [tokens.slice(0, 7)]);
    expect(cluster.steps.map(({ sequences }) => sequences!.map(({ rowCount }) => rowCount))).toEqual([[10]]);
    let steps = 0;
    for (; cluster.steps.length > 0; steps++) cluster.answer();
    expect(steps).toBe(3);
    expect(cluster.tokensOf("x")).toEqual(tokens);
  });

  it("keeps them through the loss of a worker", () => {
    const request = generation("x", [1, 2, 3], { maxTokens: 10 });
    const { tokens } = run(request).choices[0]!;
    const cluster = new FakeCluster();
    cluster.start();
    cluster.core.admit(request, [tokens.slice(0, 5)]);
    cluster.answer();
    cluster.core.membership.gone(1, "its control stream broke");
    cluster.join(3, { worker: "worker-1" });
    cluster.pass(6_000, [2, 3]);
    cluster.link();
    expect(cluster.tokensOf("x")).toEqual(tokens);
  });
});
