/** Flags, environment and file are three ways to say the same, for every option there is. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Option } from "commander";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { stringify } from "yaml";
import { ConfigurableCommand, RepeatableOption, variableOf } from "../../../cli/configuration/command.js";
import { formatConfiguration } from "../../../cli/configuration/print.js";
import { createProgram } from "../../../cli/program.js";
import { glmRelay, scratch } from "./support.js";

const names = ["up", "coordinator", "worker"] as const;
type Name = (typeof names)[number];

afterEach(() => {
  vi.unstubAllEnvs();
});

function commandOf(name: Name): ConfigurableCommand {
  const command = createProgram().commands.find((each) => each.name() === name);
  if (!(command instanceof ConfigurableCommand)) throw new Error(`${name} cannot be configured`);
  return command.configureOutput({ writeErr: () => undefined });
}

/** A value as a command line would have it, by what stands behind the flag in the help. */
const number = (min: number, max: number) => fc.integer({ min, max }).map(String);
const word = fc.stringMatching(/^[a-z][a-z0-9]{0,10}$/);
const path = fc.oneof(
  word,
  word.map((name) => `/a b/${name}: #1`),
);
const values: Record<string, fc.Arbitrary<string>> = {
  "<n>": number(1, 60),
  "<t>": number(1, 1_000),
  "<m>": number(1, 100),
  "<ms>": number(1, 60_000),
  "<seconds>": number(1, 86_400),
  "<tokens>": number(1, 500),
  "<port>": number(0, 65_535),
  "<size>": fc.tuple(number(1, 999), fc.constantFrom("", "MiB", "GB", "k")).map((parts) => parts.join("")),
  "<host>": fc.constantFrom("0.0.0.0", "::1", "[::1]", "localhost", "a.example"),
  "<host:port>": fc.constantFrom("127.0.0.1:0", "[::1]:9000", "worker-0.workers:7000", "0.0.0.0:1"),
  "<dir>": path,
  "<file>": path,
  "<url>": fc.constantFrom("redis://127.0.0.1:6379", "rediss://h:1/2"),
  "<name>": word,
  "<hosts>": fc.constantFrom("*", "a.example,b:81", "[::1]:9000"),
  "<list>": fc.constantFrom("0", "0-3,8", "5,2"),
  "<ranges>": fc.constantFrom("0-17", "0-3,4-4,5-9"),
  "<field=value>": fc
    .tuple(word, fc.constantFrom("null", "1e3", '"x"', "[1, 2]", "text, with: more #"))
    .map((parts) => parts.join("=")),
};

function textsOf(option: Option): fc.Arbitrary<string[]> {
  if (option.isBoolean()) return fc.constant(["true"]);
  if (option.argChoices !== undefined) return fc.constantFrom(...option.argChoices).map((text) => [text]);
  const placeholder = /<.*>/.exec(option.flags)![0];
  const value = values[placeholder];
  if (value === undefined) throw new Error(`the test has no values for ${option.flags}`);
  if (!(option instanceof RepeatableOption)) return value.map((text) => [text]);
  return fc.uniqueArray(value, { minLength: 1, maxLength: 3, selector: (text) => text.split("=")[0] });
}

interface Sources {
  flag?: string[];
  environment?: string[];
  file?: string[];
}

/** What the command makes of it: the value, where it came from, and the whole as it would be printed. */
function read(name: Name, option: Option, { flag, environment, file }: Sources, fileText?: string) {
  const command = commandOf(name);
  const args: string[] = [];
  for (const text of flag ?? []) args.push(...(option.isBoolean() ? [option.long!] : [option.long!, text]));
  if (file !== undefined || fileText !== undefined) {
    const path = join(scratch(), "glm-relay.yaml");
    const value = option instanceof RepeatableOption ? file : file?.[0];
    writeFileSync(path, fileText ?? stringify({ [name]: { [option.name()]: value } }));
    args.push("--config", path);
  }
  if (environment !== undefined) vi.stubEnv(variableOf(option.name()), environment.join("\n"));
  const parsed = command.parseOptions(args);
  vi.unstubAllEnvs();
  expect(parsed.unknown).toEqual([]);
  return {
    value: command.opts()[option.attributeName()] as unknown,
    origin: command.settings().find(({ key }) => key === option.name())!.origin,
    printed: formatConfiguration(name, command.settings()),
  };
}

