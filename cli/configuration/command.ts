/**
 * Commands whose options can be given as flags, in the environment and in a file. Whatever the source, a value is
 * a text that the option's own reader takes or refuses, so nothing has to be said of an option twice.
 *
 * Precedence: flag, environment, file, default.
 */
import { Command, CommanderError, Option } from "commander";
import { type FileValue, type KnownKeys, readConfigurationFile, type Sections } from "./file.js";
import type { Setting } from "./print.js";

/** In front of every variable. */
const prefix = "GLM_RELAY_";
/**
 * Set by `up` for what it starts: its children have all they need as flags, and must not read once more, and
 * otherwise, what was meant for `up`.
 */
export const supervisedVariable = "GLM_RELAY_SUPERVISED";
/** Kubernetes describes a Service named glm-relay to every container so: GLM_RELAY_PORT=tcp://10.0.0.1:8000. */
const serviceLink = /^(tcp|udp|sctp):\/\//;

/** An option that may be given several times, each time one value more: a list in a file, lines in a variable. */
export class RepeatableOption extends Option {}

/** Where a value came from, as people are told. */
type Origin = { kind: "flag" } | { kind: "environment"; name: string } | { kind: "file"; place: string };

interface Given {
  texts: string[];
  origin: Origin;
}

export class ConfigurableCommand extends Command {
  /** By attribute, what was given and wins. */
  readonly #given = new Map<string, Given>();

  /** Adds a command to a program, with the program's settings. */
  static addTo(program: Command, name: string): ConfigurableCommand {
    const command = new ConfigurableCommand(name);
    command.copyInheritedSettings(program);
    program.addCommand(command);
    return command;
  }

  /** Called when all options of the command are there: those of its configuration come last in the help. */
  override action(run: Parameters<Command["action"]>[0]): this {
    this.option(
      "--config <file>",
      `YAML file with a section '${this.name()}:' of these flags (docs/configuration.md); flags and GLM_RELAY_* variables go first`,
    );
    this.option(
      "--print-config",
      "prints every setting and where it comes from, in the file's form, and ends",
    );
    this.hook("preAction", async () => {
      if (this.opts()["printConfig"] !== true) return;
      const { formatConfiguration } = await import("./print.js");
      process.stdout.write(formatConfiguration(this.name(), this.settings()));
      throw new CommanderError(0, "glm-relay.configurationPrinted", "the configuration was printed");
    });
    return super.action(run);
  }

  override addOption(option: Option): this {
    super.addOption(option);
    this.on(`option:${option.name()}`, (text: string | null | undefined) => {
      const before =
        option instanceof RepeatableOption ? (this.#given.get(option.attributeName()) ?? null) : null;
      this.#given.set(option.attributeName(), {
        texts: [...(before?.texts ?? []), text ?? "true"],
        origin: { kind: "flag" },
      });
    });
    return this;
  }

  /** The options that a file or the environment can give. */
  get configurable(): Option[] {
    return this.options.filter((option) => !["config", "printConfig"].includes(option.attributeName()));
  }

  /** Commander calls it once, before it looks for what is missing. */
  override parseOptions(args: string[]): ReturnType<Command["parseOptions"]> {
    this.#given.clear();
    const parsed = super.parseOptions(args);
    const asksForHelp = parsed.unknown.some((word) => word === "-h" || word === "--help");
    if (!asksForHelp && process.env[supervisedVariable] === undefined) this.#readOtherSources();
    return parsed;
  }

  /** Every option with its value and origin, in the order of the help. */
  settings(): Setting[] {
    return this.configurable.map((option) => {
      const given = this.#given.get(option.attributeName());
      const { defaultValue } = option;
      const key = option.name();
      const isList = option instanceof RepeatableOption;
      if (given !== undefined)
        return { key, texts: given.texts, isList, origin: describe(given.origin, option) };
      const texts = defaultValue === undefined ? [] : [String(defaultValue)];
      return { key, texts, isList, origin: texts.length === 0 ? "not set" : "default" };
    });
  }

  #readOtherSources(): void {
    const path = (this.opts()["config"] as string | undefined) ?? fromEnvironment("config");
    const sections: Sections =
      path === undefined ? new Map() : readConfigurationFile(path, this.#knownKeys());
    const section = sections.get(this.name());
    for (const option of this.configurable) {
      if (this.#given.has(option.attributeName())) continue;
      const text = fromEnvironment(option.name());
      const value = section?.get(option.name());
      if (text !== undefined) {
        const texts = option instanceof RepeatableOption ? linesOf(text) : [text];
        this.#set(option, texts, { kind: "environment", name: variableOf(option.name()) });
      } else if (value !== undefined) {
        const place = `${path}:${value.line}`;
        this.#requireShape(option, value, place);
        this.#set(option, value.texts, { kind: "file", place });
      }
    }
  }

  /** Of all commands that a file can have sections for. */
  #knownKeys(): KnownKeys {
    const commands = (this.parent?.commands ?? [this]).filter((each) => each instanceof ConfigurableCommand);
    return new Map(
      commands.map((each) => [each.name(), new Set(each.configurable.map((option) => option.name()))]),
    );
  }

  #requireShape(option: Option, { isList, texts }: FileValue, place: string): void {
    if (!isList || option instanceof RepeatableOption) return;
    this.#refuse(option, texts.join(", "), place, "It is a list. Expected one value.");
  }

  #set(option: Option, texts: string[], origin: Origin): void {
    const key = option.attributeName();
    let value: unknown;
    for (const text of texts) {
      try {
        value = option.isBoolean() ? booleanOf(text) : (option.parseArg?.(text, value) ?? text);
      } catch (error) {
        if ((error as { code?: unknown }).code !== "commander.invalidArgument") throw error;
        this.#refuse(option, text, placeOf(origin), (error as Error).message);
      }
    }
    this.setOptionValueWithSource(key, value, origin.kind);
    this.#given.set(key, { texts, origin });
  }

  /** In the words that commander has for flags. */
  #refuse(option: Option, text: string, place: string, expected: string): never {
    this.error(`error: option '${option.flags}' value '${text}' (${place}) is invalid. ${expected}`, {
      code: "commander.invalidArgument",
    });
  }
}

/** The name of the variable for a flag: cluster-listen -> GLM_RELAY_CLUSTER_LISTEN. */
export function variableOf(flag: string): string {
  return `${prefix}${flag.replaceAll("-", "_").toUpperCase()}`;
}

function fromEnvironment(flag: string): string | undefined {
  const name = variableOf(flag);
  const text = process.env[name];
  if (text === undefined || text === "") return undefined;
  return name.endsWith("_PORT") && serviceLink.test(text) ? undefined : text;
}

function linesOf(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

function booleanOf(text: string): boolean {
  if (text === "true" || text === "1") return true;
  if (text === "false" || text === "0") return false;
  throw Object.assign(new Error("Expected true, false, 1 or 0."), { code: "commander.invalidArgument" });
}

function placeOf(origin: Origin): string {
  if (origin.kind === "environment") return `environment variable ${origin.name}`;
  return origin.kind === "file" ? origin.place : "flag";
}

function describe(origin: Origin, option: Option): string {
  switch (origin.kind) {
    case "flag":
      return `flag ${option.long}`;
    case "environment":
      return `environment ${origin.name}`;
    case "file":
      return origin.place;
  }
}
