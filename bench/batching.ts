/**
 * What it brings to decode several sequences at once: tokens per second of a model with real sizes and random
 * weights in a few stages, beside what the formula of pipelines says for the times that the stages took.
 *
 * With M micro-batches of b sequences in flight, a stage time t_i(b) and C for all hops of a round, a round takes
 * max(sum of t_i(b) + C, M * max t_i(b)), and gives each of the M * b sequences one token.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { CommandError } from "../cli/errors.js";
import { integer } from "../cli/options.js";
import { heartbeatMs } from "../common/limits.js";
import type { ClusterView } from "../coordinator/inference.js";
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
import { uniform } from "./random-values.js";
import { printMarkdown, printTable, type Table } from "./report.js";
import { type BenchCluster, withCluster } from "./up.js";

const promptLength = 32;
/** What stages say of themselves comes with heartbeats: after this time nothing in it is of the prompts. */
const settleMs = 1.5 * heartbeatMs;

interface Flags extends RandomModelFlags {
  model?: string;
  quantization: string;
  stages: number;
  threads: number;
  sequences: number[];
  tokens: number;
  json?: boolean;
  markdown?: boolean;
}

/** While so many sequences decode. */
export interface BatchFigures {
  sequences: number;
  tokensPerSecond: number;
  /** Sequences of a step, in the mean. */
  perStep: number;
  /** Of each stage and step. */
  stageMs: number[];
}

export function addBatchingCommand(program: Command): void {
  const command = program
    .command("batching")
    .description("Tokens per second by the number of sequences, beside the formula of pipelines.")
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", layers: 8, context: 1_024 })
    .option("--model <dir>", "a model to measure instead")
    .addOption(quantizationOption())
    .option("--stages <n>", "workers", integer(1, 16), 2)
    .option("--threads <n>", "compute threads of each", integer(1, 256), 1)
    .option("--sequences <list>", "sequences at once", listOf(integer(1, 256)), [1, 4, 8, 16])
    .option("--tokens <n>", "tokens that each sequence decodes", integer(16, 900), 64)
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(async (more: string[], flags: Flags) => {
      const model = flags.model ?? (await scratchModel(flags));
      const upFlags = [...quantizationFlags(flags.quantization), ...withoutGuesses, ...more];
      const figures = await measure(model, upFlags, flags);
      if (flags.json === true) printJson({ name: "batching", flags: upFlags, figures });
      else
        (flags.markdown === true ? printMarkdown : printTable)(batchingTable(figures, flags.stages, upFlags));
    });
}

async function measure(model: string, upFlags: readonly string[], flags: Flags): Promise<BatchFigures[]> {
  const { shape } = await openModel(model);
  const options = {
    model,
    stages: flags.stages,
    flags: [...upFlags, "--threads-per-worker", String(flags.threads)],
  };
  const random = uniform(1);
  const prompt = () => Array.from({ length: promptLength }, () => Math.floor(random() * shape.tokenCount));
  return withCluster(options, async (cluster) => {
    // Pages of weights and workspace are touched for the first time.
    await decode(cluster, [prompt()], 16);
    const figures: BatchFigures[] = [];
    for (const count of flags.sequences) {
      const prompts = Array.from({ length: count }, prompt);
      const measured = await decode(cluster, prompts, flags.tokens);
      if (measured === null) throw new CommandError(`--tokens ${flags.tokens}: too few to measure`);
      note(`${count} sequences: ${measured.tokensPerSecond.toFixed(1)} tokens per second`);
      figures.push(measured);
    }
    return figures;
  });
}

