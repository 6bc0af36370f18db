/**
 * `bench gpu`: stages on the first GPU beside what the GPU can do at all, measured in the same run by
 * build/cuda/cuda_bench: a step that decodes must read all weights and its sequences' keys and values once, so the copy
 * bandwidth bounds it; one that reads prompts multiplies, so the rate of the matrix instructions does.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { CommandError } from "../cli/errors.js";
import { packageRoot } from "../common/package.js";
import type { PublishedName } from "../models/published.js";
import { chooseDevice, type Gpu } from "../native/index.js";
import { GpuStage, type GpuStageOptions } from "./gpu-stage.js";
import { printJson, scratchModel, withoutGuesses, writeModel } from "./options.js";
import { note } from "./progress.js";
import { printMarkdown, printTable, type Table } from "./report.js";
import { makeScratch, removeScratch } from "./scratch.js";
import { clusterEngine, decodeKey, promptsOf, runTask } from "./speed-task.js";
import { withCluster } from "./up.js";

const limitsProgram = join(packageRoot, "build/cuda/cuda_bench");
const giga = 1e9;

interface Limits {
  name: string;
  /** Per second, read and written. */
  copyBytes: number;
  /** Per second; a multiply and an add are two. */
  matrixOperations: number;
}

interface StageCase {
  title: string;
  like: PublishedName;
  layers: number;
  middle: boolean;
  quantization: GpuStageOptions["quantization"];
  contexts: { sequences: number; context: number }[];
  prompts: number[];
}

const decodes = [1, 8, 32].map((sequences) => ({ sequences, context: 512 }));
const longDecodes = [1, 8].map((sequences) => ({ sequences, context: 8_192 }));
const prompts = [512, 2_048];

const cases: StageCase[] = [
  {
    title: "GLM-130B, 18 of 70 layers",
    ...{ like: "glm-130b", layers: 18, middle: true, quantization: "int4" },
    contexts: decodes,
    prompts,
  },
  {
    title: "ChatGLM2-6B, whole",
    ...{ like: "chatglm2-6b", layers: 28, middle: false, quantization: "int4" },
    contexts: [...decodes, ...longDecodes],
    prompts,
  },
  {
    title: "GLM-4-9B, whole",
    ...{ like: "glm-4-9b", layers: 40, middle: false, quantization: "int4" },
    contexts: [...decodes, ...longDecodes],
    prompts,
  },
];

interface Row {
  title: string;
  what: string;
  ms: number;
  tokensPerSecond: number;
  /** Of the time that the bound allows. */
  share: number;
  bound: "bandwidth" | "matrix";
}

interface Flags {
  only?: string;
  hops: boolean;
  json?: boolean;
  markdown?: boolean;
}

export function addGpuCommand(program: Command): void {
  program
    .command("gpu")
    .description("stages on the first GPU, beside the GPU's own limits")
    .option("--only <text>", "stages whose title has this in it")
    .option("--no-hops", "leave out the clusters, which show what gRPC and all else add to a stage's time")
    .option("--json", "one JSON object")
    .option("--markdown", "tables for a document")
    .action(async (flags: Flags) => {
      const device = chooseDevice("cuda:0")!;
      const limits = measuredLimits();
      note(
        `${limits.name}: ${(limits.copyBytes / giga).toFixed(0)} GB/s, ${(limits.matrixOperations / 1e12).toFixed(0)} TFLOP/s`,
      );
      const rows: Row[] = [];
      for (const one of cases) {
        if (flags.only !== undefined && !one.title.includes(flags.only)) continue;
        rows.push(...(await measureStage(one, device, limits)));
      }
      const hops = flags.hops ? await hopTable(device) : null;
      const tables = [stageTable(rows, limits), ...(hops === null ? [] : [hops])];
      if (flags.json === true) printJson({ limits, rows, hops });
      else for (const table of tables) flags.markdown === true ? printMarkdown(table) : printTable(table);
    });
}

function measuredLimits(): Limits {
  const { status, stdout, stderr, error } = spawnSync(limitsProgram, ["limits"], { encoding: "utf8" });
  if (status !== 0) {
    const reason = error?.message ?? stderr;
    throw new CommandError(`${limitsProgram}: ${reason}; "make cuda" builds it`);
  }
  return JSON.parse(stdout) as Limits;
}

