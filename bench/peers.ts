/**
 * The speed of a model with real sizes and random weights beside llama.cpp's, in rounds that alternate: decode of
 * several sequences after short and long prompts, prefill, time to load, and resident memory; in one process of so
 * many threads, and in two stages or RPC servers. Our figures include HTTP, the queue and sampling.
 */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { type Model, openModel } from "../checkpoint/index.js";
import { CommandError, exitStatus } from "../cli/errors.js";
import { integer } from "../cli/options.js";
import { simulationModel } from "../cli/simulate/model.js";
import { formatBytes } from "../cli/text.js";
import { type PublishedName, published } from "../models/published.js";
import { StageWork } from "../simulation/hardware/stage-work.js";
import { readBandwidth } from "./kernels.js";
import { parseResident } from "./memory.js";
import {
  type AnyName,
  addRandomModelOptions,
  anyNames,
  listOf,
  printJson,
  quantizationFlags,
  quantizationOption,
  type RandomModelFlags,
  scratchModel,
  settle,
  withoutGuesses,
} from "./options.js";
import { findPeer, howToInstallPeer, type PeerFigures, runPeer } from "./peer.js";
import { fitsPeer, peerDifferences, peerNetwork } from "./peer-network.js";
import { runRpc, serverCount } from "./peer-rpc.js";
import { buildRpc, type RpcPrograms } from "./peer-rpc-build.js";
import { bytesProgress, note } from "./progress.js";
import { ggufEmbeddingBytes, writeRandomGguf } from "./random-gguf.js";
import { percentile, printMarkdown, printTable, type Table } from "./report.js";
import { makeScratch } from "./scratch.js";
import { clusterEngine, decodeKey, promptsOf, runTask, type SpeedTask } from "./speed-task.js";
import { type BenchCluster, withCluster } from "./up.js";

interface Flags extends RandomModelFlags<AnyName> {
  model?: string;
  quantization: string;
  threads: number[];
  sequences: number[];
  contexts: number[];
  prefill: number[];
  tokens: number;
  rounds: number;
  peer?: string;
  rpc?: boolean;
  json?: boolean;
  markdown?: boolean;
}

/** One row of the table. */
interface Engine {
  name: string;
  /** Threads in all. */
  threads: number;
  kind: "cluster" | "stages" | "peer" | "rpc";
  /** Of weights, for a step of one row. */
  tokenBytes: number;
  rounds: Round[];
}

interface Round extends PeerFigures {
  /** Bytes per second that as many threads read just before. */
  readBandwidth: number;
}

type Measured = Engine & { run: (round: number) => Promise<PeerFigures> };

const counts = (most: number) => listOf(integer(1, most));

/** Shapes, and the published models that the peer's file can be like. */
const names = anyNames.filter(
  (name) => !Object.hasOwn(published, name) || fitsPeer(published[name as PublishedName].card),
);

export function addPeersCommand(program: Command): void {
  const command = program
    .command("peers")
    .description("Tokens per second of a model of a few layers and random weights, beside llama.cpp's.")
    .argument("[flags...]", "more flags of `up`, after --");
  addRandomModelOptions(command, { like: "chatglm2-6b", layers: 8, context: 4_096 }, names)
    .option("--model <dir>", "a model to measure instead")
    .addOption(quantizationOption())
    .option("--threads <list>", "threads in all", counts(256), [2])
    .option("--sequences <list>", "sequences that decode at once", counts(256), [1, 4, 8, 16])
    .option("--contexts <list>", "tokens of their prompts", counts(100_000), [32])
    .option("--prefill <list>", "lengths of prompts", counts(100_000), [128, 512])
    .option("--tokens <n>", "tokens that each sequence decodes", integer(2, 900), 64)
    .option("--rounds <n>", "measurements per figure, of which the median is shown", integer(1, 100), 3)
    .option("--peer <dir>", "measures llama.cpp too, with the node-llama-cpp installed in this directory")
    .option("--rpc", "measures its two RPC servers too, built with git and cmake from that package's source")
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(async (more: string[], flags: Flags) => {
      const peer = await findPeers(flags);
      if (peer === null) note(`llama.cpp is not measured: ${howToInstallPeer}`);
      const model = await openModel(flags.model ?? (await scratchModel(flags)));
      if (peer !== null) checkNetwork(model);
      const upFlags = [...quantizationFlags(flags.quantization), ...withoutGuesses, ...more];
      const differences = peer === null ? null : differencesOf(model);
      const engines = await measure(model, upFlags, flags, peer);
      if (flags.json === true)
        printJson({ name: "peers", flags: upFlags, peerDifferences: differences, engines });
      else
        (flags.markdown === true ? printMarkdown : printTable)(table(engines, upFlags, flags, differences));
    });
}

