/**
 * What speculation brings: tokens per second with and without it, tokens per step and the share of guesses that
 * held, on text that repeats itself and on text that does not, one sequence and several. Two clusters that differ
 * in the switch run side by side and take turns, so that a machine that slows down slows down both; the answers
 * are compared token by token.
 */
import { join } from "node:path";
import type { Command } from "commander";
import { CommandError } from "../cli/errors.js";
import { integer } from "../cli/options.js";
import { packageRoot } from "../common/package.js";
import { addRandomModelOptions, modelLike, printJson, type RandomModelFlags } from "./options.js";
import { bytesProgress, note } from "./progress.js";
import { type CheckpointShape, writeRandomCheckpoint } from "./random-checkpoint.js";
import { uniform } from "./random-values.js";
import { percentile, printMarkdown, printTable, type Table } from "./report.js";
import { makeScratch } from "./scratch.js";
import { BenchCluster } from "./up.js";

const stages = 2;
const sequenceCounts = [1, 4];
/** Speculation may cost so much on text that it cannot guess. */
const worstRatio = 0.98;
const promptLength = 48;

interface Flags extends RandomModelFlags {
  tokens: number;
  rounds: number;
  json?: boolean;
  markdown?: boolean;
}

interface TextCase {
  name: string;
  /** Different for every sequence and round. */
  prompt(random: () => number): string | number[];
  sampling: Record<string, unknown>;
}

interface ModelCase {
  name: string;
  directory: string;
  flags: readonly string[];
  texts: readonly TextCase[];
}

interface Measured {
  model: string;
  text: string;
  sequences: number;
  /** Tokens per second, per round. */
  off: number[];
  auto: number[];
  /** Of one sequence; 1 without speculation. */
  tokensPerStep: number;
  /** Of the guesses; null when there were none. */
  acceptance: number | null;
}

const sampled = { temperature: 1 };
const greedy = { temperature: 0 };

/** Questions of the kind that the demo model answers, so that the end of one predicts that of the next. */
const sums = (random: () => number): string => {
  const number = () => Math.floor(random() * 50);
  return Array.from({ length: 4 }, () => [number(), number()])
    .map(([a, b]) => `${a} + ${b} = ${a! + b!}\n`)
    .join("")
    .repeat(3);
};

export function addSpeculationCommand(program: Command): void {
  const command = program
    .command("speculation")
    .description(
      "Tokens per second with speculation and without, on text that repeats itself and that does not.",
    )
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", layers: 4, context: 1_024 })
    .option("--tokens <n>", "tokens that each sequence decodes", integer(8, 900), 96)
    .option("--rounds <n>", "measurements per figure, of which the median is shown", integer(1, 100), 3)
    .option("--json", "print JSON")
    .option("--markdown", "prints the table for docs/benchmarks.md")
    .action(async (more: string[], flags: Flags) => {
      const measured: Measured[] = [];
      for (const model of await modelCases(flags)) measured.push(...(await measureModel(model, flags, more)));
      if (flags.json === true) printJson({ name: "speculation", flags: more, measured });
      else if (flags.markdown === true) printMarkdown(speculationTable(measured));
      else printTable(speculationTable(measured));
    });
}

/** A random model that writes so few tokens repeats itself about as much as code or a table does. */
const fewTokens = 16;

async function modelCases(flags: Flags): Promise<ModelCase[]> {
  const ids = (below: number) => (random: () => number) =>
    Array.from({ length: promptLength }, () => Math.floor(random() * below));
  const { shape } = modelLike(flags) as { shape: CheckpointShape };
  const small = { ...shape, vocabSize: fewTokens };
  const name = `${flags.like}, ${shape.layerCount} layers, int4`;
  return [
    {
      name: "demo",
      directory: join(packageRoot, "models/demo"),
      flags: [],
      texts: [
        { name: "repetitive", prompt: sums, sampling: greedy },
        { name: "less so", prompt: sums, sampling: sampled },
      ],
    },
    {
      name: `${name}, ${fewTokens} tokens`,
      directory: await write(small),
      flags: ["--quantization", "int4"],
      texts: [
        { name: "repetitive", prompt: ids(fewTokens), sampling: greedy },
        // Every pair of tokens comes again and again, and says nothing about the next one.
        { name: "misleading", prompt: ids(fewTokens), sampling: sampled },
      ],
    },
    {
      name,
      directory: await write(shape),
      flags: ["--quantization", "int4"],
      // Hardly a pair of tokens comes twice.
      // Some of the rows of the embedding are no tokens.
      texts: [{ name: "ordinary", prompt: ids(shape.vocabSize / 2), sampling: sampled }],
    },
  ];
}

async function write(shape: CheckpointShape): Promise<string> {
  const directory = makeScratch();
  await writeRandomCheckpoint({ directory, shape, progress: bytesProgress("writing weights") });
  return directory;
}

