/** GLM-130B on the cards of its authors' table, as simulated, beside what they published. */
import type { Command } from "commander";
import type { PrecisionFlags } from "../../cli/precision.js";
import { simulationModel } from "../../cli/simulate/model.js";
import { oneHost, parseGpus } from "../../simulation/hardware/hardware.js";
import type { SimulatedModel } from "../../simulation/hardware/model-work.js";
import {
  type SimulationFigures,
  type SimulationOptions,
  simulate,
} from "../../simulation/hardware/simulate.js";
import { printJson } from "../options.js";
import { note } from "../progress.js";
import { printMarkdown, printTable, type Table } from "../report.js";
import { closedOptions } from "./prediction.js";

/**
 * THUDM/GLM-130B, docs/quantization.md: INT4 with a scale per row, FasterTransformer, tensor parallel, one sequence.
 * Encoding in ms by tokens of the prompt, decoding in tokens per second over 512 tokens.
 */
const publishedRows = {
  "4x3090": { encodeMs: { 512: 1_300 }, decode: 15.9 },
  "8x2080ti": { encodeMs: { 512: 1_044 }, decode: 18.8 },
  "8x3090": { encodeMs: { 512: 915, 1024: 1_793, 2048: 3_477 }, decode: 25 },
} as const;
type Rig = keyof typeof publishedRows;

const prompts = [512, 1_024, 2_000] as const;
const decoded = 512;
const sequences = [4, 8, 16, 32];
/** Of the aggregate. */
const shape = { promptTokens: 128, replyTokens: 256 };
const acceptance = 0.6;
/** The coordinator's default, and one for those who wait for nothing: contexts are read in larger slices. */
const itlTargets = [200, 1_000];

const formats = [
  { name: "groups of 32", flags: { quantization: "int4", groupSize: "32" } },
  { name: "per row", flags: { quantization: "int4", groupSize: "row" } },
] as const;
const caches = [
  { name: "FP16", flags: {} },
  { name: "INT8", flags: { kv: "int8" } },
] as const;

export interface PublishedFigures {
  rig: Rig;
  weights: string;
  kv: string;
  kvTokens: number;
  encodeMs: number[];
  single: number;
  speculating: number;
  /** By target of the time between tokens, and by sequences. */
  aggregate: number[][];
  /** Of one case: why there are none. */
  refused?: string;
}

export function addSimulatePublishedBench(program: Command): void {
  program
    .command("simulate-published")
    .description("GLM-130B on 4x3090, 8x2080ti and 8x3090 as simulated, beside the authors' figures.")
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(async ({ json, markdown }: { json?: boolean; markdown?: boolean }) => {
      const figures: PublishedFigures[] = [];
      for (const rig of Object.keys(publishedRows) as Rig[]) {
        for (const weights of formats)
          for (const kv of caches) figures.push(await figuresOf(rig, weights, kv));
        note(rig);
      }
      if (json === true) printJson({ name: "simulate-published", published: publishedRows, figures });
      else for (const table of tables(figures)) (markdown === true ? printMarkdown : printTable)(table);
    });
}

interface Named {
  name: string;
  flags: PrecisionFlags;
}

async function figuresOf(rig: Rig, weights: Named, kv: Named): Promise<PublishedFigures> {
  const model = await simulationModel("glm-130b", { ...weights.flags, ...kv.flags });
  const case_ = { rig, weights: weights.name, kv: kv.name };
  const none = { kvTokens: 0, encodeMs: [], single: 0, speculating: 0, aggregate: [] };
  try {
    const one = run(model, rig, 1, 16, decoded);
    return {
      ...case_,
      kvTokens: one.kv.tokens,
      encodeMs: prompts.map((tokens) => run(model, rig, 1, tokens, 2).ttftMs?.p50 ?? Number.NaN),
      single: 1_000 / one.itlMs!.mean,
      speculating: 1_000 / run(model, rig, 1, 16, decoded, { acceptance }).itlMs!.mean,
      aggregate: itlTargets.map((itlTargetMs) =>
        sequences.map((count) => {
          const { promptTokens, replyTokens } = shape;
          const { fullLoad, tokensPerSecond } = run(model, rig, count, promptTokens, replyTokens, {
            itlTargetMs,
          });
          return fullLoad?.tokensPerSecond ?? tokensPerSecond;
        }),
      ),
    };
  } catch (error) {
    return { ...case_, ...none, refused: (error as Error).message };
  }
}

/** Each client asks so often. */
const rounds = 4;

function run(
  model: SimulatedModel,
  rig: Rig,
  clients: number,
  promptTokens: number,
  replyTokens: number,
  changes: Partial<SimulationOptions> = {},
): SimulationFigures {
  const requests = clients === 1 ? 1 : rounds * clients;
  const of = { model, hardware: oneHost(parseGpus(rig)) };
  const options = closedOptions(of, { clients, requests, promptTokens, replyTokens });
  return simulate({ ...options, ...changes }).figures;
}

function tables(figures: readonly PublishedFigures[]): Table[] {
  const seconds = (ms: number | undefined) =>
    ms === undefined || Number.isNaN(ms) ? "-" : (ms / 1_000).toFixed(2);
  const rate = (tokens: number | undefined) => (tokens === undefined ? "-" : tokens.toFixed(1));
  const encoded = (rig: Rig, tokens: number): string => {
    const known: Record<number, number> = publishedRows[rig].encodeMs;
    return seconds(known[tokens === 2_000 ? 2_048 : tokens]);
  };
  return [
    {
      title:
        "GLM-130B INT4, one stream: time to the first token (s) and tokens/s over 512 tokens, simulated; " +
        `published: FasterTransformer, per row, tensor parallel. Guesses: speculation of which ${acceptance} hold`,
      head: [
        ...["cards", "weights", "KV", "KV tokens"],
        ...prompts.map((tokens) => `prompt ${tokens} (published)`),
        ...["tokens/s (published)", "with guesses"],
      ],
      rows: figures.map(({ rig, weights, kv, kvTokens, encodeMs, single, speculating, refused }) => [
        ...[rig, weights, kv, refused === undefined ? String(kvTokens) : "does not fit"],
        ...prompts.map((tokens, index) => `${seconds(encodeMs[index])} (${encoded(rig, tokens)})`),
        `${rate(single)} (${publishedRows[rig].decode})`,
        rate(speculating),
      ]),
    },
    ...itlTargets.map((itlTargetMs, target) => ({
      title:
        `The same, tokens/s of all sequences together with --itl-target-ms ${itlTargetMs}: ` +
        `prompts of ${shape.promptTokens}, replies of ${shape.replyTokens}`,
      head: ["cards", "weights", "KV", ...sequences.map((count) => `${count} sequences`)],
      rows: figures.map(({ rig, weights, kv, aggregate }) => [
        ...[rig, weights, kv],
        ...sequences.map((_, index) => rate(aggregate[target]?.[index])),
      ]),
    })),
  ];
}
