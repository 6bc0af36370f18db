/**
 * Tokens per second of every published model at full width, with as many of its layers as the disk holds:
 * random weights, one stage in a local cluster. Every figure includes HTTP, the queue, sampling and the head,
 * which are the same for the whole model: its speed is not that of these layers divided.
 */
import { statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { cardTensors } from "../checkpoint/card-tensors.js";
import { denseLayerCount } from "../checkpoint/config.js";
import { openModel } from "../checkpoint/index.js";
import { CommandError } from "../cli/errors.js";
import { formatBytes } from "../cli/text.js";
import { type PublishedModel, type PublishedName, published, resized } from "../models/published.js";
import { bytesProgress, note } from "./progress.js";
import { checkpointBytes, writeRandomCheckpoint } from "./random-checkpoint.js";
import { percentile, type Table } from "./report.js";
import { makeScratch, removeScratch } from "./scratch.js";
import {
  clusterEngine,
  decodeKey,
  promptsOf,
  type RoundSpeeds,
  runTask,
  type SpeedTask,
} from "./speed-task.js";
import { withCluster } from "./up.js";

const sequenceCounts = [1, 8];
const prefillLengths = [128, 512];
const decodePromptLength = 32;
/** Enough for every prompt and its reply, so that no memory is planned for a context of a million tokens. */
const contextLength = 1_024;

interface Size {
  layers: number;
  /** Those of them in front of the first with experts. */
  dense?: number;
}

/** The first that there is room for is measured. Of layers with experts one: they are the large ones. */
function sizesOf({ card, config }: PublishedModel): Size[] {
  if (card.experts === undefined) return [4, 3, 2, 1].map((layers) => ({ layers }));
  const ownDense = denseLayerCount(config, card, "");
  return [ownDense, 1].map((dense) => ({ layers: dense + 1, dense }));
}

export interface FamilySpeed {
  names: PublishedName[];
  title: string;
  /** "4", or "1 + 1 with experts". */
  layers: string;
  /** Of the checkpoint that was written. */
  file: number;
  /** One per round; empty where nothing was measured, for the reason in `skipped`. */
  rounds: RoundSpeeds[];
  skipped?: string;
}

export interface SpeedOptions {
  /** The largest checkpoint that may be written, in bytes. */
  room: number;
  /** Tokens that each sequence decodes. */
  tokens: number;
  rounds: number;
  /** More flags of `up`. */
  flags: readonly string[];
}

/** @param names Those of one network are measured once. */
export async function measureFamilies(
  names: readonly PublishedName[],
  options: SpeedOptions,
): Promise<FamilySpeed[]> {
  const groups = new Map<string, PublishedName[]>();
  for (const name of names) {
    const network = networkOf(name);
    groups.set(network, [...(groups.get(network) ?? []), name]);
  }
  const speeds: FamilySpeed[] = [];
  for (const group of groups.values()) {
    const title = group.map((name) => published[name].title).join(", ");
    note(`${title} (${speeds.length + 1} of ${groups.size})`);
    speeds.push({ names: group, title, ...(await measureFamily(published[group[0]!], options)) });
  }
  return speeds;
}

/** Equal for models that compute alike, whatever their number of layers and their context. */
function networkOf(name: PublishedName): string {
  const { card, config } = resized(published[name], { layers: 2, dense: 1, context: contextLength });
  return JSON.stringify([card.form, card.attention.kind, cardTensors(card, config)]);
}

type Measured = Omit<FamilySpeed, "names" | "title">;

async function measureFamily(whole: PublishedModel, options: SpeedOptions): Promise<Measured> {
  const room = Math.min(options.room, freeBytes());
  const candidates = sizesOf(whole).map((size) => {
    const model = resized(whole, { ...size, context: contextLength });
    return { model, layers: nameOf(size), file: checkpointBytes(cardTensors(model.card, model.config)) };
  });
  const smallest = candidates.at(-1)!;
  const chosen = candidates.find(({ file }) => file <= room);
  if (chosen === undefined) {
    const skipped = `layers (${smallest.layers}) need a file of ${formatBytes(smallest.file)}, there is room for ${formatBytes(room)}`;
    note(`  left out: ${skipped}`);
    return { layers: smallest.layers, file: smallest.file, rounds: [], skipped };
  }
  const { model, layers, file } = chosen;
  const directory = makeScratch();
  try {
    const progress = bytesProgress(`  writing weights (layers: ${layers})`);
    await writeRandomCheckpoint({ directory, card: model.card, config: model.config, progress });
    return { layers, file, rounds: await measureRounds(directory, options) };
  } catch (error) {
    // A model too large for this machine's memory is no reason to lose the others' figures.
    if (!(error instanceof CommandError)) throw error;
    note(`  left out: ${error.message}`);
    return { layers, file, rounds: [], skipped: error.message };
  } finally {
    removeScratch(directory);
  }
}

function nameOf({ layers, dense }: Size): string {
  return dense === undefined ? String(layers) : `${dense} + ${layers - dense} with experts`;
}

async function measureRounds(
  directory: string,
  { tokens, rounds, flags }: SpeedOptions,
): Promise<RoundSpeeds[]> {
  const contexts = [decodePromptLength];
  const prompts = promptsOf(await openModel(directory));
  const task: SpeedTask = { ...prompts, prefillLengths, sequenceCounts, contexts, tokens };
  return withCluster({ model: directory, stages: 1, flags }, async (cluster) => {
    note(`  ready after ${cluster.startSeconds.toFixed(1)} s`);
    const measured: RoundSpeeds[] = [];
    for (let round = 0; round < rounds; round++) {
      measured.push(await runTask(clusterEngine(cluster), task, round));
      note(`  round ${round + 1} of ${rounds}: ${cells(measured.slice(-1)).join(", ")}`);
    }
    return measured;
  });
}

function freeBytes(): number {
  const { bavail, bsize } = statfsSync(tmpdir());
  return bavail * bsize;
}

export function speedTable(speeds: readonly FamilySpeed[], flags: readonly string[]): Table {
  return {
    title: `Tokens per second of a few layers at full width through a cluster of one stage (${flags.join(" ")}); all sequences together`,
    head: [
      "",
      "layers",
      ...sequenceCounts.map((count) => `decode of ${count}`),
      ...prefillLengths.map((length) => `prefill of ${length}`),
    ],
    rows: speeds.map(({ title, layers, rounds, skipped }) =>
      skipped === undefined
        ? [title, layers, ...cells(rounds)]
        : [title, "left out", ...[...sequenceCounts, ...prefillLengths].map(() => "-")],
    ),
  };
}

/** The medians in the order of the table's columns. */
function cells(rounds: readonly RoundSpeeds[]): string[] {
  const median = (rates: number[]) => percentile(rates, 50).toFixed(1);
  return [
    ...sequenceCounts.map((count) =>
      median(rounds.map(({ decode }) => decode[decodeKey(count, decodePromptLength)]!)),
    ),
    ...prefillLengths.map((length) => median(rounds.map(({ prefill }) => prefill[length]!))),
  ];
}