/** llama.cpp as it is installed. */
interface Peer {
  library: string;
  rpc: RpcPrograms | null;
}

/** @throws CommandError when what was asked for is not there or cannot be measured. */
async function findPeers({ peer, rpc, threads }: Flags): Promise<Peer | null> {
  if (rpc === true && peer === undefined) {
    throw new CommandError(`--rpc needs --peer DIR: ${howToInstallPeer}`, null, exitStatus.badUsage);
  }
  if (rpc === true && !threads.some((count) => count % serverCount === 0)) {
    const message = `--threads ${threads.join(",")} has no even number, expected one for the servers of --rpc`;
    throw new CommandError(message, null, exitStatus.badUsage);
  }
  if (peer === undefined) return null;
  const library = findPeer(peer);
  return { library, rpc: rpc === true ? await buildRpc(peer) : null };
}

function differencesOf({ card }: Model): string | null {
  const all = peerDifferences(card);
  if (all.length === 0) return null;
  return `llama.cpp has no ${card.title}: it computes ${peerNetwork} with matrices of the same sizes, so ${all.join(", ")}`;
}

/** @throws CommandError for a model whose matrices the peer's file cannot hold. */
function checkNetwork({ card, directory }: Model): void {
  if (fitsPeer(card)) return;
  const message = `--model ${directory} is a ${card.title}, expected one with a gated feed-forward part and without experts for --peer`;
  throw new CommandError(message, null, exitStatus.badUsage);
}

/** Rounds alternate between all that is compared: a machine that slows down slows down all of it. */
async function measure(
  opened: Model,
  upFlags: readonly string[],
  { threads, sequences, contexts, prefill, tokens, rounds, quantization }: Flags,
  peer: Peer | null,
): Promise<Engine[]> {
  const { directory: model, shape, contextLength } = opened;
  const own = { tokenBytes: await tokenBytesOf(model, quantization) };
  const task: SpeedTask = {
    ...promptsOf(opened),
    prefillLengths: prefill,
    sequenceCounts: sequences,
    contexts,
    tokens,
  };
  const cluster = (stages: number, perStage: number) => (round: number) => {
    const flags = [...upFlags, "--threads-per-worker", String(perStage)];
    return withCluster({ model, stages, flags }, (running) => clusterFigures(running, task, round));
  };
  let file = "";
  let peers = { tokenBytes: 0 };
  if (peer !== null) {
    const directory = makeScratch();
    file = join(directory, "model.gguf");
    const written = { ...shape, contextLength };
    await writeRandomGguf(file, written, bytesProgress("writing the peer's weights"));
    await settle(directory);
    // Of the embedding one row is read.
    peers = { tokenBytes: statSync(file).size - ggufEmbeddingBytes(written) };
    note(`the peer's file has ${formatBytes(statSync(file).size)}`);
  }
  const engines = threads.flatMap((count): Measured[] => {
    const named = `${count} ${count === 1 ? "thread" : "threads"}`;
    const all: Measured[] = [
      {
        ...own,
        name: `1 stage, ${named}`,
        threads: count,
        kind: "cluster",
        rounds: [],
        run: cluster(1, count),
      },
    ];
    if (count % 2 === 0) {
      const halves = cluster(2, count / 2);
      all.push({
        ...own,
        name: `2 stages, ${named} in all`,
        threads: count,
        kind: "stages",
        rounds: [],
        run: halves,
      });
    }
    if (peer !== null) {
      const { library } = peer;
      const run = (round: number) => runPeer({ library, file, threads: count, task, round });
      all.push({ ...peers, name: `llama.cpp, ${named}`, threads: count, kind: "peer", rounds: [], run });
    }
    if (peer !== null && peer.rpc !== null && count % serverCount === 0) {
      const rpc = { programs: peer.rpc, file, threadsPerServer: count / serverCount, task };
      const name = `llama.cpp, ${serverCount} RPC servers, ${named} in all`;
      all.push({ ...peers, name, threads: count, kind: "rpc", rounds: [], run: () => runRpc(rpc) });
    }
    return all;
  });
  for (let round = 0; round < rounds; round++) {
    for (const engine of engines) {
      const bandwidth = readBandwidth(engine.threads);
      engine.rounds.push({ ...(await engine.run(round)), readBandwidth: bandwidth });
      note(`round ${round + 1} of ${rounds}, ${engine.name}: ${speeds(engine.rounds.at(-1)!).join(", ")}`);
    }
  }
  return engines.map(({ run: _, ...engine }) => engine);
}

/** Of weights: all layers and the head. */
async function tokenBytesOf(model: string, quantization: string): Promise<number> {
  const flags = quantization === "none" ? {} : { quantization: quantization as "int4" | "int8" };
  const work = await simulationModel(model, flags);
  let bytes = 0;
  new StageWork(work, { layerBegin: 0, layerEnd: work.layers.length }).each(
    { parts: [], rows: 1, keyPairs: 0, keyReads: 0, sampled: 1, slice: null },
    (each, _, count) => {
      bytes += each * count;
    },
  );
  return bytes;
}

