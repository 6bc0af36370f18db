/** Where a prefix-LM's reply begins, and which blank it fills. */
import { describe, expect, it } from "vitest";
import type { FillIds } from "../../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../../common/errors.js";
import { prefixBoundary } from "../../../coordinator/prompt/prefix-boundary.js";

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
    expect(() => prefixBoundary(ids, byKind)).toThrow(/a prefix-LM prompt holds its sop/);
  });
});
