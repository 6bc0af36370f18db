/**
 * Each kernel of each variant as a share of what the machine can do at all: of its read bandwidth where weights are read
 * for a few rows, of the arithmetic of its vector unit where there are many. Limits are measured in the same run, by the
 * same number of threads (kernels/main.cc).
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import type { Command } from "commander";
import { CommandError } from "../cli/errors.js";
import { integer } from "../cli/options.js";
import { packageRoot } from "../common/package.js";
import { listOf, printJson } from "./options.js";
import { note } from "./progress.js";
import { printMarkdown, printTable, type Table } from "./report.js";

const program = join(packageRoot, "build/native/kernel_bench");
const giga = 1e9;

/** Per second, of all threads together. */
interface Limits {
  variant: string;
  threads: number;
  readBandwidth: number;
  /** Of byte products as the variant's kernels do them, and of fused multiply-adds; each counts as two operations. */
  bytePeak: number;
  floatPeak: number;
}

interface KernelSpeed {
  variant: string;
  threads: number;
  kernel: string;
  /** Of a product; queries of attention. */
  rows: number;
  bytesPerSecond: number;
  operationsPerSecond: number;
}

interface Flags {
  threads: number[];
  json?: boolean;
  markdown?: boolean;
}

export function addKernelsCommand(parent: Command): void {
  parent
    .command("kernels")
    .description("Each kernel as a share of the bandwidth and the arithmetic measured in the same run.")
    .option("--threads <list>", "threads at the same time", listOf(integer(1, 256)), [1, 2])
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(({ threads, json, markdown }: Flags) => {
      const lines = threads.flatMap((count) => measured(count));
      const limits = lines.filter((line): line is Limits => "readBandwidth" in line);
      const speeds = lines.filter((line): line is KernelSpeed => "kernel" in line);
      if (json === true) printJson({ name: "kernels", limits, speeds });
      else for (const each of limits) (markdown === true ? printMarkdown : printTable)(table(each, speeds));
    });
}

/**
 * Bytes per second that so many threads read now.
 * @throws CommandError when the program fails.
 */
export function readBandwidth(threads: number): number {
  const limits = linesOf(threads, "limits") as Limits[];
  return Math.max(...limits.map((each) => each.readBandwidth));
}

function measured(threads: number): (Limits | KernelSpeed)[] {
  note(`kernels, ${threads} ${threads === 1 ? "thread" : "threads"}`);
  return linesOf(threads);
}

/** @throws CommandError when the program fails. */
function linesOf(threads: number, ...more: string[]): (Limits | KernelSpeed)[] {
  const { status, stdout, stderr, error } = spawnSync(program, [String(threads), ...more], {
    encoding: "utf8",
  });
  if (status !== 0) throw new CommandError(`${program}: ${error?.message ?? stderr.trim()}`);
  return stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Limits | KernelSpeed);
}

function table(limits: Limits, speeds: readonly KernelSpeed[]): Table {
  const { variant, threads, readBandwidth, bytePeak, floatPeak } = limits;
  const own = speeds.filter((speed) => speed.variant === variant && speed.threads === threads);
  const share = (value: number, of: number) => (of === 0 ? "-" : `${((100 * value) / of).toFixed(0)} %`);
  return {
    title:
      `${variant}, ${threads} ${threads === 1 ? "thread" : "threads"}: reads ${(readBandwidth / giga).toFixed(1)} GB/s, ` +
      `${(bytePeak / giga).toFixed(0)} Gop/s of bytes, ${(floatPeak / giga).toFixed(0)} GFLOP/s`,
    head: ["kernel", "rows", "GB/s", "of bandwidth", "Gop/s", "of arithmetic"],
    rows: own.map(({ kernel, rows, bytesPerSecond, operationsPerSecond }) => [
      kernel,
      String(rows),
      (bytesPerSecond / giga).toFixed(1),
      share(bytesPerSecond, readBandwidth),
      (operationsPerSecond / giga).toFixed(0),
      share(operationsPerSecond, kernel.startsWith("int") ? bytePeak : floatPeak),
    ]),
  };
}
