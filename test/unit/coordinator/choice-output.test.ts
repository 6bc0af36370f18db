import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { RequestEvent, SamplingParams } from "../../../coordinator/inference.js";
import { ChoiceOutput } from "../../../coordinator/output/choice-output.js";
import { sampling } from "../../support/fake-cluster.js";

const eos = 0;
/** Token n is the n-th letter; the detokenizer gives each out at once. */
const letters = " abcdefghijklmnopqrstuvwxyz";

function run(text: string, overrides: Partial<SamplingParams>): RequestEvent[] {
  const rules = { sampling: sampling({ maxTokens: 1_000, ...overrides }), modelStopTokens: new Set([eos]) };
  const output = new ChoiceOutput(0, rules, { push: (token) => letters[token]!, flush: () => "" });
  const events: RequestEvent[] = [];
  for (const letter of text) {
    events.push(...output.push({ token: letters.indexOf(letter), logprob: -1, top: [] }));
    if (events.at(-1)!.type === "finish") break;
  }
  return events;
}

const textOf = (events: RequestEvent[]): string =>
  events.map((event) => (event.type === "tokens" || event.type === "finish" ? event.text : "")).join("");

describe("the output of a choice", () => {
  it("knows the tokens behind the end of its text, also those whose text came late", () => {
    // Token 1 and 2 are parts of the letter that token 3 ends.
    const texts = ["", "", "", "x", "y", "yz"];
    const rules = { sampling: sampling({ maxTokens: 99, stop: ["xy"] }), modelStopTokens: new Set<number>() };
    const behind = (tokens: number[]) => {
      const output = new ChoiceOutput(0, rules, { push: (token) => texts[token]!, flush: () => "" });
      for (const token of tokens) output.push({ token, logprob: -1, top: [] });
      return output.tokensBehindEnd;
    };
    expect(behind([4, 4, 1, 2, 3, 4])).toBe(4);
    expect(behind([4, 1, 2, 3, 4])).toBe(4);
    expect(behind([3, 3, 3, 4])).toBe(2);
    expect(behind([4, 3, 5])).toBe(2);
    expect(behind([4, 3])).toBe(0);
  });

  it("gives each token's text at once when nothing can stop it", () => {
    const events = run("abc", {});
    expect(events.map((event) => event.type === "tokens" && event.text)).toEqual(["a", "b", "c"]);
  });

  it("ends at the model's stop token, which never becomes text but counts as a token", () => {
    const events = run("ab cd", { ignoreEos: false });
    expect(textOf(events)).toBe("ab");
    expect(events.at(-1)).toEqual({
      type: "finish",
      choice: 0,
      text: "",
      reason: "stop",
      stopReason: null,
      completionTokens: 3,
    });
  });

  it("goes on past the stop token with ignore_eos, up to the limit", () => {
    const events = run("ab cdefgh", { ignoreEos: true, maxTokens: 5 });
    expect(textOf(events)).toBe("ab cd");
    expect(events.at(-1)).toMatchObject({ reason: "length", completionTokens: 5 });
  });

  it("names an extra stop token by its id", () => {
    expect(run("abc", { stopTokenIds: [3] }).at(-1)).toMatchObject({ reason: "stop", stopReason: 3 });
  });

  it("holds back the beginning of a stop string and gives it out when it turns out to be none", () => {
    const events = run("abxabcd", { stop: ["abc"] });
    expect(events.map((event) => (event.type === "tokens" ? event.text : null))).toEqual([
      "",
      "",
      "abx",
      "",
      "",
      "",
      null,
    ]);
    expect(textOf(events)).toBe("abx");
    expect(events.at(-1)).toMatchObject({ reason: "stop", stopReason: "abc" });
  });

  it("includes the stop string when asked", () => {
    expect(textOf(run("xyabcz", { stop: ["abc"], includeStopInOutput: true }))).toBe("xyabc");
  });

  it("bans stop tokens and ignores stop strings before min_tokens", () => {
    const rules = {
      sampling: sampling({ minTokens: 2, stopTokenIds: [5] }),
      modelStopTokens: new Set([eos]),
    };
    const output = new ChoiceOutput(0, rules, { push: (token) => letters[token]!, flush: () => "" });
    expect(output.bannedTokens(0)).toEqual([eos, 5]);
    expect(output.bannedTokens(1)).toEqual([eos, 5]);
    expect(output.bannedTokens(2)).toEqual([]);
    expect(textOf(run("aaab", { stop: ["a"], minTokens: 2 }))).toBe("aa");
    expect(run("aaab", { stop: ["a"], minTokens: 2 })).toHaveLength(4);
  });

  it("knows from a token's id and number alone what `push` finds when it takes the token", () => {
    const token = fc.integer({ min: 0, max: 4 });
    fc.assert(
      fc.property(
        fc.array(token, { minLength: 1, maxLength: 12 }),
        fc.record({
          maxTokens: fc.integer({ min: 1, max: 10 }),
          minTokens: fc.integer({ min: 0, max: 6 }),
          ignoreEos: fc.boolean(),
          stopTokenIds: fc.array(token, { maxLength: 2 }),
        }),
        (tokens, overrides) => {
          const rules = { sampling: sampling(overrides), modelStopTokens: new Set([eos]) };
          const output = new ChoiceOutput(0, rules, { push: (id) => letters[id]!, flush: () => "" });
          for (const [index, id] of tokens.entries()) {
            const foretold = output.endsWith(id, index + 1);
            const ended = output.push({ token: id, logprob: 0, top: [] }).at(-1)!.type === "finish";
            expect(foretold).toBe(ended);
            if (ended) return;
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it("streams exactly the text before the first stop string, for any text and stops", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 30 }),
        fc.array(word, { minLength: 1, maxLength: 3 }),
        (text, stop) => {
          const ends = stop
            .map((word) => text.indexOf(word) + word.length)
            .filter((_, i) => text.includes(stop[i]!));
          const events = run(text, { stop, maxTokens: text.length });
          if (ends.length === 0) {
            expect(textOf(events)).toBe(text);
            return;
          }
          const end = Math.min(...ends);
          const begins = stop
            .filter((word) => text.slice(0, end).endsWith(word))
            .map((word) => end - word.length);
          expect(textOf(events)).toBe(text.slice(0, Math.min(...begins)));
        },
      ),
      { numRuns: 500 },
    );
  });
});