/** @returns Figures of the time in which all of them decode; null when that was too short. */
async function decode(
  cluster: BenchCluster,
  prompts: readonly number[][],
  tokens: number,
): Promise<BatchFigures | null> {
  let arrived = 0;
  let begun = 0;
  let allBegan: () => void = () => {};
  const all = new Promise<void>((resolve) => {
    allBegan = resolve;
  });
  const generate = async (prompt: number[]): Promise<void> => {
    const body = { prompt, max_tokens: tokens, ignore_eos: true, temperature: 0, return_token_ids: true };
    let own = 0;
    for await (const { choices } of cluster.stream("/v1/completions", body)) {
      const count = choices[0]?.token_ids?.length ?? 0;
      if (own === 0 && count > 0 && ++begun === prompts.length) allBegan();
      own += count;
      arrived += count;
      // The first one to end changes what the others travel with.
      if (own >= tokens - 1) return;
    }
  };
  const sample = async () => {
    const [atMs, count] = [performance.now(), arrived];
    return { atMs, count, view: await cluster.view() };
  };
  const running = prompts.map(generate);
  const first = Promise.race(running);
  await Promise.race([all, first]);
  await Promise.race([sleep(settleMs), first]);
  const from = await sample();
  await first;
  const to = await sample();
  await Promise.all(running);
  return figuresBetween(prompts.length, from, to);
}

interface Sample {
  atMs: number;
  /** Tokens that had come. */
  count: number;
  view: ClusterView;
}

/** @returns Null when no stage has reported a step in between. */
export function figuresBetween(sequences: number, from: Sample, to: Sample): BatchFigures | null {
  const tokens = to.count - from.count;
  const steps = to.view.counters.steps - from.view.counters.steps;
  const stageMs = to.view.stages.map((after, index) => {
    const before = from.view.stages[index]!;
    return ((after.busySeconds - before.busySeconds) * 1_000) / (after.steps - before.steps);
  });
  if (steps === 0 || tokens === 0 || !stageMs.every(Number.isFinite)) return null;
  return {
    sequences,
    tokensPerSecond: (tokens * 1_000) / (to.atMs - from.atMs),
    perStep: tokens / steps,
    stageMs,
  };
}

/**
 * Tokens per second by the formula.
 * @param hopsMs All hops of a round, from the coordinator through the stages and back.
 */
export function predicted({ sequences, perStep, stageMs }: BatchFigures, hopsMs: number): number {
  const inFlight = sequences / perStep;
  const through = stageMs.reduce((sum, ms) => sum + ms, 0) + hopsMs;
  return (sequences * 1_000) / Math.max(through, inFlight * Math.max(...stageMs));
}

/** What a round takes beside the stages' own time, by the figures of one sequence; 0 without such. */
export function hopsOf(figures: readonly BatchFigures[]): number {
  const one = figures.find(({ sequences }) => sequences === 1);
  if (one === undefined) return 0;
  return Math.max(0, 1_000 / one.tokensPerSecond - one.stageMs.reduce((sum, ms) => sum + ms, 0));
}

function batchingTable(figures: readonly BatchFigures[], stages: number, flags: readonly string[]): Table {
  const hopsMs = hopsOf(figures);
  const alone = figures.find(({ sequences }) => sequences === 1)?.tokensPerSecond;
  return {
    title:
      `Sequences that decode at once, ${stages} stages${flags.length > 0 ? ` (${flags.join(" ")})` : ""}: tokens per ` +
      `second of all, and by the formula with ${hopsMs.toFixed(2)} ms for the hops of a round (from one sequence)`,
    head: [
      "sequences",
      "tokens/s",
      "gain",
      "per step",
      "in flight",
      "stages' ms per step",
      "formula",
      "of formula",
    ],
    rows: figures.map((each) => {
      const { sequences, tokensPerSecond, perStep, stageMs } = each;
      const formula = predicted(each, hopsMs);
      return [
        String(sequences),
        tokensPerSecond.toFixed(1),
        alone === undefined ? "-" : (tokensPerSecond / alone).toFixed(2),
        perStep.toFixed(1),
        (sequences / perStep).toFixed(1),
        stageMs.map((ms) => ms.toFixed(1)).join(" + "),
        formula.toFixed(1),
        (tokensPerSecond / formula).toFixed(2),
      ];
    }),
  };
}
