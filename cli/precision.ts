/** The flags that decide how weights and the KV cache are stored, shared by `coordinator` and `up`. */
import { type Command, Option } from "commander";
import type { Quantization, WeightFormat } from "../models/quantization.js";
import type { DType } from "../models/shape.js";
import { CommandError, exitStatus } from "./errors.js";
import { dtypes } from "./options.js";

const weightTypes = ["none", "int8", "int4"] as const;
const groupSizes = ["32", "64", "128", "row"] as const;
const scaleChoices = ["absmax", "search"] as const;

export interface PrecisionFlags {
  dtype?: DType;
  quantization?: (typeof weightTypes)[number];
  groupSize?: (typeof groupSizes)[number];
  scales?: (typeof scaleChoices)[number];
  head?: (typeof weightTypes)[number];
  kv?: "int8";
}

/** In the order in which help shows them; a flag that was not given is not there. */
const options = () => [
  new Option(
    "--dtype <type>",
    "type of the activations between layers and of the KV cache (default: the model's own)",
  ).choices(dtypes),
  new Option(
    "--quantization <type>",
    "rounds the weights of all layers when they are loaded (default: none)",
  ).choices(weightTypes),
  new Option(
    "--group-size <n>",
    "weights of a row that share a scale; fewer are more exact and larger (default: 32)",
  ).choices(groupSizes),
  new Option(
    "--scales <rule>",
    "search: of several scales the one with the smallest error; absmax: the largest weight decides, faster to load (default: search)",
  ).choices(scaleChoices),
  new Option(
    "--head <type>",
    "the same as --quantization for the output head (default: none, with quantized layers int8)",
  ).choices(weightTypes),
  new Option("--kv <type>", "stores keys and values in 8 bits: half the KV cache").choices(["int8"]),
];

export function addPrecisionOptions(command: Command): Command {
  for (const option of options()) command.addOption(option);
  return command;
}

/** @throws CommandError (bad usage) for flags that say how to round when nothing is to be rounded. */
export function quantizationOf(flags: PrecisionFlags): Quantization {
  const layers = flags.quantization ?? "none";
  const head = flags.head ?? (layers === "none" ? "none" : "int8");
  if (layers === "none" && head === "none") {
    for (const [flag, value] of [
      ["--group-size <n>", flags.groupSize],
      ["--scales <rule>", flags.scales],
    ] as const) {
      if (value === undefined) continue;
      throw new CommandError(
        `option '${flag}' argument '${value}' has nothing to act on: expected it with --quantization int8 or int4`,
        "invalid_configuration",
        exitStatus.badUsage,
      );
    }
  }
  const groupSize = flags.groupSize === "row" ? 0 : Number(flags.groupSize ?? 32);
  const format = (type: (typeof weightTypes)[number]): WeightFormat | null =>
    type === "none" ? null : { type, groupSize, scales: flags.scales ?? "search" };
  return { weights: format(layers), head: format(head) };
}

/** The same flags for another process. */
export function precisionArguments(flags: PrecisionFlags): string[] {
  return [
    ["--dtype", flags.dtype],
    ["--quantization", flags.quantization],
    ["--group-size", flags.groupSize],
    ["--scales", flags.scales],
    ["--head", flags.head],
    ["--kv", flags.kv],
  ].flatMap(([flag, value]) => (value === undefined ? [] : [flag!, value]));
}
