/**
 * Interactive requests beside a batch that never ends: what each costs the other. Promised: their TTFT at the 99th
 * percentile within 1.3 times that of running alone plus one step, and at least 90 % of the batch's throughput. Where
 * both do not hold at once, the rows show the frontier.
 */
import type { Command } from "commander";
import { simulationModel } from "../../cli/simulate/model.js";
import { oneHost, parseGpus } from "../../simulation/hardware/hardware.js";
import type { LoadPart } from "../../simulation/hardware/load.js";
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

const promised = { ttftRatio: 1.3, throughput: 0.9 };
/** Share of the capacity that interactive requests ask for. */
const interactiveShare = 0.5;
const shape = { promptTokens: 256, replyTokens: 128 };
const interactiveRequests = 300;
/** By default, and for each of them what makes the steps of the batch shorter. */
const batchClients = [8, 32, 64];
const defaults = { itlTargetMs: 200, prefillChunk: 256 };
const frontier = [
  { itlTargetMs: 50, prefillChunk: 256 },
  { itlTargetMs: 200, prefillChunk: 128 },
  { itlTargetMs: 200, prefillChunk: 64 },
  { itlTargetMs: 200, prefillChunk: 32 },
];
const frontierClients = 32;

const rigs = [
  { model: "glm-4-9b", gpus: "2x3090", flags: { quantization: "int4" } },
  { model: "glm-4.5-air", gpus: "4x3090", flags: { quantization: "int4", kv: "int8" } },
  { model: "glm-130b", gpus: "8x3090", flags: { quantization: "int4", kv: "int8" } },
] as const;

export interface MixedFigures {
  rig: string;
  clients: number;
  itlTargetMs: number;
  prefillChunk: number;
  /** Interactive requests per second. */
  perSecond: number;
  batchAlone: number;
  aloneMs: number;
  besideMs: number;
  stepMs: number;
  together: number;
  ttftHolds: boolean;
  throughputHolds: boolean;
}

export function addSimulateMixedBench(program: Command): void {
  program
    .command("simulate-mixed")
    .description(
      "Interactive requests beside an endless batch, simulated: TTFT and throughput, and their frontier.",
    )
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(async ({ json, markdown }: { json?: boolean; markdown?: boolean }) => {
      const figures: MixedFigures[] = [];
      for (const { model: name, gpus, flags } of rigs) {
        const model = await simulationModel(name, flags);
        for (const clients of batchClients) figures.push(mixed(model, gpus, clients, defaults));
        const reference = figures.findLast(({ clients }) => clients === frontierClients)!.batchAlone;
        for (const paces of frontier) figures.push(mixed(model, gpus, frontierClients, paces, reference));
        note(`${name} on ${gpus}`);
      }
      if (json === true) printJson({ name: "simulate-mixed", promised, figures });
      else (markdown === true ? printMarkdown : printTable)(table(figures));
    });
}

/**
 * @param reference Tokens per second of the batch alone with the defaults, where paces differ from them: what is
 *   given up for a shorter TTFT counts as well.
 */
export function mixed(
  model: SimulatedModel,
  gpus: string,
  clients: number,
  paces: typeof defaults,
  reference?: number,
): MixedFigures {
  const of = { model, hardware: oneHost(parseGpus(gpus)) };
  const base = closedOptions(of, { clients, requests: 6 * clients, ...shape });
  const run = (...load: LoadPart[]) =>
    simulate({ ...base, ...paces, load } satisfies SimulationOptions).figures;
  const [closed] = base.load as [LoadPart];
  const batch: LoadPart = { ...closed, interactiveShare: 0 };
  const alone = run(batch);
  const batchAlone = reference ?? rateOf(alone);
  const perSecond = (interactiveShare * batchAlone) / shape.replyTokens;
  const interactive: LoadPart = {
    ...closed,
    arrivals: { kind: "open", perSecond },
    requests: interactiveRequests,
  };
  const undisturbed = run(interactive);
  const beside = run(interactive, { ...batch, requests: 1_000_000, endless: true });
  const aloneMs = undisturbed.classes.interactive!.ttftMs!.p99;
  const besideMs = beside.classes.interactive!.ttftMs!.p99;
  // A step is on its way for as long as a token takes.
  const stepMs = alone.itlMs!.p50;
  const together = rateOf(beside);
  return {
    ...{ rig: `${model.title} on ${gpus}`, clients, ...paces, perSecond },
    ...{ batchAlone, aloneMs, besideMs, stepMs, together },
    ttftHolds: besideMs <= promised.ttftRatio * aloneMs + stepMs,
    throughputHolds: together >= promised.throughput * batchAlone,
  };
}

const rateOf = ({ fullLoad, tokensPerSecond }: SimulationFigures): number =>
  fullLoad?.tokensPerSecond ?? tokensPerSecond;

function table(figures: readonly MixedFigures[]): Table {
  const held = (holds: boolean) => (holds ? "yes" : "no");
  return {
    title:
      `Interactive requests at ${100 * interactiveShare} % of capacity beside an endless batch (prompts of ` +
      `${shape.promptTokens}, replies of ${shape.replyTokens}): p99 of TTFT within ${promised.ttftRatio} times alone plus ` +
      `a step, throughput at least ${100 * promised.throughput} % of the batch alone`,
    head: [
      ...[
        "cluster",
        "batch clients",
        "ITL target",
        "chunk",
        "requests/s",
        "batch alone (tokens/s)",
        "together",
      ],
      ...["kept", "TTFT p99 alone (ms)", "beside", "step", "holds"],
    ],
    rows: figures.map((each) => [
      each.rig,
      String(each.clients),
      `${each.itlTargetMs} ms`,
      String(each.prefillChunk),
      each.perSecond.toFixed(2),
      each.batchAlone.toFixed(1),
      each.together.toFixed(1),
      `${((100 * each.together) / each.batchAlone).toFixed(0)} %: ${held(each.throughputHolds)}`,
      each.aloneMs.toFixed(0),
      each.besideMs.toFixed(0),
      each.stepMs.toFixed(0),
      held(each.ttftHolds),
    ]),
  };
}
