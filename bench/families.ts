/** Every published model: parameters and bytes by its card, and on demand the speed of a few of its layers. */
import type { Command } from "commander";
import { integer, size } from "../cli/options.js";
import { type PublishedName, published, publishedNames } from "../models/published.js";
import { bytesTables, familyBytes } from "./families-bytes.js";
import { measureFamilies, speedTable } from "./families-speed.js";
import {
  listOf,
  nameIn,
  printJson,
  quantizationFlags,
  quantizationOption,
  withoutGuesses,
} from "./options.js";
import { note } from "./progress.js";
import { printMarkdown, printTable } from "./report.js";

interface Flags {
  only: PublishedName[];
  speed?: boolean;
  quantization: string;
  tokens: number;
  rounds: number;
  room: number;
  markdown?: boolean;
  json?: boolean;
}

export function addFamiliesCommand(program: Command): void {
  program
    .command("families")
    .description("Parameters and bytes of every published model, and with --speed tokens per second.")
    .argument("[flags...]", "more flags of `up`, after --")
    .option("--only <names>", "models, of those that --help of random-model lists", only, publishedNames)
    .option("--speed", "also measures a few layers of each with random weights, at full width")
    .addOption(quantizationOption())
    .option("--tokens <n>", "tokens that each sequence decodes", integer(2, 900), 64)
    .option("--rounds <n>", "measurements per figure, of which the median is shown", integer(1, 100), 3)
    .option("--room <size>", "the largest file that may be written for a model", size, 12e9)
    .option("--markdown", "prints tables for docs/benchmarks.md")
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const families = flags.only.map((name) => familyBytes(name));
      // As many as speed.ts compares with, whatever the machine has.
      const threads = ["--threads-per-worker", "2"];
      const upFlags = [...quantizationFlags(flags.quantization), ...threads, ...withoutGuesses, ...more];
      const print = flags.markdown === true ? printMarkdown : printTable;
      if (flags.json !== true) for (const table of bytesTables(families)) print(table);
      const speeds =
        flags.speed === true ? await measureFamilies(flags.only, { ...flags, flags: upFlags }) : [];
      if (flags.json === true) {
        printJson({ name: "families", families, ...(flags.speed && { flags: upFlags, speeds }) });
        return;
      }
      if (speeds.length === 0) return;
      print(speedTable(speeds, upFlags));
      for (const { title, skipped } of speeds) if (skipped) note(`${title} was left out: ${skipped}`);
    });
}

const only = listOf(nameIn(published)) as (text: string) => PublishedName[];
