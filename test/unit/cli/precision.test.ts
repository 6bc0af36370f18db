import { Command } from "commander";
import { describe, expect, it } from "vitest";
import {
  addPrecisionOptions,
  type PrecisionFlags,
  precisionArguments,
  quantizationOf,
} from "../../../cli/precision.js";
import { formatName, parseFormatName } from "../../../models/quantization.js";

function parse(args: string[]): PrecisionFlags {
  const command = addPrecisionOptions(new Command().exitOverride().configureOutput({ writeErr: () => {} }));
  return command.parse(args, { from: "user" }).opts();
}

const names = (args: string[]) => {
  const { weights, head } = quantizationOf(parse(args));
  return [formatName(weights), formatName(head)];
};

describe("the flags for weights and cache", () => {
  it.each([
    [[], ["stored", "stored"]],
    [
      ["--quantization", "none"],
      ["stored", "stored"],
    ],
    [
      ["--quantization", "int4"],
      ["int4-g32-search", "int8-g32-search"],
    ],
    [
      ["--quantization", "int8", "--group-size", "row"],
      ["int8-row-search", "int8-row-search"],
    ],
    [
      ["--quantization", "int4", "--head", "none", "--scales", "absmax"],
      ["int4-g32-absmax", "stored"],
    ],
    [
      ["--quantization", "int4", "--head", "int4", "--group-size", "128"],
      ["int4-g128-search", "int4-g128-search"],
    ],
    [
      ["--head", "int8", "--group-size", "64"],
      ["stored", "int8-g64-search"],
    ],
  ])("%j means %j", (args, expected) => {
    expect(names(args)).toEqual(expected);
  });

  it.each([
    [["--group-size", "64"], "option '--group-size <n>' argument '64' has nothing to act on"],
    [
      ["--quantization", "none", "--scales", "absmax"],
      "option '--scales <rule>' argument 'absmax' has nothing to act on",
    ],
  ])("%j is a mistake that is told", (args, message) => {
    expect(() => names(args)).toThrow(message);
  });

  it("reach another process as they were given, and no more", () => {
    const args = ["--dtype", "float16", "--quantization", "int4", "--group-size", "row", "--head", "int4"];
    args.push("--scales", "absmax", "--kv", "int8");
    expect(parse(precisionArguments(parse(args)))).toEqual(parse(args));
    expect(precisionArguments(parse([]))).toEqual([]);
  });
});

it("every format has a name from which it can be read, and other names are none", () => {
  for (const type of ["int4", "int8"] as const) {
    for (const groupSize of [0, 32, 64, 128]) {
      for (const scales of ["absmax", "search"] as const) {
        const format = { type, groupSize, scales };
        expect(parseFormatName(formatName(format))).toEqual(format);
      }
    }
  }
  expect(parseFormatName("stored")).toBeNull();
  for (const name of [
    "",
    "int4",
    "int4-g48-search",
    "int5-g32-search",
    "int4-g32",
    "int4-row-best",
    "none",
  ]) {
    expect(parseFormatName(name)).toBeUndefined();
  }
});
