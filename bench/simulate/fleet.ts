/**
 * A thousand simulated workers: pipelines of seventy stages, and ten thousand requests at once. What the coordinator
 * and the simulator cost per step, and whether the stages are busy.
 */
import { type Command, Option } from "commander";
import { integer } from "../../cli/options.js";
import { simulationModel } from "../../cli/simulate/model.js";
import { type PublishedName, publishedNames } from "../../models/published.js";
import { devices } from "../../simulation/hardware/devices.js";
import { oneHost } from "../../simulation/hardware/hardware.js";
import { simulate } from "../../simulation/hardware/simulate.js";
import { cpuShares } from "../cpu-shares.js";
import { printJson } from "../options.js";
import { printMarkdown, printTable } from "../report.js";
import { closedOptions } from "./prediction.js";

/** Built-in functions belong to their callers, and so do common/ and proto/. */
function partOf(file: string): string | null {
  if (file.startsWith("coordinator/scheduler/")) return "scheduler";
  if (file.startsWith("coordinator/")) return "coordinator";
  return file.startsWith("simulation/") ? "simulation" : null;
}

interface Flags {
  model: PublishedName;
  workers: number;
  stages: number;
  requests: number;
  replyTokens: number;
  json?: boolean;
  markdown?: boolean;
}

export function addSimulateFleetBench(program: Command): void {
  program
    .command("simulate-fleet")
    .description("A thousand simulated workers in pipelines of seventy stages, with ten thousand requests.")
    .addOption(
      new Option("--model <name>", "with a layer for each stage").choices(publishedNames).default("glm-4.5"),
    )
    .option("--workers <n>", "each a 3090", integer(1, 1_024), 1_000)
    .option("--stages <n>", "of each pipeline", integer(1, 70), 70)
    .option("--requests <n>", "all at once", integer(1, 10_000), 10_000)
    .option("--reply-tokens <n>", "of each", integer(1, 1_000), 64)
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(run);
}

async function run({
  model: name,
  workers,
  stages,
  requests,
  replyTokens,
  json,
  markdown,
}: Flags): Promise<void> {
  const model = await simulationModel(name, { quantization: "int4" });
  const pipelines = Math.floor(workers / stages);
  const card = devices.get("3090")!;
  const hardware = oneHost(
    Array.from({ length: workers }, () => card),
    pipelines,
    stages,
  );
  const load = { clients: requests, requests, promptTokens: 32, replyTokens };
  const [cpu, began] = [process.cpuUsage(), performance.now()];
  const { result: simulated, us } = await cpuShares(
    () => simulate(closedOptions({ model, hardware }, load)),
    partOf,
  );
  const { figures } = simulated;
  const { user, system } = process.cpuUsage(cpu);
  const wallS = (performance.now() - began) / 1_000;
  const utilisation = Math.max(...figures.stages.map((stage) => stage.utilisation));
  const result = {
    ...{ model: name, workers, pipelines, stages, requests, replyTokens, answered: figures.requests, wallS },
    ...{ virtualS: figures.seconds, steps: figures.steps, rowsPerStep: figures.rowsPerStep },
    cpuUsPerStep: (user + system) / figures.steps,
    schedulerUsPerStep: (us.get("scheduler") ?? 0) / figures.steps,
    coordinatorUsPerStep: ((us.get("scheduler") ?? 0) + (us.get("coordinator") ?? 0)) / figures.steps,
    cpuUsPerStageStep: (user + system) / (figures.steps * stages),
    ...{
      tokensPerSecond: figures.tokensPerSecond,
      microBatches: figures.microBatches / pipelines,
      utilisation,
    },
  };
  if (json === true) {
    printJson({ name: "simulate-fleet", ...result });
    return;
  }
  (markdown === true ? printMarkdown : printTable)({
    title: `${workers} workers in ${pipelines} pipelines of ${stages} stages, ${requests} requests at once (${model.title}, int4)`,
    head: ["what", "figure"],
    rows: [
      ["answered", String(result.answered)],
      ["simulated time", `${result.virtualS.toFixed(1)} s`],
      ["real time", `${wallS.toFixed(1)} s`],
      ["steps", `${result.steps}, ${result.rowsPerStep.toFixed(1)} rows each`],
      ["CPU per step, core and simulator", `${result.cpuUsPerStep.toFixed(0)} us`],
      ["of it the coordinator's core", `${result.coordinatorUsPerStep.toFixed(0)} us`],
      ["of that the scheduler", `${result.schedulerUsPerStep.toFixed(0)} us`],
      ["the same per stage that a step passes", `${result.cpuUsPerStageStep.toFixed(2)} us`],
      ["throughput", `${result.tokensPerSecond.toFixed(0)} tokens/s`],
      ["micro-batches in flight per pipeline", result.microBatches.toFixed(1)],
      ["busiest stage", `${(100 * utilisation).toFixed(1)} %`],
    ],
  });
}
