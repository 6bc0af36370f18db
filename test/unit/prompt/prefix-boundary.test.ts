/** Where a prefix-LM's reply begins, and which blank it fills. */
import { describe, expect, it } from "vitest";
import type { FillIds } from "../../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../../common/errors.js";
import { nextBlank, prefixBoundary } from "../../../coordinator/prompt/prefix-boundary.js";

const [mask, smask, gmask, sop] = [90, 91, 92, 99];
const byKind: FillIds = { masks: [mask, smask, gmask], order: "kind", start: sop };
const byPlace: FillIds = { ...byKind, order: "place" };

describe("the boundary of a prompt", () => {
  it.each<[string, number[], FillIds, ReturnType<typeof prefixBoundary>]>([
    [
      "one mask",
      [1, gmask, sop],
      byKind,
      { contextLength: 2, maskPosition: 1, mask: gmask, remainingMasks: [] },
    ],
    [
      "the preferred kind, leftmost first",
      [gmask, 1, mask, smask, mask, 2, sop],
      byKind,
      { contextLength: 6, maskPosition: 2, mask, remainingMasks: [4] },
    ],
    [
      "any kind in its place",
      [gmask, 1, mask, smask, 2, sop],
      byPlace,
      { contextLength: 5, maskPosition: 0, mask: gmask, remainingMasks: [2, 3] },
    ],
    [
      "what was generated already",
      [1, mask, sop, 5, mask, sop, gmask],
      byKind,
      { contextLength: 2, maskPosition: 1, mask, remainingMasks: [] },
    ],
    [
      "no mask",
      [1, 2, sop],
      byKind,
      { contextLength: 2, maskPosition: null, mask: null, remainingMasks: [] },
    ],
    ["no context", [sop], byPlace, { contextLength: 0, maskPosition: null, mask: null, remainingMasks: [] }],
  ])("with %s", (_, ids, facts, expected) => {
    expect(prefixBoundary(ids, facts)).toEqual(expected);
    expect(prefixBoundary(Int32Array.from(ids), facts)).toEqual(expected);
  });

  it.each([[[]], [[1, mask, 2]]])("without sop is refused: %j", (ids) => {
    expect(() => prefixBoundary(ids, byKind)).toThrow(RelayError);
    expect(() => prefixBoundary(ids, byKind)).toThrow(
      expect.objectContaining({ code: "invalid_value", param: "prompt" }),
    );
    expect(() => prefixBoundary(ids, byKind)).toThrow(/a prompt of a prefix-LM holds its sop/);
  });
});

describe("the next blank", () => {
  const [mask, start] = [90, 99];
  const context = { length: 6, mask: 1, constantPosition: true, remainingMasks: [3, 5] };
  const prompt = [1, mask, 2, mask, 3, mask, start];

  it("is filled in a context that holds the last reply in place of its mask", () => {
    const next = nextBlank(prompt, context, [7, 8, 9]);
    expect([...next.promptTokens]).toEqual([1, 7, 8, 9, 2, mask, 3, mask, start]);
    expect(next.context).toEqual({ length: 8, mask: 5, constantPosition: true, remainingMasks: [7] });
    const last = nextBlank(next.promptTokens, next.context, []);
    expect([...last.promptTokens]).toEqual([1, 7, 8, 9, 2, 3, mask, start]);
    expect(last.context).toEqual({ length: 7, mask: 6, constantPosition: true, remainingMasks: [] });
  });

  it("takes what the client wrote behind the start token as the beginning of the reply", () => {
    const next = nextBlank([...prompt, 4, 5], context, [6]);
    expect([...next.promptTokens]).toEqual([1, 4, 5, 6, 2, mask, 3, mask, start]);
  });
});
