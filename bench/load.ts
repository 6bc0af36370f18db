/**
 * How long a start takes with and without the weight cache: the first load, which makes the packed weights and keeps
 * them; the next one, which maps them; and one in another cut, which maps the same files. With it what the kernel says
 * of the workers' memory, and how fast one sequence decodes from mapped weights.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import { formatBytes } from "../cli/text.js";
import { loadSeconds } from "./memory.js";
import {
  addRandomModelOptions,
  listOf,
  printJson,
  quantizationFlags,
  quantizationOption,
  type RandomModelFlags,
  scratchModel,
  withoutGuesses,
} from "./options.js";
import { note } from "./progress.js";
import { decodeRate, printTable, type Table } from "./report.js";
import { makeScratch, removeScratch } from "./scratch.js";
import { type BenchCluster, withCluster } from "./up.js";

const promptTokens = 32;
const decodedTokens = 48;
const pollMs = 100;
/** A disk of 50 MB/s takes two minutes for 6 GB. */
const writeLimitMs = 600_000;

/** Of /proc/PID/smaps_rollup, in bytes. */
export interface MappedMemory {
  anonymous: number;
  /** Pages of mapped files. */
  file: number;
  /** The same, each page divided by the processes that map it. */
  fileShare: number;
  /** Of them, those in large pages. */
  fileLarge: number;
}

interface StageLoad {
  stage: number;
  layers: number;
  loadSeconds: number;
  memory: MappedMemory;
}

interface LoadRun {
  name: string;
  /** From the start of `up` to its ready line. */
  startSeconds: number;
  /** From the ready line until the cache was written; null when nothing was. */
  writtenSeconds: number | null;
  cacheBytes: number;
  tokensPerSecond: number;
  stages: StageLoad[];
}

interface Flags extends RandomModelFlags {
  model?: string;
  stages: number[];
  quantization: string;
  json?: boolean;
}

export function addLoadCommand(program: Command): void {
  const command = program
    .command("load")
    .description("Load time and memory of workers without packed weights in the cache, and with them.")
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", context: 1_024 })
    .option("--model <dir>", "a model to load instead")
    .option("--stages <list>", "numbers of stages", listOf(integer(1, 1_000)), [1, 2])
    .addOption(quantizationOption())
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const model = flags.model ?? (await scratchModel(flags));
      const upFlags = [...quantizationFlags(flags.quantization), ...withoutGuesses, ...more];
      const runs = await measureLoads(model, flags.stages, upFlags);
      if (flags.json === true) printJson({ name: "load", flags: upFlags, runs });
      else printTable(loadTable(runs, upFlags));
    });
}

/** @param flags More flags of `up`. */
export async function measureLoads(
  model: string,
  stageCounts: readonly number[],
  flags: readonly string[],
): Promise<LoadRun[]> {
  const { shape } = await openModel(model);
  const runs: LoadRun[] = [];
  const measure = async (name: string, stages: number, data: string | undefined) => {
    note(`starting: ${name}`);
    const run = await withCluster({ model, stages, flags, data }, (cluster) =>
      measureCluster(cluster, name, data, shape.tokenCount),
    );
    runs.push(run);
  };
  for (const [index, count] of stageCounts.entries()) {
    const data = makeScratch();
    const what = `${count} ${count === 1 ? "stage" : "stages"}`;
    await measure(`${what}, no cache`, count, undefined);
    await measure(`${what}, first load`, count, data);
    await measure(`${what}, from the cache`, count, data);
    if (index === stageCounts.length - 1 && index > 0) {
      await measure(`${stageCounts[0]} from files of ${what}`, stageCounts[0]!, data);
    }
    removeScratch(data);
  }
  return runs;
}

