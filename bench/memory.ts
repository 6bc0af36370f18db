/**
 * The plan's bytes against the truth: what each worker was planned to hold, and what the kernel says it
 * holds once every page of the KV cache and of the workspace has been used; how long loading took, and
 * how far its peak stood above what stayed.
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import { formatBytes } from "../cli/text.js";
import type { StageView } from "../coordinator/inference.js";
import {
  addRandomModelOptions,
  listOf,
  printJson,
  quantizationFlags,
  quantizationOption,
  type RandomModelFlags,
  scratchModel,
} from "./options.js";
import { note } from "./progress.js";
import { printTable, type Table } from "./report.js";
import { type BenchCluster, withCluster } from "./up.js";

/** A sequence lives so many steps after its prompt, so that the first still runs when the last has begun. */
const answerTokens = 15;
/** Rows of logits that a stage may need at once are those of so many scored tokens. */
const scoredTokens = 64;
const pollMs = 50;

/** What the kernel says of a process (proc_pid_status(5)), in bytes. */
export interface ResidentBytes {
  rss: number;
  anon: number;
  /** Pages of mapped files: weights as stored, programs. */
  file: number;
  /** The largest rss so far. */
  peak: number;
}

interface StageMemory {
  stages: number;
  stage: number;
  layers: number;
  planned: StageView["planned"];
  /** When the first token had travelled through all stages. */
  ready: ResidentBytes;
  /** After the KV cache had been filled. */
  used: ResidentBytes;
  /** Share of the KV cache's blocks that were seen in use at once, 0 to 1. */
  kvUsed: number;
  /** From the assignment of the layers to the link to the neighbour. */
  loadSeconds: number;
}

interface MemoryReport {
  flags: readonly string[];
  /** Stored bytes of the largest layer. */
  layerBytes: number;
  stages: StageMemory[];
}

interface Flags extends RandomModelFlags {
  model?: string;
  stages: number[];
  quantization: string;
  json?: boolean;
}

export function addMemoryCommand(program: Command): void {
  const command = program
    .command("memory")
    .description("The plan's bytes per worker against resident memory, load time and its peak.")
    .argument("[flags...]", "more flags of `up`, after --");
  // A KV cache is planned for at most 64 contexts: short ones are filled in minutes.
  addRandomModelOptions(command, { like: "chatglm2-6b", context: 64 })
    .option("--model <dir>", "a model to load instead")
    .option("--stages <list>", "numbers of stages", listOf(integer(1, 1_000)), [1, 2, 4])
    .addOption(quantizationOption())
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const model = flags.model ?? (await scratchModel(flags));
      const upFlags = [...quantizationFlags(flags.quantization), ...more];
      const report = await measureMemory(model, flags.stages, upFlags);
      if (flags.json === true) printJson({ name: "memory", ...report });
      else printTable(memoryTable(report));
    });
}

/**
 * @param flags More flags of `up`.
 * @param data  Data directory with the weight cache that is used; absent: none.
 */
export async function measureMemory(
  model: string,
  stageCounts: readonly number[],
  flags: readonly string[],
  data?: string,
): Promise<MemoryReport> {
  const { layerBytes, contextLength, shape } = await openModel(model);
  const stages: StageMemory[] = [];
  for (const count of stageCounts) {
    note(`starting ${count} ${count === 1 ? "stage" : "stages"}`);
    await withCluster({ model, stages: count, flags, data }, async (cluster) => {
      note(`ready after ${cluster.startSeconds.toFixed(1)} s`);
      const ready = await residentByWorker(cluster);
      const kvUsed = await useAllMemory(cluster, contextLength, shape.tokenCount);
      const used = await residentByWorker(cluster);
      for (const view of (await cluster.view()).stages) {
        stages.push({
          stages: count,
          stage: view.stage,
          layers: view.layerEnd - view.layerBegin,
          planned: view.planned,
          ready: ready.get(view.worker)!,
          used: used.get(view.worker)!,
          kvUsed,
          loadSeconds: loadSeconds(cluster, view.worker),
        });
      }
    });
  }
  return { flags, layerBytes: Math.max(...layerBytes), stages };
}

async function residentByWorker(cluster: BenchCluster): Promise<Map<string, ResidentBytes>> {
  const { workers } = await cluster.view();
  return new Map(
    workers.map(({ id, pid }) => [id, parseResident(readFileSync(`/proc/${pid}/status`, "utf8"))]),
  );
}

/** Reads the text of /proc/PID/status. @throws Error when a line is missing. */
export function parseResident(status: string): ResidentBytes {
  const bytes = (name: string): number => {
    const match = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status);
    if (match === null) throw new Error(`no ${name} in /proc/PID/status`);
    return Number(match[1]) * 1024;
  };
  return { rss: bytes("VmRSS"), anon: bytes("RssAnon"), file: bytes("RssFile"), peak: bytes("VmHWM") };
}