async function measureModel(model: ModelCase, flags: Flags, more: readonly string[]): Promise<Measured[]> {
  const modes = ["off", "auto"] as const;
  const clusters: BenchCluster[] = [];
  try {
    for (const mode of modes) {
      note(`${model.name}: starting ${stages} stages with --speculation ${mode}`);
      const upFlags = [...model.flags, "--threads-per-worker", "1", "--speculation", mode, ...more];
      clusters.push(await BenchCluster.start({ model: model.directory, stages, flags: upFlags }));
    }
    const [off, auto] = clusters as [BenchCluster, BenchCluster];
    const measured: Measured[] = [];
    for (const text of model.texts) {
      for (const sequences of sequenceCounts)
        measured.push(await compare(model, text, sequences, off, auto, flags));
    }
    return measured;
  } finally {
    for (const cluster of clusters) await cluster.stop();
  }
}

async function compare(
  model: ModelCase,
  text: TextCase,
  sequences: number,
  off: BenchCluster,
  auto: BenchCluster,
  { tokens, rounds }: Flags,
): Promise<Measured> {
  const rates: { off: number[]; auto: number[] } = { off: [], auto: [] };
  const before = (await auto.view()).counters;
  // The first round is not counted: memory is touched for the first time, and chances are being learnt.
  for (let round = 0; round <= rounds; round++) {
    const random = uniform(1_000 * sequences + round);
    const bodies = Array.from({ length: sequences }, (_, index) => ({
      prompt: text.prompt(random),
      max_tokens: tokens,
      ignore_eos: true,
      return_token_ids: true,
      seed: 100 * round + index,
      ...text.sampling,
    }));
    // Each goes first every other time: what slows a machine down for seconds hits both alike.
    const first = await decode(round % 2 === 0 ? off : auto, bodies);
    const second = await decode(round % 2 === 0 ? auto : off, bodies);
    const [plain, guessed] = round % 2 === 0 ? [first, second] : [second, first];
    if (JSON.stringify(plain.ids) !== JSON.stringify(guessed.ids)) {
      throw new CommandError(`${model.name}, ${text.name}: speculation changed an answer`);
    }
    if (round === 0) continue;
    rates.off.push(plain.rate);
    rates.auto.push(guessed.rate);
  }
  const after = (await auto.view()).counters;
  const drafted = after.draftedTokens - before.draftedTokens;
  const accepted = after.acceptedTokens - before.acceptedTokens;
  const drawn = (rounds + 1) * sequences * tokens;
  const measured: Measured = {
    model: model.name,
    text: text.name,
    sequences,
    ...rates,
    tokensPerStep: drawn / (drawn - accepted),
    acceptance: drafted === 0 ? null : accepted / drafted,
  };
  note(cells(measured).join(", "));
  return measured;
}

/** @returns the tokens of every sequence, and tokens per second from when the last of them decodes to the end of all. */
async function decode(
  cluster: BenchCluster,
  bodies: readonly object[],
): Promise<{ ids: number[][]; rate: number }> {
  const answers = await Promise.all(
    bodies.map(async (body) => {
      const ids: number[] = [];
      const times: number[] = [];
      for await (const { choices } of cluster.stream("/v1/completions", body)) {
        for (const token of choices[0]?.token_ids ?? []) {
          ids.push(token);
          times.push(performance.now());
        }
      }
      return { ids, times };
    }),
  );
  const begin = Math.max(...answers.map(({ times }) => times[0]!));
  const end = Math.max(...answers.map(({ times }) => times.at(-1)!));
  const count = answers.flatMap(({ times }) => times.filter((time) => time > begin)).length;
  if (count === 0) throw new CommandError("the sequences came one after the other: more tokens are needed");
  return { ids: answers.map(({ ids }) => ids), rate: (count * 1_000) / (end - begin) };
}

/** Rounds are compared in pairs, one run after the other. */
function ratioOf({ off, auto }: Measured): number {
  return percentile(
    auto.map((rate, round) => rate / off[round]!),
    50,
  );
}

function cells(measured: Measured): string[] {
  const { model, text, sequences, off, auto, tokensPerStep, acceptance } = measured;
  return [
    model,
    text,
    String(sequences),
    percentile(off, 50).toFixed(1),
    percentile(auto, 50).toFixed(1),
    ratioOf(measured).toFixed(2),
    tokensPerStep.toFixed(2),
    acceptance === null ? "no guesses" : `${(100 * acceptance).toFixed(0)} %`,
  ];
}

function speculationTable(measured: readonly Measured[]): Table {
  const worst = Math.min(...measured.map(ratioOf));
  return {
    title:
      `Decode with --speculation auto and off, ${stages} stages of one thread, tokens per second of all sequences\n` +
      `together; the worst ratio is ${worst.toFixed(2)}, the target is ${worstRatio} or more`,
    head: ["model", "text", "sequences", "off", "auto", "ratio", "tokens per step", "guesses kept"],
    rows: measured.map(cells),
  };
}
