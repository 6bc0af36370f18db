/** The result of a simulation as text and as JSON. */

import { formatName } from "../../models/quantization.js";
import type { Assumptions } from "../../simulation/hardware/assumptions.js";
import type { Length, LoadPart } from "../../simulation/hardware/load.js";
import type { SimulatedModel } from "../../simulation/hardware/model-work.js";
import type { Percentiles } from "../../simulation/hardware/samples.js";
import type { Simulation, SimulationFigures, SimulationOptions } from "../../simulation/hardware/simulate.js";
import { formatBytes, formatCount, formatTable } from "../text.js";
import { bytesPerToken } from "./load.js";

export interface Report {
  model: SimulatedModel;
  options: SimulationOptions;
  load: LoadPart;
  simulation: Simulation;
  /** Of a profile that took the place of data sheets; null: none did. */
  profile: string | null;
}

export function simulationJson({ model, options, load, simulation, profile }: Report): string {
  const { hardware, assumptions, seed, acceptance, itlTargetMs, prefillChunk, kills } = options;
  const { sizes: _, ...described } = load;
  return `${JSON.stringify(
    {
      model: { title: model.title, precision: model.precision, contextLength: model.contextLength },
      hardware,
      assumptions,
      profile,
      options: { seed, acceptance, itlTargetMs, prefillChunk, kills },
      load: described,
      ...simulation.figures,
    },
    null,
    2,
  )}\n`;
}

export async function simulationText(report: Report): Promise<string> {
  const { figures } = report.simulation;
  const lines = [
    `model        ${report.model.title}, ${precisionText(report.model)}`,
    `hardware     ${hardwareText(report.options)}`,
    `load         ${loadText(report)}`,
    ...outcomeLines(figures),
    await stageTable(figures),
    ...(await classTable(figures)),
    ...assumptionLines(report),
  ];
  return `${lines.join("\n")}\n`;
}

function precisionText({ precision }: SimulatedModel): string {
  const { dtype, kvType, weights, head } = precision;
  return `${dtype}, weights ${formatName(weights)}, head ${formatName(head)}, KV cache ${kvType}`;
}

function hardwareText({ hardware }: SimulationOptions): string {
  const hosts = hardware.hosts.map(({ name, devices }) => {
    const counts = new Map<string, number>();
    for (const device of devices) counts.set(device.name, (counts.get(device.name) ?? 0) + 1);
    return `${[...counts].map(([of, count]) => `${count}x${of}`).join(" + ")} in ${name}`;
  });
  const shown = hosts.slice(0, 4).join(", ");
  const more = hosts.length > 4 ? ` and ${hosts.length - 4} hosts more` : "";
  return `${shown}${more}; ${count(hardware.pipelines, "pipeline")}`;
}

function loadText({ load, options }: Report): string {
  const { arrivals, requests, prompt, reply, sizes: known } = load;
  const who =
    arrivals.kind === "closed"
      ? count(arrivals.clients, "client")
      : `${arrivals.perSecond} requests per second`;
  const sizes =
    known === undefined
      ? `prompts of ${lengthText(prompt)}, replies of ${lengthText(reply)} tokens`
      : "sizes of a file";
  const guesses = options.acceptance === null ? "" : `, guesses hold with ${options.acceptance}`;
  return `${who}, ${formatCount(requests)} requests, ${sizes}${guesses}`;
}

function lengthText(length: Length): string {
  if (length.kind === "fixed") return String(length.tokens);
  return length.kind === "uniform" ? `${length.least} to ${length.most}` : `${length.mean} (exponential)`;
}

function outcomeLines(figures: SimulationFigures): string[] {
  const { fullLoad, kv, recoveries, draftedTokens, acceptedTokens } = figures;
  const full =
    fullLoad === null
      ? ""
      : `; ${rate(fullLoad.tokensPerSecond)} in the ${fullLoad.seconds.toFixed(1)} s of full load`;
  const failed = figures.failed === 0 ? "" : `, ${figures.failed} failed: ${figures.failure}`;
  return [
    `requests     ${formatCount(figures.requests)} answered in ${figures.seconds.toFixed(1)} s${failed}` +
      (figures.cutOff ? "; the time was over before all were" : ""),
    `throughput   ${rate(figures.tokensPerSecond)}${full}`,
    `TTFT         ${percentilesText(figures.ttftMs)}`,
    `ITL          ${percentilesText(figures.itlMs)}`,
    `stages       ${percent(figures.utilisation)} busy in the mean, ${percent(figures.bubbleRatio)} bubbles`,
    `steps        ${formatCount(figures.steps)}, ${figures.rowsPerStep.toFixed(1)} rows each, ` +
      `${figures.microBatches.toFixed(1)} micro-batches in flight in the mean`,
    `KV cache     ${formatCount(kv.tokens)} tokens; ${percent(kv.mean)} used in the mean, ${percent(kv.most)} at most`,
    `preemptions  ${figures.preemptions}; ${formatCount(figures.replayedRows)} rows were built again`,
    ...(draftedTokens === 0
      ? []
      : [`speculation  ${formatCount(draftedTokens)} guessed, ${formatCount(acceptedTokens)} held`]),
    ...recoveries.map(({ reason, seconds }) => `recovery     ${seconds.toFixed(2)} s after ${reason}`),
  ];
}