async function clusterFigures(cluster: BenchCluster, task: SpeedTask, round: number): Promise<PeerFigures> {
  const measured = await runTask(clusterEngine(cluster), task, round);
  const { workers } = await cluster.view();
  const resident = workers.map(({ pid }) => parseResident(readFileSync(`/proc/${pid}/status`, "utf8")));
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  return {
    ...measured,
    loadSeconds: cluster.startSeconds,
    anonymousBytes: sum(resident.map(({ anon }) => anon)),
    mappedBytes: sum(resident.map(({ file }) => file)),
    peakBytes: sum(resident.map(({ peak }) => peak)),
  };
}

const speeds = ({ decode, prefill }: PeerFigures): string[] =>
  [...Object.values(decode), ...Object.values(prefill)].map((rate) => rate.toFixed(1));

/** What is compared, in the order of the table's columns. */
interface Column {
  head: string;
  of: (figures: Round, engine: Engine) => number;
  show: (value: number) => string;
  /** Less is better. */
  isCost: boolean;
}

function columnsOf({ sequences, contexts, prefill }: Flags): Column[] {
  const rate = (head: string, of: (figures: Round) => number): Column => ({
    ...{ head, of, show: (value) => value.toFixed(1), isCost: false },
  });
  const bytes = (head: string, of: (figures: Round) => number): Column => ({
    ...{ head, of, show: formatBytes, isCost: true },
  });
  return [
    ...contexts.flatMap((context) =>
      sequences.map((count) =>
        rate(`${count} x after ${context}`, ({ decode }) => decode[decodeKey(count, context)]!),
      ),
    ),
    ...(sequences.includes(1) ? [bandwidthColumn(contexts[0]!)] : []),
    { head: "per token", of: (_, { tokenBytes }) => tokenBytes, show: formatBytes, isCost: true },
    ...prefill.map((length) => rate(`prefill ${length}`, (figures) => figures.prefill[length]!)),
    { head: "ready", of: (figures) => figures.loadSeconds, show: (s) => `${s.toFixed(1)} s`, isCost: true },
    bytes("anonymous", (figures) => figures.anonymousBytes),
    bytes("mapped", (figures) => figures.mappedBytes),
    bytes("peak", (figures) => figures.peakBytes),
  ];
}

/** How much of what the machine reads a sequence alone reads: what is left is not memory's. */
const bandwidthColumn = (context: number): Column => ({
  head: "of bandwidth",
  of: ({ decode, readBandwidth: all }, { tokenBytes }) => (decode[decodeKey(1, context)]! * tokenBytes) / all,
  show: (share) => `${(100 * share).toFixed(0)} %`,
  isCost: false,
});

function table(
  engines: readonly Engine[],
  upFlags: readonly string[],
  flags: Flags,
  differences: string | null,
): Table {
  const columns = columnsOf(flags);
  const medianOf = (engine: Engine, { of }: Column) =>
    percentile(
      engine.rounds.map((round) => of(round, engine)),
      50,
    );
  const rows = engines.map((engine) => [
    engine.name,
    ...columns.map((column) => `${column.show(medianOf(engine, column))}${spread(engine, column)}`),
  ]);
  const ratios = (kinds: readonly Engine["kind"][], peer: Engine["kind"], whose: string) =>
    engines.flatMap((engine) => {
      const other = engines.find(({ kind, threads }) => kind === peer && threads === engine.threads);
      if (!kinds.includes(engine.kind) || other === undefined) return [];
      const ratio = (column: Column) => (medianOf(engine, column) / medianOf(other, column)).toFixed(2);
      return [[`${engine.name}: times ${whose}`, ...columns.map(ratio)]];
    });
  const title = `Tokens per second, all sequences together (${upFlags.join(" ")}); medians of ${flags.rounds} rounds, and half of what lies between the least and the most`;
  return {
    title: differences === null ? title : `${title}\n${differences}`,
    head: ["", ...columns.map(({ head }) => head)],
    rows: [
      ...rows,
      ...ratios(["cluster", "stages"], "peer", "the peer's"),
      ...ratios(["stages"], "rpc", "its RPC servers'"),
    ],
  };
}

function spread(engine: Engine, { of, isCost }: Column): string {
  const { rounds } = engine;
  if (isCost || rounds.length < 2) return "";
  const values = rounds.map((round) => of(round, engine));
  const half = (Math.max(...values) - Math.min(...values)) / 2;
  return ` +-${((100 * half) / percentile(values, 50)).toFixed(0)} %`;
}
