/** The flags that change how a model directory is read, shared by `coordinator` and `up`. */
import { resolve } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { RepeatableOption } from "./configuration/command.js";

/**
 * Values of a config.json are short; the longest are lists of some dozens of numbers. However they are
 * written, so many fit into a message to a worker (checkpoint/overrides.ts).
 */
const maxValueLength = 512;
const maxOverrides = 16;

export interface ModelFlags {
  /** Fields of config.json to replace, by name. */
  set?: Readonly<Record<string, unknown>>;
  prefixEncoder?: string;
}

export function addModelOptions(command: Command): Command {
  return command
    .addOption(
      new RepeatableOption(
        "--set <field=value>",
        "replaces a field of config.json, like rope_scaling=null; the value is JSON, else a text (repeatable)",
      ).argParser(override),
    )
    .option(
      "--prefix-encoder <dir>",
      "directory of a prefix encoder trained with P-Tuning v2 (default: the model's own, if it has one)",
    );
}

/** FIELD=VALUE, added to those before. */
export function override(
  text: string,
  earlier: Readonly<Record<string, unknown>> = {},
): Readonly<Record<string, unknown>> {
  const match = /^([A-Za-z_][A-Za-z0-9_]{0,127})=(.*)$/s.exec(text);
  if (match === null) throw new InvalidArgumentError("Expected FIELD=VALUE, for example rope_scaling=null.");
  const [, field, value] = match as unknown as [string, string, string];
  if (value.length > maxValueLength) {
    throw new InvalidArgumentError(`Expected a value of at most ${maxValueLength} characters.`);
  }
  if (Object.hasOwn(earlier, field)) throw new InvalidArgumentError(`Expected "${field}" once.`);
  if (Object.keys(earlier).length === maxOverrides) {
    throw new InvalidArgumentError(`Expected at most ${maxOverrides} fields.`);
  }
  // From entries and not by assignment, which would treat "__proto__" as more than a name.
  return Object.fromEntries([...Object.entries(earlier), [field, parseValue(value)]]);
}

/** The same flags for another process, which may have another working directory. */
export function modelArguments({ set = {}, prefixEncoder }: ModelFlags): string[] {
  return [
    ...Object.entries(set).flatMap(([field, value]) => ["--set", `${field}=${JSON.stringify(value)}`]),
    ...(prefixEncoder === undefined ? [] : ["--prefix-encoder", resolve(prefixEncoder)]),
  ];
}

/** What openModel takes, for these flags. */
export function openOptions({ set = {}, prefixEncoder }: ModelFlags) {
  return { overrides: set, prefixEncoder: prefixEncoder === undefined ? null : resolve(prefixEncoder) };
}

function parseValue(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text, (_, part: unknown) => {
      if (typeof part === "number" && !Number.isFinite(part)) throw new RangeError();
      return part;
    });
  } catch (error) {
    // Such a number would become null on its way to another process.
    if (error instanceof RangeError) throw new InvalidArgumentError("Expected numbers below 1e308.");
    return text;
  }
  return value;
}
