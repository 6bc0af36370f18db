/**
 * The file of --config: YAML with a section per command, whose keys are the command's flags without their dashes.
 * It is read as texts, as a command line is, so that one reader of values serves flags, environment and file.
 */
import { readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import type { Node, Pair, Scalar } from "yaml";
import { CommandError, exitStatus } from "../errors.js";

/** Only who has a file pays for the library; commander asks for values at once, so import() is too late. */
const yaml = () => createRequire(import.meta.url)("yaml") as typeof import("yaml");

/** Some hundred lines; whatever is larger is another file. */
const maxFileBytes = 1024 * 1024;
/** Of a value that an error repeats. */
const maxShownCharacters = 60;

export interface FileValue {
  /** As a command line would have them, one after the other. */
  texts: string[];
  isList: boolean;
  line: number;
}

export type Sections = ReadonlyMap<string, ReadonlyMap<string, FileValue>>;

/** What the file may say: the flags of each command that has a section. */
export type KnownKeys = ReadonlyMap<string, ReadonlySet<string>>;

/**
 * @param path As it was given; messages call the file so.
 * @throws CommandError (bad usage) naming file, line, key, value and what was expected.
 */
export function readConfigurationFile(path: string, known: KnownKeys): Sections {
  const { LineCounter, parseDocument } = yaml();
  const lines = new LineCounter();
  const document = parseDocument(readText(path), { lineCounter: lines, prettyErrors: false });
  const at = (offset: number) => `${path}:${Math.max(1, lines.linePos(offset).line)}`;
  const lineOf = (node: unknown) => lines.linePos((node as Node | null)?.range?.[0] ?? 0).line;
  const problem = document.errors[0] ?? document.warnings[0];
  if (problem !== undefined) throw refused(`${at(problem.pos[0])}: ${problem.message}`);

  const names = [...known.keys()].map((name) => `${name}:`).join(" ");
  const sections = new Map<string, Map<string, FileValue>>();
  for (const section of pairsOf(document.contents, path, `sections ${names}`)) {
    const name = keyOf(section);
    const keys = known.get(name);
    const where = `${path}:${lineOf(section.key)}`;
    if (keys === undefined) {
      throw refused(
        `${where}: unknown section '${name}' with the value ${shown(section.value)}: expected ${names}`,
      );
    }
    const values = new Map<string, FileValue>();
    for (const pair of pairsOf(section.value, where, `flags of glm-relay ${name} below '${name}:'`)) {
      const key = keyOf(pair);
      const line = lineOf(pair.key);
      if (!keys.has(key)) {
        throw refused(
          `${path}:${line}: unknown key '${key}' in section '${name}' with the value ${shown(pair.value)}: ` +
            `expected a flag of glm-relay ${name} without its dashes (glm-relay ${name} --help shows them)`,
        );
      }
      values.set(key, { ...textsOf(pair.value, `${path}:${line}: ${name}.${key}`), line });
    }
    sections.set(name, values);
  }
  return sections;
}

function readText(path: string): string {
  try {
    const { size } = statSync(path);
    if (size > maxFileBytes) throw new Error(`it has ${size} bytes, expected at most ${maxFileBytes}`);
    return readFileSync(path, "utf8");
  } catch (error) {
    throw refused(`configuration file '${path}' cannot be read: ${(error as Error).message}`);
  }
}

/** Of a mapping; an empty one may be left out. */
function pairsOf(node: unknown, where: string, expected: string): Pair[] {
  if (node === null || (yaml().isScalar(node) && node.value === null)) return [];
  if (yaml().isMap(node)) return node.items;
  throw refused(`${where}: ${shown(node)} stands where a mapping does: expected ${expected}`);
}

function keyOf({ key }: Pair): string {
  return yaml().isScalar(key) ? textOf(key) : shown(key);
}

function textsOf(node: unknown, where: string): { texts: string[]; isList: boolean } {
  if (yaml().isSeq(node)) {
    const texts = node.items.map((item) => oneValue(item, where, "a list of single values"));
    if (texts.length === 0) throw refused(`${where} is an empty list: expected at least one value`);
    return { texts, isList: true };
  }
  return { texts: [oneValue(node, where, "one value")], isList: false };
}

function oneValue(node: unknown, where: string, expected: string): string {
  if (yaml().isScalar(node) && node.value !== null) return textOf(node);
  throw refused(`${where} is ${shown(node)}: expected ${expected}`);
}

/** Without quotes as it stands there: 010 and 1e3 are for the flag's reader to take or to refuse. */
function textOf(scalar: Scalar): string {
  return scalar.type === "PLAIN" ? (scalar.source ?? "") : String(scalar.value);
}

function shown(node: unknown): string {
  if (yaml().isScalar(node) && node.value !== null) return `'${textOf(node).slice(0, maxShownCharacters)}'`;
  if (yaml().isMap(node)) return "a mapping";
  if (yaml().isSeq(node)) return "a list";
  return node === null || yaml().isScalar(node) ? "nothing" : "an alias";
}

function refused(message: string): CommandError {
  return new CommandError(message, "invalid_configuration", exitStatus.badUsage);
}
