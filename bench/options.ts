/** Options that several benchmarks have, and what follows from them. */
import { open, readdir } from "node:fs/promises";
import { join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { integer } from "../cli/options.js";
import { type PublishedName, published, publishedNames, resized } from "../models/published.js";
import { bytesProgress } from "./progress.js";
import {
  type CheckpointShape,
  type RandomModel,
  type ShapeName,
  shapes,
  writeRandomCheckpoint,
} from "./random-checkpoint.js";
import { makeScratch } from "./scratch.js";

export interface RandomModelFlags<Name extends string = ShapeName> {
  like: Name;
  layers?: number;
  context?: number;
}

/** Of a shape, or of any published model. A name that is both is the shape's. */
export type AnyName = ShapeName | PublishedName;
export const anyNames = [...new Set<AnyName>([...(Object.keys(shapes) as ShapeName[]), ...publishedNames])];

/**
 * @param defaults What is not said otherwise; without `layers` or `context` it is the model's own.
 * @param names What the command can do with: shapes, or more.
 */
export function addRandomModelOptions(
  command: Command,
  defaults: Partial<RandomModelFlags>,
  names: readonly string[] = Object.keys(shapes),
): Command {
  const like = new Option("--like <shape>", "shape of the random model").choices(names);
  return command
    .addOption(defaults.like === undefined ? like.makeOptionMandatory() : like.default(defaults.like))
    .option("--layers <n>", "its layers, if not the shape's own", integer(1, 1_000), defaults.layers)
    .option("--context <tokens>", "its context length", integer(32, 2 ** 20), defaults.context);
}

/** What is to be written. */
export function modelLike({ like, layers, context }: RandomModelFlags<AnyName>): RandomModel {
  if (!isShape(like)) return resized(published[like], { layers, context });
  const own: CheckpointShape = shapes[like];
  const changed = { layerCount: layers ?? own.layerCount, contextLength: context ?? own.contextLength };
  return { shape: { ...own, ...changed } };
}

const isShape = (name: AnyName): name is ShapeName => Object.hasOwn(shapes, name);

/** Writes a random model with a progress line. */
export async function writeModel(
  directory: string,
  flags: RandomModelFlags<AnyName>,
  seed?: number,
): Promise<void> {
  const progress = bytesProgress("writing weights");
  await writeRandomCheckpoint({ directory, ...modelLike(flags), seed, progress });
  await settle(directory);
}

/** Waits until a directory's files are on the disk: the kernel would write them while something is measured. */
export async function settle(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    const file = await open(join(directory, name), "r");
    await file.sync();
    await file.close();
  }
}

/** A random model that ends with this process. @returns Its directory. */
export async function scratchModel(flags: RandomModelFlags<AnyName>): Promise<string> {
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

/** What is told `up` where steps are measured: how often a guess holds is a matter of the text. */
export const withoutGuesses = ["--speculation", "off"];

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