const everyOption = names.flatMap((name) =>
  commandOf(name).configurable.map((option) => [name, option.long!, option] as const),
);

describe("every option of up, coordinator and worker", () => {
  it("is there, and none can be given twice as differently named ones", () => {
    expect(everyOption.length).toBeGreaterThan(60);
    for (const name of names) {
      const variables = commandOf(name).configurable.map((option) => variableOf(option.name()));
      expect(new Set(variables).size).toBe(variables.length);
    }
  });

  it.each(everyOption)(
    "%s %s has the same value from flag, environment and file, and printed",
    (name, _, option) => {
      fc.assert(
        fc.property(textsOf(option), (texts) => {
          const flag = read(name, option, { flag: texts });
          expect(flag.value).not.toBeUndefined();
          expect(flag.origin).toBe(`flag ${option.long}`);
          const environment = read(name, option, { environment: texts });
          expect(environment).toMatchObject({ origin: `environment ${variableOf(option.name())}` });
          const file = read(name, option, { file: texts });
          expect(file.origin).toMatch(/glm-relay\.yaml:2$/);
          expect([environment.value, file.value]).toEqual([flag.value, flag.value]);
          const again = read(name, option, {}, flag.printed);
          expect(again.value).toEqual(flag.value);
          expect(again.origin).toMatch(/glm-relay\.yaml:\d+$/);
        }),
        { numRuns: 8, seed: 20 },
      );
    },
  );

  it.each(everyOption)("%s %s: flags go before environment, file and default", (name, _, option) => {
    const samples = fc.sample(textsOf(option), { numRuns: 40, seed: 3 });
    const distinct = [...new Map(samples.map((texts) => [texts.join("\n"), texts])).values()];
    // Of an option with two choices there are no three values.
    const [flag, environment, file] = option.isBoolean()
      ? [["true"], ["false"], ["false"]]
      : [distinct[0]!, distinct[1 % distinct.length]!, distinct.at(-1)!];
    const alone = (texts: string[]) => read(name, option, { file: texts }).value;
    expect(read(name, option, { flag, environment, file }).value).toEqual(
      option.isBoolean() ? true : alone(flag),
    );
    expect(read(name, option, { environment, file }).value).toEqual(
      option.isBoolean() ? false : alone(environment),
    );
    // An empty variable counts as none.
    expect(read(name, option, { environment: [""], file }).value).toEqual(alone(file));
    expect(read(name, option, {}).value).toEqual(option.defaultValue);
  });
});

