import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { GenerationRequest } from "../../../coordinator/inference.js";
import { readRecord } from "../../../coordinator/queue/check-record.js";
import { toRecord } from "../../../coordinator/queue/record.js";
import { generation } from "../../support/fake-cluster.js";

const tokenCount = 1_000;
const promptTokens = Int32Array.of(1, 2, 999);

const request: GenerationRequest = {
  ...generation("cmpl-1", [], { stop: ["é", "\n"], stopTokenIds: [7] }),
  choices: [
    { promptTokens, seed: "-9223372036854775808" },
    {
      promptTokens,
      seed: "3",
      context: { length: 2, mask: 0, constantPosition: true, remainingMasks: [1] },
    },
  ],
  cacheSalt: "salt",
  answer: { n: 2, asTokenIds: false, options: { logprobs: false, echoedTexts: ["a secret"] } },
  accepted: { term: 3, atMs: 1_700_000_000_000.25, numericsId: "cpu/canon1/f", recoveries: 0, tokens: 0 },
};
const text = JSON.stringify(toRecord(request));

/** The record with one field replaced; undefined removes it. */
function damaged(path: string, value: unknown): string {
  const record = JSON.parse(text);
  const names = path.split(".");
  const last = names.pop()!;
  let at = record;
  for (const name of names) at = at[name];
  at[last] = value;
  return JSON.stringify(record);
}

describe("a ledger record", () => {
  it("comes back as the request that it was, with one prompt for all choices of it", () => {
    const read = readRecord(text, tokenCount);
    expect(read).toEqual(request);
    expect(read.choices[0]!.promptTokens).toBe(read.choices[1]!.promptTokens);
  });

  it.each([
    ["id", 5, "id: 5, expected a string that is not empty"],
    ["endpoint", "embeddings", 'endpoint: a string, expected "chat" or "completions"'],
    ["tenant", "", "tenant: a string, expected a string that is not empty"],
    ["class", "urgent", "class: a string, expected interactive or batch"],
    ["deadlineMs", "soon", "deadlineMs: a string, expected a number"],
    ["sampling", undefined, "sampling: missing, expected an object"],
    ["sampling.temperature", null, "sampling.temperature: null, expected a number"],
    ["sampling.maxTokens", -1, "sampling.maxTokens: -1, expected an integer of 0 or more"],
    ["sampling.stop", "x", "sampling.stop: a string, expected a list"],
    ["text.chatReply", 1, "text.chatReply: 1, expected true or false"],
    ["answer", undefined, "answer: missing, expected an object"],
    ["answer.n", 0, "answer.n: 0, expected an integer of 1 or more"],
    ["accepted.recoveries", 0.5, "accepted.recoveries: 0.5, expected an integer of 0 or more"],
    ["prompts", [], "prompts: a list of 0, expected a list that is not empty"],
    ["prompts.0", "AAA=", "prompts: bytes that are no token ids, expected int32 in base64"],
    ["prompts.0", "", "prompts[0]: a string, expected a string that is not empty"],
    ["choices", {}, "choices: an object, expected a list that is not empty"],
    ["choices.0.prompt", 1, "choices[0].prompt: 1, expected less than the 1 prompts"],
    ["choices.0.seed", "1e3", "choices[0].seed: a string, expected an int64 in decimal digits"],
    ["choices.1.context.mask", 3, "choices[1].context.mask: 3, expected less than 3"],
    [
      "choices.1.context.remainingMasks",
      [-1],
      "choices[1].context.remainingMasks[0]: -1, expected an integer",
    ],
  ])("with a bad %s (%j) is refused with the field's name", (path, value, message) => {
    expect(() => readRecord(damaged(path, value), tokenCount)).toThrow(message);
  });

  it("with a token that the model does not have is refused", () => {
    expect(() => readRecord(text, 999)).toThrow("choices[0].prompt: 999, expected ids below 999");
  });

  it("that is no JSON is refused without a word of it", () => {
    const error = thrown(() => readRecord(`${text.slice(0, -1)} oops`, tokenCount));
    expect(error.message).toMatch(/^record: \d+ characters that are not JSON$/);
  });

  it("that is damaged at random is refused or read, and never told", () => {
    const anything = fc.oneof(
      fc.constantFrom(undefined, null, -1, 1e9, "secret", true, [], {}),
      fc.jsonValue(),
    );
    const paths = pathsOf(JSON.parse(text));
    fc.assert(
      fc.property(fc.constantFrom(...paths), anything, (path, value) => {
        try {
          const read = readRecord(damaged(path, value), tokenCount);
          expect(read.choices.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(RelayError);
          expect((error as Error).message).not.toContain("secret");
        }
      }),
      { numRuns: 3_000 },
    );
  });
});

function thrown(run: () => unknown): Error {
  try {
    run();
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
}

function pathsOf(value: unknown, path = ""): string[] {
  if (typeof value !== "object" || value === null) return [path];
  const inner = Object.entries(value).flatMap(([name, member]) =>
    pathsOf(member, path === "" ? name : `${path}.${name}`),
  );
  return path === "" ? inner : [path, ...inner];
}
