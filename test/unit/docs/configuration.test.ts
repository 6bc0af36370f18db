/** docs/configuration.md against the flags that there are: its tables are the ones below, and its example works. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Option } from "commander";
import { afterEach, expect, test, vi } from "vitest";
import { ConfigurableCommand, RepeatableOption, variableOf } from "../../../cli/configuration/command.js";
import { readConfigurationFile } from "../../../cli/configuration/file.js";
import { createProgram } from "../../../cli/program.js";
import { packageRoot } from "../../../common/package.js";
import { scratchFile } from "../cli/support.js";

const text = readFileSync(join(packageRoot, "docs/configuration.md"), "utf8");

function commandOf(name: string): ConfigurableCommand {
  const command = createProgram().commands.find((each) => each.name() === name);
  if (!(command instanceof ConfigurableCommand)) throw new Error(`${name} cannot be configured`);
  return command;
}

/** A row of the table: the key of the file is the flag without its dashes. */
function row(option: Option): string {
  const cell = (value: string) => value.replaceAll("|", "\\|");
  const choices = option.argChoices === undefined ? "" : ` (${option.argChoices.join(", ")})`;
  const start = option.mandatory ? "**required**" : "";
  const value = option.defaultValue === undefined ? start : `\`${String(option.defaultValue)}\``;
  return `| \`${cell(option.flags)}\` | \`${variableOf(option.name())}\` | ${value} | ${cell(option.description)}${choices} |`;
}

/** Without what makes its columns as wide as their widest cell. */
function compact(table: string): string {
  return table.replaceAll(/ +\|/g, " |").replaceAll(/-{3,}/g, "---");
}

function table(name: string): string {
  const rows = commandOf(name).configurable.map(row);
  return ["| Flag | Variable | Default | What it does |", "| --- | --- | --- | --- |", ...rows].join("\n");
}

afterEach(() => {
  vi.unstubAllEnvs();
});

test.each(["coordinator", "worker", "up"])("the table of %s is that of its flags", (name) => {
  const heading = `### ${name}\n\n`;
  const begin = text.indexOf(heading) + heading.length;
  const end = text.indexOf("\n\n", begin);
  expect(compact(text.slice(begin, end === -1 ? undefined : end).trimEnd())).toBe(compact(table(name)));
});

test("what can be given several times is said to be", () => {
  for (const name of ["coordinator", "worker", "up"]) {
    for (const option of commandOf(name).configurable) {
      expect(option instanceof RepeatableOption).toBe(option.description.includes("(repeatable)"));
    }
  }
});

test("the example can be read by every command that it has a section for", () => {
  const example = /```yaml\n([^`]*coordinator:[^`]*)```/.exec(text)![1]!;
  const file = scratchFile("glm-relay.yaml", example);
  vi.stubEnv("GLM_RELAY_CONFIG", file);
  const names = ["coordinator", "worker"];
  for (const name of names) {
    const command = commandOf(name);
    command.parseOptions([]);
    const given = command.settings().filter(({ origin }) => origin.startsWith(file));
    expect(given.length).toBeGreaterThan(4);
    for (const option of command.configurable) {
      if (option.mandatory) expect(command.opts()[option.attributeName()]).toBeDefined();
    }
  }
  const keys = (name: string) => new Set(commandOf(name).configurable.map((option) => option.name()));
  const known = new Map(["coordinator", "worker", "up"].map((name) => [name, keys(name)] as const));
  expect([...readConfigurationFile(file, known).keys()]).toEqual(names);
});
