/** `--layers`, shared by `coordinator` and `up`: which layers each stage holds, said by hand. */
import { type Command, InvalidArgumentError } from "commander";
import type { LayerRange } from "../coordinator/placement/cut.js";
import { CommandError, exitStatus } from "./errors.js";

export interface LayerFlags {
  stages: number;
  /** One range per stage, without gaps from layer 0 on. Where the last must end, the model says. */
  layers?: readonly LayerRange[];
}

export function addLayersOption(command: Command): Command {
  return command.option(
    "--layers <ranges>",
    "layers of each stage, like 0-17,18-35 (default: the cut with the fastest slowest stage)",
    layerRanges,
  );
}

/** "0-17,18-35": both ends included. */
export function layerRanges(text: string): LayerRange[] {
  const ranges: LayerRange[] = [];
  for (const part of text.split(",")) {
    const match = /^(\d{1,9})-(\d{1,9})$/.exec(part);
    if (match === null) {
      throw new InvalidArgumentError(
        `Expected ranges such as 0-17,18-35, both ends included, not '${part}'.`,
      );
    }
    const [first, last] = [Number(match[1]), Number(match[2])];
    const layerBegin = ranges.at(-1)?.layerEnd ?? 0;
    if (first !== layerBegin) {
      throw new InvalidArgumentError(
        `Expected the layers in order and each once: '${part}' must begin with ${layerBegin}.`,
      );
    }
    if (last < first) {
      throw new InvalidArgumentError(`Expected at least one layer in '${part}': it ends before it begins.`);
    }
    ranges.push({ layerBegin, layerEnd: last + 1 });
  }
  return ranges;
}

/** @throws CommandError (bad usage) when there are not as many ranges as stages. */
export function requireRangePerStage({ stages, layers }: LayerFlags): void {
  if (layers === undefined || layers.length === stages) return;
  throw new CommandError(
    `option '--layers <ranges>' argument '${layersText(layers)}' has ${layers.length} ${layers.length === 1 ? "range" : "ranges"}: ` +
      `expected ${stages}, one for each of the --stages`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}

/** The same flag for another process. */
export function layersArguments({ layers }: LayerFlags): string[] {
  return layers === undefined ? [] : ["--layers", layersText(layers)];
}

function layersText(layers: readonly LayerRange[]): string {
  return layers.map(({ layerBegin, layerEnd }) => `${layerBegin}-${layerEnd - 1}`).join(",");
}