/**
 * Runs as many sequences at once as the KV cache holds, so that each of its pages is written.
 * @returns The share of its blocks that were seen in use at once: sequences of a long context end
 *   before the last of them have begun, and then some blocks stay untouched.
 */
async function useAllMemory(
  cluster: BenchCluster,
  contextLength: number,
  tokenCount: number,
): Promise<number> {
  const { blocks } = await cluster.view();
  const lengths = promptLengths(blocks, contextLength);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  note(`filling the KV cache: ${lengths.length} sequences, ${total} prompt tokens`);
  // Spread over the vocabulary: an embedding that is mapped is resident where it was read.
  let next = 0;
  const ids = (count: number) =>
    Array.from({ length: count }, () => Math.floor((next++ * tokenCount) / total) % tokenCount);
  const filling = Promise.all(
    lengths.map(async (length) => {
      const body = { prompt: ids(length), max_tokens: answerTokens, ignore_eos: true, temperature: 0 };
      for await (const _ of cluster.stream("/v1/completions", body));
    }),
  );
  const seen = await mostBlocksUsed(cluster, filling);
  note(`KV blocks seen in use at once: ${seen} of ${blocks.total}`);
  // Logits of as many rows as a stage ever computes at once.
  await cluster.post("/v1/completions", {
    prompt: ids(Math.min(scoredTokens, contextLength)),
    max_tokens: 0,
    echo: true,
    logprobs: 0,
  });
  return seen / blocks.total;
}

/** Prompts that draw all blocks between them, each with room for its answer in its last block. */
export function promptLengths(blocks: { size: number; total: number }, contextLength: number): number[] {
  const perSequence = Math.floor(contextLength / blocks.size);
  const lengths: number[] = [];
  for (let left = blocks.total; left > 0; left -= perSequence) {
    lengths.push((Math.min(left, perSequence) - 1) * blocks.size + 1);
  }
  return lengths;
}

async function mostBlocksUsed(cluster: BenchCluster, work: Promise<unknown>): Promise<number> {
  let most = 0;
  let working = true;
  const done = work.finally(() => {
    working = false;
  });
  // Its error is thrown below; until then nobody waits for it.
  done.catch(() => undefined);
  while (working) {
    most = Math.max(most, (await cluster.view()).blocks.used);
    await sleep(pollMs);
  }
  await done;
  return most;
}

/** From the latest assignment to the first link after it, by the worker's own log. */
export function loadSeconds(cluster: BenchCluster, worker: string): number {
  const lines = cluster.workerLog(worker);
  const assigned = lines.findLastIndex(({ msg }) => msg === "assigned");
  const linked = lines.find(({ msg }, index) => index > assigned && msg === "linked");
  if (assigned < 0 || linked === undefined)
    throw new Error(`the log of ${worker} has no assigned and linked`);
  return (Date.parse(linked.time) - Date.parse(lines[assigned]!.time)) / 1_000;
}

function memoryTable({ flags, layerBytes, stages }: MemoryReport): Table {
  return {
    title:
      `Planned bytes and resident memory per worker${flags.length > 0 ? ` (${flags.join(" ")})` : ""}; ` +
      `one layer is stored in ${formatBytes(layerBytes)}`,
    head: [
      "stage",
      "layers",
      "weights",
      "KV cache",
      "of it used",
      "workspace",
      "process",
      "planned",
      "resident",
      "of it files",
      "deviation",
      "load",
      "load peak above ready",
      "above resident",
    ],
    rows: stages.map(
      ({ stages: count, stage, layers, planned, ready, used, kvUsed, loadSeconds: seconds }) => [
        `${stage + 1}/${count}`,
        String(layers),
        formatBytes(planned.weightBytes),
        formatBytes(planned.kvBytes),
        `${Math.round(100 * kvUsed)} %`,
        formatBytes(planned.workspaceBytes),
        formatBytes(planned.processBytes),
        formatBytes(plannedSum(planned)),
        formatBytes(used.rss),
        formatBytes(used.file),
        percent(used.rss / plannedSum(planned) - 1),
        `${seconds.toFixed(1)} s`,
        formatBytes(ready.peak - ready.rss),
        formatSigned(ready.peak - used.rss),
      ],
    ),
  };
}

export const plannedSum = (planned: StageView["planned"]): number =>
  planned.weightBytes + planned.kvBytes + planned.workspaceBytes + planned.processBytes;

const percent = (fraction: number): string => `${fraction < 0 ? "" : "+"}${(100 * fraction).toFixed(1)} %`;

const formatSigned = (bytes: number): string => (bytes < 0 ? `-${formatBytes(-bytes)}` : formatBytes(bytes));
