/**
 * A long context of a prefix-LM beside a running stream: the longest gap between two steps of the stream while
 * the context is read in slices of layers, and for comparison how long the context takes when it comes whole,
 * which is what the stream would wait for otherwise. Real processes, random weights, a few layers.
 */
import type { Command } from "commander";
import { integer } from "../cli/options.js";
import { published } from "../models/published.js";
import { printJson, quantizationFlags, quantizationOption, writeModel } from "./options.js";
import { note } from "./progress.js";
import { uniform } from "./random-values.js";
import { percentile, printTable, type Table } from "./report.js";
import { makeScratch } from "./scratch.js";
import { type BenchCluster, withCluster } from "./up.js";

const like = "chatglm-6b";
/** Ids below it are text in that model. */
const textIds = 100_000;
/** Steps of the stream before the context comes, and its tokens at most. */
const warmSteps = 40;
const streamTokens = 900;
const streamPromptRows = 16;
/** Of a context that is not counted. */
const warmRows = 256;

interface Flags {
  layers: number;
  rows: number;
  stages: number;
  rounds: number;
  quantization: string;
  json?: boolean;
}

/** Times in ms. */
interface Round {
  /** From the request to its first token, alone: the context comes whole. */
  wholeMs: number;
  /** The same beside the stream: in slices. */
  slicedMs: number;
  slices: number;
  /** Between steps of the stream: usually, and at most while the context was read. */
  usualGapMs: number;
  longestGapMs: number;
  /** Steps of the stream meanwhile. */
  steps: number;
}

export function addSlicesCommand(program: Command): void {
  program
    .command("slices")
    .description("The longest gap in a stream while a long context of a prefix-LM is read beside it.")
    .argument("[flags...]", "more flags of `up`, after --")
    .option("--layers <n>", "layers of the ChatGLM-6B-shaped model", integer(2, 28), 4)
    .option("--rows <n>", "rows of the context", integer(16, 2_040), 2_040)
    .option("--stages <n>", "stages of one thread each", integer(1, 28), 2)
    .option("--rounds <n>", "measurements", integer(1, 100), 2)
    .addOption(quantizationOption())
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const model = makeScratch();
      await writeModel(model, { like, layers: flags.layers });
      // Each token is a step.
      const fixed = ["--threads-per-worker", "1", "--speculation", "off"];
      const upFlags = [...quantizationFlags(flags.quantization), ...fixed, ...more];
      const rounds = await withCluster({ model, stages: flags.stages, flags: upFlags }, async (cluster) => {
        // Pages of weights and workspace are touched for the first time.
        await measure(cluster, Math.min(flags.rows, warmRows), flags.rounds);
        const measured: Round[] = [];
        for (let round = 0; round < flags.rounds; round++) {
          measured.push(await measure(cluster, flags.rows, round));
          note(`round ${round + 1} of ${flags.rounds}: ${cells(measured.at(-1)!).join(", ")}`);
        }
        return measured;
      });
      if (flags.json === true) printJson({ name: "slices", flags: upFlags, rounds });
      else printTable(slicesTable(rounds, flags, upFlags));
    });
}

async function measure(cluster: BenchCluster, rows: number, round: number): Promise<Round> {
  const random = uniform(round + 1);
  const { gmask_token_id: gmask, bos_token_id: sop } = published[like].config as Record<string, number>;
  const prompt = (length: number) => [
    ...Array.from({ length: length - 1 }, () => Math.floor(random() * textIds)),
    gmask,
    sop,
  ];
  const body = (length: number, tokens: number) => ({
    prompt: prompt(length),
    max_tokens: tokens,
    ignore_eos: true,
    temperature: 0,
    return_token_ids: true,
  });
  const read = async () => {
    const started = performance.now();
    await cluster.post("/v1/completions", body(rows, 1));
    return { started, ended: performance.now() };
  };
  const slices = async () => (await cluster.view()).counters.contextSlices;
  const whole = await read();
  const arrivals: number[] = [];
  let stopped = false;
  const stream = (async () => {
    for await (const { choices } of cluster.stream("/v1/completions", body(streamPromptRows, streamTokens))) {
      for (const _ of choices[0]?.token_ids ?? []) arrivals.push(performance.now());
      if (stopped) return;
    }
  })();
  while (arrivals.length < warmSteps) await new Promise((resolve) => setTimeout(resolve, 10));
  const before = await slices();
  const sliced = await read();
  const count = (await slices()) - before;
  stopped = true;
  await stream;
  const gaps = arrivals.slice(1).map((at, index) => ({ from: arrivals[index]!, ms: at - arrivals[index]! }));
  const meanwhile = arrivals.filter((at) => at > sliced.started && at <= sliced.ended);
  return {
    wholeMs: whole.ended - whole.started,
    slicedMs: sliced.ended - sliced.started,
    slices: count,
    usualGapMs: percentile(
      gaps.filter(({ from, ms }) => from + ms < sliced.started).map(({ ms }) => ms),
      50,
    ),
    longestGapMs: Math.max(
      ...gaps.filter(({ from, ms }) => from + ms > sliced.started && from < sliced.ended).map(({ ms }) => ms),
    ),
    steps: meanwhile.length,
  };
}

const seconds = (ms: number): string => (ms / 1_000).toFixed(2);

const cells = ({ wholeMs, slicedMs, slices, usualGapMs, longestGapMs, steps }: Round): string[] => [
  seconds(wholeMs),
  seconds(slicedMs),
  String(slices),
  usualGapMs.toFixed(0),
  seconds(longestGapMs),
  String(steps),
];

function slicesTable(rounds: readonly Round[], { rows, layers, stages }: Flags, flags: string[]): Table {
  return {
    title:
      `A context of ${rows} rows beside a stream: ${layers} layers of a ChatGLM-6B in ${stages} stages ` +
      `of one thread (${flags.join(" ")})`,
    head: [
      "whole, alone (s)",
      "in slices (s)",
      "slices",
      "usual gap (ms)",
      "longest gap (s)",
      "steps meanwhile",
    ],
    rows: rounds.map(cells),
  };
}
