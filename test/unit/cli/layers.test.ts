import { describe, expect, it } from "vitest";
import { layerRanges, layersArguments, requireRangePerStage } from "../../../cli/layers.js";

describe("--layers", () => {
  it("reads inclusive ranges and hands them on as they were written", () => {
    const text = "0-17,18-35,36-36";
    const layers = layerRanges(text);
    expect(layers).toEqual([
      { layerBegin: 0, layerEnd: 18 },
      { layerBegin: 18, layerEnd: 36 },
      { layerBegin: 36, layerEnd: 37 },
    ]);
    expect(layersArguments({ stages: 3, layers })).toEqual(["--layers", text]);
    expect(layersArguments({ stages: 3 })).toEqual([]);
  });

  it.each([
    ["", "Expected ranges such as 0-17,18-35, both ends included, not ''."],
    ["0-3,", "not ''."],
    ["0-3,4", "not '4'."],
    ["0-3, 4-7", "not ' 4-7'."],
    ["0--3", "not '0--3'."],
    ["0-1e3", "not '0-1e3'."],
    ["1-3", "'1-3' must begin with 0."],
    ["0-3,5-7", "'5-7' must begin with 4."],
    ["0-3,3-7", "'3-7' must begin with 4."],
    ["0-3,4-3", "at least one layer in '4-3'"],
    ["0-9999999999", "not '0-9999999999'."],
  ])("refuses %j", (text, message) => {
    expect(() => layerRanges(text)).toThrow(message);
  });

  it("wants a range per stage", () => {
    const layers = layerRanges("0-3,4-7");
    expect(() => requireRangePerStage({ stages: 2, layers })).not.toThrow();
    expect(() => requireRangePerStage({ stages: 2 })).not.toThrow();
    expect(() => requireRangePerStage({ stages: 3, layers })).toThrow(
      "option '--layers <ranges>' argument '0-3,4-7' has 2 ranges: expected 3, one for each of the --stages",
    );
  });
});