async function measureStage(one: StageCase, device: Gpu, limits: Limits): Promise<Row[]> {
  note(`${one.title}: writing a layer of random weights`);
  const directory = join(makeScratch(), one.like);
  mkdirSync(directory);
  await writeModel(directory, { like: one.like, layers: 1 });
  const started = performance.now();
  const longest = one.contexts.map(({ sequences, context }) => sequences * (context + 64));
  const stage = await GpuStage.open({
    ...{ directory, layers: one.layers, middle: one.middle, device },
    quantization: one.quantization,
    cacheTokens: Math.max(...longest, ...one.prompts),
  });
  try {
    note(
      `${one.title}: ${(stage.weightBytes / giga).toFixed(2)} GB of weights after ${((performance.now() - started) / 1_000).toFixed(1)} s`,
    );
    const rows: Row[] = [];
    for (const { sequences, context } of one.contexts) {
      await stage.fill(sequences, context);
      const ms = await stage.decode(sequences, context);
      rows.push({
        ...{ title: one.title, what: `decode of ${sequences} after ${context}`, ms, bound: "bandwidth" },
        tokensPerSecond: (sequences * 1_000) / ms,
        share: (stage.weightBytes + stage.contextBytes(sequences, context)) / limits.copyBytes / (ms / 1_000),
      });
    }
    for (const length of one.prompts) {
      const ms = await stage.read(length);
      const operations = 2 * length * stage.matrixWeights;
      rows.push({
        ...{ title: one.title, what: `prompt of ${length}`, ms, bound: "matrix" },
        tokensPerSecond: (length * 1_000) / ms,
        share: operations / limits.matrixOperations / (ms / 1_000),
      });
    }
    for (const row of rows) note(`  ${row.what}: ${row.ms.toFixed(2)} ms, ${percent(row.share)}`);
    return rows;
  } finally {
    await stage.close();
    removeScratch(directory);
  }
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

function stageTable(rows: readonly Row[], { name, copyBytes, matrixOperations }: Limits): Table {
  return {
    title: `Stages on ${name} (${(copyBytes / giga).toFixed(0)} GB/s, ${(matrixOperations / 1e12).toFixed(0)} TFLOP/s), in the engine, copies included`,
    head: ["stage", "step", "ms", "tokens/s", "of its bound"],
    rows: rows.map(({ title, what, ms, tokensPerSecond, share, bound }) => [
      title,
      what,
      ms.toFixed(2),
      tokensPerSecond.toFixed(0),
      `${percent(share)} (${bound})`,
    ]),
  };
}

interface HopCase {
  title: string;
  like: PublishedName;
  layers: number;
}

/** Few layers, so that what is not a layer shows. */
const hopCases: HopCase[] = [
  { title: "ChatGLM2-6B, 8 layers", like: "chatglm2-6b", layers: 8 },
  { title: "GLM-130B, 2 layers", like: "glm-130b", layers: 2 },
];

/** The whole of a shortened model: in the engine, and through HTTP, scheduler and gRPC. */
async function hopTable(device: Gpu): Promise<Table> {
  const rows: string[][] = [];
  for (const one of hopCases) rows.push(...(await hopRows(one, device)));
  return {
    title: `Clusters on ${device.name}: milliseconds per token of each sequence, after 512`,
    head: ["model", "stages", "sequences", "in the engine, one stage", "through a cluster", "the rest"],
    rows,
  };
}

async function hopRows({ title, like, layers }: HopCase, device: Gpu): Promise<string[][]> {
  const contexts = [512];
  const sequenceCounts = [1, 8, 32];
  note(`${title}: writing random weights`);
  const model = await scratchModel({ like, layers });
  const task = {
    ...promptsOf(await openModel(model)),
    prefillLengths: [512],
    sequenceCounts,
    contexts,
    tokens: 64,
  };
  const inEngine: Record<number, number> = {};
  const stage = await GpuStage.open({
    ...{ directory: model, layers, middle: false, device, quantization: "int4", cacheTokens: 32 * 640 },
  });
  for (const sequences of sequenceCounts) {
    await stage.fill(sequences, contexts[0]!);
    inEngine[sequences] = await stage.decode(sequences, contexts[0]!);
  }
  await stage.close();
  const rows: string[][] = [];
  for (const stages of [1, 2]) {
    note(`${title}: a cluster of ${stages}`);
    const flags = ["--device", "cuda:0", "--quantization", "int4", ...withoutGuesses];
    const speeds = await withCluster({ model, stages, flags }, (cluster) =>
      runTask(clusterEngine(cluster), task, 0),
    );
    for (const sequences of sequenceCounts) {
      const rate = speeds.decode[decodeKey(sequences, contexts[0]!)]!;
      const ms = (sequences * 1_000) / rate;
      const engine = inEngine[sequences]!;
      const times = [engine, ms, ms - engine].map((value) => value.toFixed(2));
      rows.push([title, String(stages), String(sequences), ...times]);
      note(`  ${stages} stages, ${sequences} sequences: ${times.join(", ")} ms`);
    }
  }
  removeScratch(model);
  return rows;
}
