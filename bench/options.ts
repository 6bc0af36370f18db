/** Options that several benchmarks have, and what follows from them. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { integer } from "../cli/options.js";
import { bytesProgress } from "./progress.js";
import { type CheckpointShape, type ShapeName, shapes, writeRandomCheckpoint } from "./random-checkpoint.js";
import { makeScratch } from "./scratch.js";

export interface RandomModelFlags {
  like: ShapeName;
  layers?: number;
  context?: number;
}

/** @param defaults What is not said otherwise; without `layers` or `context` it is the shape's own. */
export function addRandomModelOptions(command: Command, defaults: Partial<RandomModelFlags>): Command {
  const like = new Option("--like <shape>", "shape of the random model").choices(Object.keys(shapes));
  return command
    .addOption(defaults.like === undefined ? like.makeOptionMandatory() : like.default(defaults.like))
    .option("--layers <n>", "its layers, if not the shape's own", integer(1, 1_000), defaults.layers)
    .option("--context <tokens>", "its context length", integer(32, 2 ** 20), defaults.context);
}

export function shapeOf({ like, layers, context }: RandomModelFlags): CheckpointShape {
  const own = shapes[like];
  return { ...own, layerCount: layers ?? own.layerCount, contextLength: context ?? own.contextLength };
}

/** Writes a random model with a progress line. */
export async function writeModel(directory: string, flags: RandomModelFlags, seed?: number): Promise<void> {
  await writeRandomCheckpoint({
    directory,
    shape: shapeOf(flags),
    seed,
    progress: bytesProgress("writing weights"),
  });
}

/** A random model that ends with this process. @returns Its directory. */
export async function scratchModel(flags: RandomModelFlags): Promise<string> {
  const directory = makeScratch();
  await writeModel(directory, flags);
  return directory;
}

/** `--quantization`, by default what GLM Relay is measured with. */
export function quantizationOption(): Option {
  return new Option("--quantization <type>", "type of the weights")
    .choices(["none", "int8", "int4"])
    .default("int4");
}

/** What `up` is told; none is its default. */
export function quantizationFlags(type: string): string[] {
  return type === "none" ? [] : ["--quantization", type];
}

/** Reader of a comma-separated list. */
export function listOf<T>(read: (text: string) => T): (text: string) => T[] {
  return (text) => text.split(",").map(read);
}

/** Reader of one of a record's names. */
export function nameIn(record: Record<string, unknown>): (text: string) => string {
  return (text) => {
    if (Object.hasOwn(record, text)) return text;
    throw new InvalidArgumentError(`Expected names out of ${Object.keys(record).join(", ")}.`);
  };
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