/** Stages of the first pipelines; a cluster may have hundreds. */
const stagesShown = 80;

function stageTable({ stages }: SimulationFigures): Promise<string> {
  const several = stages.some(({ pipeline }) => pipeline > 0);
  return formatTable(
    ["stage", "worker", "device", "layers", "weights", "KV cache", "of", "busy"],
    stages
      .slice(0, stagesShown)
      .map(
        ({
          pipeline,
          stage,
          worker,
          device,
          layerBegin,
          layerEnd,
          weightBytes,
          kvBytes,
          memoryBytes,
          utilisation,
        }) => [
          several ? `${pipeline}.${stage}` : String(stage),
          worker,
          device,
          `${layerBegin}..${layerEnd - 1}`,
          formatBytes(weightBytes),
          formatBytes(kvBytes),
          formatBytes(memoryBytes),
          percent(utilisation),
        ],
      ),
  );
}

async function classTable({ classes }: SimulationFigures): Promise<string[]> {
  const all = Object.entries(classes);
  if (all.length < 2) return [];
  const rows = all.map(([name, { requests, tokens, ttftMs, itlMs }]) => [
    name,
    formatCount(requests),
    formatCount(tokens),
    ...[ttftMs, itlMs].flatMap((times) => [milliseconds(times?.p50), milliseconds(times?.p99)]),
  ]);
  const head = ["class", "requests", "tokens", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99"];
  return [await formatTable(head, rows)];
}

function assumptionLines({ options, load, profile }: Report): string[] {
  const a: Assumptions = options.assumptions;
  const { withinHost, betweenHosts } = options.hardware;
  const link = ({ latencyUs, bandwidth }: typeof withinHost) =>
    `${latencyUs} us + bytes at ${(bandwidth / 1e9).toFixed(2)} GB/s`;
  return [
    "assumed:",
    profile === null
      ? `  ${percent(a.bandwidthEfficiency)} of nominal bandwidth and ${percent(a.computeEfficiency)} of nominal arithmetic are reached`
      : `  stages take what was measured (${profile})`,
    ...(profile === null
      ? [`  ${a.layerOverheadUs} us per layer and ${a.stepOverheadUs} us per step beside that`]
      : []),
    `  a hop takes ${link(withinHost)} within a host, ${link(betweenHosts)} between hosts`,
    `  the coordinator takes ${a.coordinatorStepUs} us per step and ${a.coordinatorSequenceUs} us per sequence in it`,
    ...(options.hardware.hosts.some(({ devices }) => devices.some(({ shared }) => shared?.cores != null))
      ? [`  answers take ${a.answersUs} us per step of cores that compute`]
      : []),
    `  weights are loaded at ${(a.loadBandwidth / 1e9).toFixed(1)} GB/s; the embedding of GPUs stays in the host's memory`,
    `  chunks of ${options.prefillChunk} prompt tokens at most, ${options.itlTargetMs} ms between tokens wanted, seed ${options.seed}`,
    ...(load.sizes === undefined
      ? []
      : [`  a token per ${bytesPerToken} bytes of text; replies are as long as max_tokens allows`]),
  ];
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const rate = (tokensPerSecond: number): string => `${tokensPerSecond.toFixed(1)} tokens/s`;
const count = (of: number, what: string): string => `${of} ${what}${of === 1 ? "" : "s"}`;

function milliseconds(ms: number | undefined): string {
  if (ms === undefined) return "-";
  return ms >= 10_000 ? `${(ms / 1_000).toFixed(1)} s` : `${ms.toFixed(ms < 100 ? 1 : 0)} ms`;
}

function percentilesText(times: Percentiles | null): string {
  if (times === null) return "none";
  const { p50, p90, p99, max } = times;
  return `p50 ${milliseconds(p50)}, p90 ${milliseconds(p90)}, p99 ${milliseconds(p99)}, most ${milliseconds(max)}`;
}
