/**
 * Tokens per second of a model with real sizes and random weights through a whole local cluster: decode
 * at one and at eight sequences, prefill at two lengths, in one stage and in two. Every figure includes
 * HTTP, the queue and sampling.
 */
import { join } from "node:path";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import {
  addRandomModelOptions,
  printJson,
  quantizationFlags,
  quantizationOption,
  type RandomModelFlags,
  scratchModel,
  withoutGuesses,
} from "./options.js";
import { findPeer, howToInstallPeer, runPeer } from "./peer.js";
import { bytesProgress, note } from "./progress.js";
import { writeRandomGguf } from "./random-gguf.js";
import { percentile, printTable, type Table } from "./report.js";
import { makeScratch } from "./scratch.js";
import { clusterEngine, type RoundSpeeds, runTask, type SpeedTask } from "./speed-task.js";
import { withCluster } from "./up.js";

/** Two threads in all, like the peer's. */
const layouts = [
  { stages: 1, threads: 2 },
  { stages: 2, threads: 1 },
];
const peerThreads = 2;
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
  rounds: number;
  peer?: string;
  json?: boolean;
}

/** One row of the table. */
interface Speeds {
  name: string;
  rounds: RoundSpeeds[];
}

export function addSpeedCommand(program: Command): void {
  const command = program
    .command("speed")
    .description("Tokens per second of a 6B-shaped model of a few layers, in one stage and in two.")
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", layers: 8, context: 1_024 })
    .option("--model <dir>", "a model to measure instead")
    .addOption(quantizationOption())
    .option("--tokens <n>", "tokens that each sequence decodes", integer(2, 900), 96)
    .option("--rounds <n>", "measurements per figure, of which the median is shown", integer(1, 100), 3)
    .option("--peer <dir>", "measures llama.cpp too, with the node-llama-cpp installed in this directory")
    .option("--json", "print JSON")
    .action(async (more: string[], flags: Flags) => {
      const peerLibrary = flags.peer === undefined ? null : findPeer(flags.peer);
      if (peerLibrary === null) note(`llama.cpp is not measured: ${howToInstallPeer}`);
      const model = flags.model ?? (await scratchModel(flags));
      const upFlags = [...quantizationFlags(flags.quantization), ...withoutGuesses, ...more];
      const speeds = await measure(model, upFlags, flags, peerLibrary);
      if (flags.json === true) printJson({ name: "speed", flags: upFlags, speeds });
      else printTable(speedTable(speeds, upFlags, isQuotedShape(flags)));
    });
}

/** Rounds alternate between all that is compared: a machine that slows down slows down all of it. */
async function measure(
  model: string,
  upFlags: readonly string[],
  { tokens, rounds }: Pick<Flags, "tokens" | "rounds">,
  peerLibrary: string | null,
): Promise<Speeds[]> {
  const { shape, contextLength } = await openModel(model);
  const task: SpeedTask = {
    tokenCount: shape.tokenCount,
    prefillLengths,
    sequenceCounts,
    decodePromptLength,
    tokens,
  };
  const runs: { name: string; run: (round: number) => Promise<RoundSpeeds> }[] = layouts.map(
    ({ stages, threads }) => ({
      name: `${count(stages, "stage")} of ${count(threads, "thread")}`,
      run: (round) => {
        const flags = [...upFlags, "--threads-per-worker", String(threads)];
        return withCluster({ model, stages, flags }, (cluster) =>
          runTask(clusterEngine(cluster), task, round),
        );
      },
    }),
  );
  if (peerLibrary !== null) {
    const file = join(makeScratch(), "model.gguf");
    await writeRandomGguf(file, { ...shape, contextLength }, bytesProgress("writing the peer's weights"));
    runs.push({
      name: `llama.cpp Q4_0, ${count(peerThreads, "thread")}`,
      run: (round) => runPeer({ library: peerLibrary, file, threads: peerThreads, task, round }),
    });
  }
  const speeds = runs.map(({ name }): Speeds => ({ name, rounds: [] }));
  for (let round = 0; round < rounds; round++) {
    for (const [index, { name, run }] of runs.entries()) {
      const measured = await run(round);
      note(`round ${round + 1} of ${rounds}, ${name}: ${cells([measured]).join(", ")}`);
      speeds[index]!.rounds.push(measured);
    }
  }
  return speeds;
}

function isQuotedShape({ model, like, layers }: Flags): boolean {
  return model === undefined && like === quotedShape.like && layers === quotedShape.layers;
}

function speedTable(speeds: Speeds[], flags: readonly string[], quoted: boolean): Table {
  const title = `Tokens per second through a cluster${flags.length > 0 ? ` (${flags.join(" ")})` : ""}; all sequences together`;
  const own = speeds.map(({ name, rounds }) => [name, ...cells(rounds)]);
  return {
    title: quoted ? `${title}\n(*) not from this run: another machine's figures, quoted` : title,
    head: [
      "",
      ...sequenceCounts.map((sequences) => `decode of ${sequences}`),
      ...prefillLengths.map((length) => `prefill of ${length}`),
    ],
    rows: quoted ? [...own, ...quotedPeers] : own,
  };
}

/** The medians in the order of the table's columns. */
function cells(rounds: readonly RoundSpeeds[]): string[] {
  return [
    ...sequenceCounts.map((sequences) => median(rounds.map(({ decode }) => decode[sequences]!))),
    ...prefillLengths.map((length) => median(rounds.map(({ prefill }) => prefill[length]!))),
  ];
}

const median = (rates: readonly number[]): string => percentile(rates, 50).toFixed(1);
const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;