describe("a value that cannot be", () => {
  const flags = ["--model", "m", "--stages", "2", "--redis", "redis://127.0.0.1:1"];
  const fileOf = (text: string) => {
    const path = join(scratch(), "relay.yaml");
    writeFileSync(path, text);
    return path;
  };

  it("is refused in the environment as among the flags, and the variable is named", async () => {
    const expected =
      /'--port <port>' value '70000' \(environment variable GLM_RELAY_PORT\) is invalid. Expected a whole number from 0 to 65535/;
    const result = await glmRelay(["coordinator", ...flags], { env: { GLM_RELAY_PORT: "70000" } });
    expect(result.stderr).toMatch(expected);
    expect(result.status).toBe(2);
    const boolean = await glmRelay(["worker", "--coordinator", "a:1"], { env: { GLM_RELAY_VERBOSE: "yes" } });
    expect(boolean.stderr).toMatch(/'--verbose' value 'yes' \(.*GLM_RELAY_VERBOSE\).*true, false, 1 or 0/);
  });

  it.each([
    ["coordinator:\n  port: 70000\n", /'--port <port>' value '70000' \(.*relay.yaml:2\).*from 0 to 65535/],
    ["coordinator:\n  port: 0x10\n", /value '0x10' \(.*relay.yaml:2\)/],
    [
      "coordinator:\n  prot: 1\n",
      /relay.yaml:2: unknown key 'prot' in section 'coordinator' with the value '1': expected a flag/,
    ],
    [
      "worker:\n  id: a\n  prot: [1]\n",
      /relay.yaml:3: unknown key 'prot' in section 'worker' with the value a list/,
    ],
    [
      "coordinater:\n  port: 1\n",
      /relay.yaml:1: unknown section 'coordinater'.*expected up: coordinator: worker:/,
    ],
    ["coordinator:\n  config: x\n", /unknown key 'config'/],
    [
      "coordinator:\n  port: [1, 2]\n",
      /value '1, 2' \(.*relay.yaml:2\) is invalid. It is a list. Expected one value/,
    ],
    ["coordinator:\n  port:\n    a: 1\n", /relay.yaml:2: coordinator.port is a mapping: expected one value/],
    ["coordinator:\n  port:\n", /relay.yaml:2: coordinator.port is nothing: expected one value/],
    ["coordinator:\n  set: []\n", /relay.yaml:2: coordinator.set is an empty list/],
    [
      "coordinator:\n  set: [[a]]\n",
      /relay.yaml:2: coordinator.set is a list: expected a list of single values/,
    ],
    ["coordinator:\n  set: [a=1, b]\n", /'--set <field=value>' value 'b' \(.*relay.yaml:2\).*FIELD=VALUE/],
    ["coordinator:\n  port: 1\n  port: 2\n", /relay.yaml:3: Map keys must be unique/],
    ["coordinator: &x\n  port: 1\nworker: *x\n", /an alias stands where a mapping does/],
    [
      "- coordinator\n",
      /relay.yaml: a list stands where a mapping does: expected sections up: coordinator: worker:/,
    ],
    ["coordinator: {", /relay.yaml:1: /],
    [
      "coordinator:\n  speculation: maybe\n",
      /'--speculation <mode>' value 'maybe' \(.*relay.yaml:2\).*auto, off/,
    ],
  ])("is refused in a file with its line: %j", async (text, expected) => {
    const result = await glmRelay(["coordinator", ...flags, "--config", fileOf(text)]);
    expect(result.stderr).toMatch(expected);
    expect(result.stdout).toBe("");
    expect(result.status).toBe(2);
  });

  it("is a file that is not there", async () => {
    const result = await glmRelay(["worker"], { env: { GLM_RELAY_CONFIG: "/nowhere.yaml" } });
    expect(result.stderr).toMatch(/configuration file '\/nowhere.yaml' cannot be read: ENOENT/);
    expect(result.status).toBe(2);
  });
});

describe("--print-config", () => {
  it("prints what would be used, with its sources, without passwords, and ends", async () => {
    const path = join(scratch(), "relay.yaml");
    writeFileSync(
      path,
      "coordinator:\n  stages: 3\n  redis: redis://u:hidden@h:1\nworker:\n  memory: 1GiB\n",
    );
    const result = await glmRelay(["coordinator", "--config", path, "--model", "m", "--print-config"], {
      env: { GLM_RELAY_HOST: "", GLM_RELAY_GRPC_PORT: "9000", GLM_RELAY_PORT: "tcp://10.0.0.1:8000" },
    });
    expect(result.stderr).toBe("");
    expect(result.status).toBe(0);
    expect(result.stdout).not.toContain("hidden");
    expect(result.stdout.split("\n")).toEqual(
      expect.arrayContaining([
        "coordinator:",
        "  model: m # flag --model",
        `  stages: 3 # ${path}:2`,
        `  redis: redis://u@h:1 # ${path}:3, its password is not shown`,
        "  grpc-port: 9000 # environment GLM_RELAY_GRPC_PORT",
        "  port: 8000 # default",
        "  host: 127.0.0.1 # default",
        "  # data: not set",
      ]),
    );
  });

  it("still wants what is required, and help wants nothing", async () => {
    const missing = await glmRelay(["worker", "--print-config"]);
    expect([missing.status, missing.stderr]).toEqual([
      2,
      expect.stringContaining("--coordinator <host:port>"),
    ]);
    const help = await glmRelay(["worker", "--help"], { env: { GLM_RELAY_CONFIG: "/nowhere.yaml" } });
    expect(help.status).toBe(0);
  });
});
