/**
 * Tokens per second of a model with real sizes and random weights through a whole local cluster: decode
 * at one and at eight sequences, prefill at two lengths, in one stage and in two. Every figure includes
 * HTTP, the queue and sampling.
 */
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import { readServerSentEvents } from "../cli/sse.js";
import {
  addRandomModelOptions,
  printJson,
  quantizationFlags,
  quantizationOption,
  type RandomModelFlags,
  scratchModel,
} from "./options.js";
import { note } from "./progress.js";
import { uniform } from "./random-checkpoint.js";
import { percentile, printTable, type Table } from "./report.js";
import { type BenchCluster, withCluster } from "./up.js";

/** Two threads in all, like the peer's. */
const layouts = [
  { stages: 1, threads: 2 },
  { stages: 2, threads: 1 },
];
const sequenceCounts = [1, 8];
const prefillLengths = [128, 512];
const decodePromptLength = 32;

/**
 * llama.cpp on the same shape, 8 layers: decode of 1 and 8 sequences, prefill of 128 and 512 tokens. These
 * are figures of another machine and day; they say in what order of magnitude to think and no more.
 */
const quotedPeers = [
  ["(*) llama.cpp Q4_0, 2 threads", "14.3 to 15.4", "23", "38.5", "38.6"],
  ["(*) llama.cpp RPC, 2 servers of 1 thread", "6.5", "9.6", "16.2", "not measured"],
];
const quotedShape = { like: "chatglm2-6b", layers: 8 };

interface Flags extends RandomModelFlags {
  model?: string;
  quantization: string;
  tokens: number;
  repetitions: number;
  json?: boolean;
}

interface Speed {
  stages: number;
  threads: number;
  /** Tokens per second, all sequences together, by the number of sequences; one value per repetition. */
  decode: Record<number, number[]>;
  /** Tokens per second by the length of the prompt; one value per repetition. */
  prefill: Record<number, number[]>;
}

export function addSpeedCommand(program: Command): void {
  const command = program
    .command("speed")
    .description("Tokens per second of a 6B-shaped model of a few layers, in one stage and in two.")
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", layers: 8, context: 1_024 })
    .option("--model <dir>", "a model to measure instead")
    .addOption(quantizationOption())
    .option("--tokens <n>", "tokens that each sequence decodes", integer(2, 1_000), 96)
    .option("--repetitions <n>", "measurements per figure, of which the median is shown", integer(1, 100), 3)
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const model = flags.model ?? (await scratchModel(flags));
      const upFlags = [...quantizationFlags(flags.quantization), ...more];
      const speeds = await measure(model, upFlags, flags);
      if (flags.json === true) printJson({ name: "speed", flags: upFlags, speeds });
      else printTable(speedTable(speeds, upFlags, isQuotedShape(flags)));
    });
}

async function measure(
  model: string,
  upFlags: readonly string[],
  { tokens, repetitions }: Pick<Flags, "tokens" | "repetitions">,
): Promise<Speed[]> {
  const { shape } = await openModel(model);
  const random = uniform(1);
  const prompt = (length: number) => Array.from({ length }, () => Math.floor(random() * shape.tokenCount));
  const times = Array.from({ length: repetitions });
  const speeds: Speed[] = [];
  for (const { stages, threads } of layouts) {
    const flags = [...upFlags, "--threads-per-worker", String(threads)];
    await withCluster({ model, stages, flags }, async (cluster) => {
      note(`${stages} x ${threads} threads: ready after ${cluster.startSeconds.toFixed(1)} s`);
      const speed: Speed = { stages, threads, decode: {}, prefill: {} };
      // Pages of weights and workspace are touched for the first time.
      await prefill(cluster, prompt(Math.max(...prefillLengths)));
      for (const length of prefillLengths) {
        const rates: number[] = [];
        for (const _ of times) rates.push(await prefill(cluster, prompt(length)));
        speed.prefill[length] = rates;
        note(`  prefill of ${length}: ${show(rates)} tokens/s`);
      }
      for (const count of sequenceCounts) {
        const rates: number[] = [];
        for (const _ of times) {
          const prompts = Array.from({ length: count }, () => prompt(decodePromptLength));
          rates.push(await decode(cluster, prompts, tokens));
        }
        speed.decode[count] = rates;
        note(`  decode of ${count}: ${show(rates)} tokens/s`);
      }
      speeds.push(speed);
    });
  }
  return speeds;
}

/** @returns Prompt tokens per second, from the request to its one answered token. */
async function prefill(cluster: BenchCluster, prompt: number[]): Promise<number> {
  const started = performance.now();
  await cluster.post("/v1/completions", { prompt, max_tokens: 1, temperature: 0 });
  return (prompt.length * 1_000) / (performance.now() - started);
}

/** @returns Tokens per second of all sequences together. */
async function decode(cluster: BenchCluster, prompts: number[][], tokens: number): Promise<number> {
  return decodeRate(await Promise.all(prompts.map((prompt) => arrivals(cluster, prompt, tokens))));
}

/**
 * Tokens per second while all sequences decode: from when the last of them got its first token to when
 * the first of them got its last, so that no prompt and no thinning out is in it.
 * @param arrivals Per sequence the times (ms) at which its tokens came, ascending.
 */
export function decodeRate(arrivals: readonly (readonly number[])[]): number {
  const begin = Math.max(...arrivals.map((times) => times[0]!));
  const end = Math.min(...arrivals.map((times) => times.at(-1)!));
  const count = arrivals.flat().filter((time) => time > begin && time <= end).length;
  if (count === 0) throw new Error("the sequences never decoded at the same time: more tokens are needed");
  return (count * 1_000) / (end - begin);
}

interface Chunk {
  choices: { token_ids?: number[] }[];
}

/** When each token of one answer came, in ms. */
async function arrivals(cluster: BenchCluster, prompt: number[], tokens: number): Promise<number[]> {
  const response = await cluster.postStream("/v1/completions", {
    prompt,
    max_tokens: tokens,
    ignore_eos: true,
    temperature: 0,
    stream: true,
    return_token_ids: true,
  });
  const times: number[] = [];
  for await (const data of readServerSentEvents(response.body!)) {
    if (data === "[DONE]") break;
    const ids = (JSON.parse(data) as Chunk).choices[0]?.token_ids ?? [];
    for (const _ of ids) times.push(performance.now());
  }
  if (times.length !== tokens) throw new Error(`${times.length} tokens came, expected ${tokens}`);
  return times;
}

function isQuotedShape({ model, like, layers }: Flags): boolean {
  return model === undefined && like === quotedShape.like && layers === quotedShape.layers;
}

function speedTable(speeds: Speed[], flags: readonly string[], quoted: boolean): Table {
  const title = `Tokens per second through a cluster${flags.length > 0 ? ` (${flags.join(" ")})` : ""}; all sequences together`;
  const own = speeds.map(({ stages, threads, decode, prefill }) => [
    `${stages} ${stages === 1 ? "stage" : "stages"} of ${threads} ${threads === 1 ? "thread" : "threads"}`,
    ...sequenceCounts.map((count) => show(decode[count]!)),
    ...prefillLengths.map((length) => show(prefill[length]!)),
  ]);
  return {
    title: quoted ? `${title}\n(*) not from this run: another machine's figures, quoted` : title,
    head: [
      "",
      ...sequenceCounts.map((count) => `decode of ${count}`),
      ...prefillLengths.map((length) => `prefill of ${length}`),
    ],
    rows: quoted ? [...own, ...quotedPeers] : own,
  };
}

const show = (rates: readonly number[]): string => percentile(rates, 50).toFixed(1);