async function measureCluster(
  cluster: BenchCluster,
  name: string,
  data: string | undefined,
  tokenCount: number,
): Promise<LoadRun> {
  const { stages, workers } = await cluster.view();
  const writtenSeconds = await untilWritten(
    cluster,
    stages.map(({ worker }) => worker),
  );
  const tokensPerSecond = await decode(cluster, tokenCount);
  return {
    name,
    startSeconds: cluster.startSeconds,
    writtenSeconds,
    cacheBytes: data === undefined ? 0 : cacheBytes(join(data, "weights")),
    tokensPerSecond,
    stages: stages.map(({ stage, worker, layerBegin, layerEnd }) => {
      const { pid } = workers.find(({ id }) => id === worker)!;
      return {
        stage,
        layers: layerEnd - layerBegin,
        loadSeconds: loadSeconds(cluster, worker),
        memory: parseRollup(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8")),
      };
    }),
  };
}

/** Starts a cluster whose workers fill the cache under `data`, and ends it. */
export async function fillCache(model: string, flags: readonly string[], data: string): Promise<void> {
  await withCluster({ model, stages: 1, flags, data }, async (cluster) => {
    const { stages } = await cluster.view();
    await untilWritten(
      cluster,
      stages.map(({ worker }) => worker),
    );
  });
}

/** @returns null when the workers had nothing to write. */
async function untilWritten(cluster: BenchCluster, workers: string[]): Promise<number | null> {
  const begin = performance.now();
  let waited = false;
  for (const worker of workers) {
    for (;;) {
      const log = cluster.workerLog(worker);
      const read = log.findLastIndex(({ msg }) => msg === "weight cache read");
      const { misses = 0 } = (log[read] ?? {}) as { misses?: number };
      if (misses === 0 || log.slice(read).some(({ msg }) => msg === "weight cache written")) break;
      if (performance.now() - begin > writeLimitMs) throw new Error(`${worker} is still writing its cache`);
      waited = true;
      await sleep(pollMs);
    }
  }
  return waited ? (performance.now() - begin) / 1_000 : null;
}

async function decode(cluster: BenchCluster, tokenCount: number): Promise<number> {
  const prompt = Array.from({ length: promptTokens }, (_, i) => (i * 37) % tokenCount);
  const arrivals: number[] = [];
  const body = {
    prompt,
    max_tokens: decodedTokens,
    ignore_eos: true,
    temperature: 0,
    return_token_ids: true,
  };
  for await (const { choices } of cluster.stream("/v1/completions", body)) {
    for (const _ of choices[0]?.token_ids ?? []) arrivals.push(performance.now());
  }
  return decodeRate([arrivals]);
}

function cacheBytes(directory: string): number {
  return readdirSync(directory).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);
}

/** Reads the text of /proc/PID/smaps_rollup. @throws Error when a line is missing. */
export function parseRollup(text: string): MappedMemory {
  const bytes = (name: string): number => {
    const match = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text);
    if (match === null) throw new Error(`no ${name} in /proc/PID/smaps_rollup`);
    return Number(match[1]) * 1024;
  };
  const anonymous = bytes("Anonymous");
  return {
    anonymous,
    file: bytes("Rss") - anonymous,
    fileShare: bytes("Pss_File"),
    fileLarge: bytes("FilePmdMapped"),
  };
}

function loadTable(runs: readonly LoadRun[], flags: readonly string[]): Table {
  return {
    title: `Starts without and with packed weights in the cache${flags.length > 0 ? ` (${flags.join(" ")})` : ""}`,
    head: [
      "",
      "stage",
      "layers",
      "load",
      "ready after",
      "written after",
      "anonymous",
      "mapped files",
      "their share",
      "in large pages",
      "cache",
      "tokens/s",
    ],
    rows: runs.flatMap(({ name, startSeconds, writtenSeconds, cacheBytes: kept, tokensPerSecond, stages }) =>
      stages.map(({ stage, layers, loadSeconds: seconds, memory }, index) => [
        index === 0 ? name : "",
        `${stage + 1}/${stages.length}`,
        String(layers),
        `${seconds.toFixed(1)} s`,
        index === 0 ? `${startSeconds.toFixed(1)} s` : "",
        index === 0 && writtenSeconds !== null ? `${writtenSeconds.toFixed(1)} s` : "",
        formatBytes(memory.anonymous),
        formatBytes(memory.file),
        formatBytes(memory.fileShare),
        formatBytes(memory.fileLarge),
        index === 0 ? formatBytes(kept) : "",
        index === 0 ? tokensPerSecond.toFixed(1) : "",
      ]),
    ),
  };
}
