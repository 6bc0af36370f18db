/**
 * The simulator against reality: clusters of real processes under loads, and what `glm-relay simulate` predicts of
 * them. First stages that only sleep, so that nothing but the schedule and the hops is predicted; then real kernels,
 * whose times are measured first (stage-profile.ts). Nothing else may run beside it.
 */
import { loadavg } from "node:os";
import type { Command } from "commander";
import { fetchCluster } from "../../cli/api.js";
import { CommandError } from "../../cli/errors.js";
import { integer } from "../../cli/options.js";
import { simulationModel } from "../../cli/simulate/model.js";
import { defaultAssumptions, localLink, networkLink } from "../../simulation/hardware/assumptions.js";
import { type Device, devices } from "../../simulation/hardware/devices.js";
import type { Hardware } from "../../simulation/hardware/hardware.js";
import { ProfileTimer } from "../../simulation/hardware/profile.js";
import { NullCluster, nullModel } from "../null/cluster.js";
import { printJson, scratchModel, withoutGuesses } from "../options.js";
import { note } from "../progress.js";
import { printMarkdown, printTable, type Table } from "../report.js";
import { measureProfile } from "../stage-profile.js";
import { withCluster } from "../up.js";
import { type ClosedLoad, type LoadFigures, runClosedLoad } from "./closed-load.js";
import { type Predicted, predict } from "./prediction.js";

/** What is promised of a prediction: its share of error. */
export const promised = { throughput: 0.1, latency: 0.15 };

/** Above it other programs take part of what is measured. */
const quietLoad = 3;

const sleepingStages = [
  { baseMs: 12, rowMs: 0.4 },
  { baseMs: 16, rowMs: 0.5 },
  { baseMs: 12, rowMs: 0.4 },
  { baseMs: 14, rowMs: 0.5 },
];
/** Before any is measured. */
const firstLoad: ClosedLoad = { clients: 1, requests: 4, promptTokens: 64, replyTokens: 48 };
const sleepingLoads: ClosedLoad[] = [
  firstLoad,
  { clients: 8, requests: 32, promptTokens: 64, replyTokens: 64 },
  { clients: 24, requests: 96, promptTokens: 128, replyTokens: 64 },
];
const kernelLoads: ClosedLoad[] = [
  firstLoad,
  { clients: 4, requests: 16, promptTokens: 64, replyTokens: 48 },
  { clients: 12, requests: 36, promptTokens: 128, replyTokens: 48 },
];
const kernelStages = 2;

export interface Compared {
  cluster: string;
  load: ClosedLoad;
  measured: LoadFigures;
  predicted: LoadFigures;
}

interface Flags {
  layers: number;
  rounds: number;
  only?: "sleep" | "kernels";
  json?: boolean;
  markdown?: boolean;
}

export function addSimulateBench(program: Command): void {
  program
    .command("simulate")
    .description("Predictions of glm-relay simulate beside measured clusters of real processes.")
    .option("--layers <n>", "layers of the 6B-shaped model", integer(4, 28), 8)
    .option("--rounds <n>", "measurements of each point of the profile", integer(1, 100), 9)
    .option("--only <part>", "sleep or kernels")
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(run);
}

async function run(flags: Flags): Promise<void> {
  const [load] = loadavg() as [number];
  if (load > quietLoad)
    note(`the machine is busy (load ${load.toFixed(1)}): figures below are not to be quoted`);
  const compared = [
    ...(flags.only === "kernels" ? [] : await compareSleeping()),
    ...(flags.only === "sleep" ? [] : await compareKernels(flags)),
  ];
  if (flags.json === true) printJson({ name: "simulate", promised, load, compared });
  else (flags.markdown === true ? printMarkdown : printTable)(table(compared, load));
}

/** Workers of one host. @param shared Of their memory and cores. @param hopUs From one of them to the next. */
function hostOf(count: number, shared: Device["shared"], hopUs: number): Hardware {
  const device: Device = { ...devices.get("cpu")!, memoryBytes: 64 * 2 ** 30, shared };
  const withinHost = { ...localLink, latencyUs: hopUs };
  return {
    hosts: [{ name: "this machine", devices: Array.from({ length: count }, () => device) }],
    ...{ withinHost, betweenHosts: networkLink, pipelines: 1, stages: null },
  };
}

/**
 * What a hop takes, by the coordinator's own figure after a load of one client. Between long steps it is more than
 * between short ones (bench hop): a process that wakes finds its caches filled by the kernels.
 */
async function hopUs(url: string, stages: number): Promise<number> {
  await runClosedLoad(url, firstLoad);
  const { timing } = await fetchCluster(url);
  if (timing.hopMs === null) throw new CommandError("the coordinator has not measured its hops");
  const hops = 1_000 * timing.hopMs - defaultAssumptions.coordinatorStepUs;
  const us = Math.max(0, hops) / (stages + 1);
  note(`a hop takes ${Math.round(us)} us`);
  return us;
}

async function compareSleeping(): Promise<Compared[]> {
  const count = sleepingStages.length;
  const cluster = await NullCluster.start({ stages: count, pretences: sleepingStages });
  try {
    const predicted: Predicted = {
      model: await simulationModel(nullModel, {}),
      hardware: hostOf(count, null, await hopUs(cluster.url, count)),
      timer: ({ worker }) => {
        const { baseMs, rowMs } = sleepingStages[worker.index]!;
        return { stepMs: ({ rows }) => baseMs + rowMs * rows };
      },
    };
    return await compare("4 stages that sleep", cluster.url, sleepingLoads, predicted);
  } finally {
    await cluster.stop();
  }
}

async function compareKernels({ layers, rounds }: Flags): Promise<Compared[]> {
  const quantization = { quantization: "int4" } as const;
  const like = "chatglm2-6b";
  const name = `${like}-shaped, ${layers} layers`;
  const directory = await scratchModel({ like, layers, context: 1_024 });
  const profile = await measureProfile(directory, name, { threads: 1, rounds, ...quantization });
  const model = await simulationModel(directory, quantization);
  const flags = ["--quantization", "int4", "--threads-per-worker", "1", ...withoutGuesses];
  return withCluster({ model: directory, stages: kernelStages, flags }, async ({ url }) => {
    const predicted: Predicted = {
      model,
      hardware: hostOf(kernelStages, devices.get("cpu")!.shared, await hopUs(url, kernelStages)),
      timer: (stage) => new ProfileTimer(profile, stage.layers, layers),
    };
    return compare(`${kernelStages} stages, ${name}, int4`, url, kernelLoads, predicted);
  });
}

async function compare(
  cluster: string,
  url: string,
  loads: readonly ClosedLoad[],
  predicted: Predicted,
): Promise<Compared[]> {
  const compared: Compared[] = [];
  // The first one, to begin with.
  const earlier = [loads[0]!];
  for (const load of loads) {
    const measured = await runClosedLoad(url, load);
    compared.push({ cluster, load, measured, predicted: predict(predicted, load, earlier) });
    earlier.push(load);
    note(`${cluster}, ${load.clients} clients: ${measured.tokensPerSecond.toFixed(1)} tokens/s`);
  }
  return compared;
}

function table(compared: readonly Compared[], load: number): Table {
  const pair = (measured: number, predicted: number) =>
    `${measured.toFixed(1)} / ${predicted.toFixed(1)} (${signed(predicted / measured - 1)})`;
  return {
    title:
      `Measured / predicted, at a load of ${load.toFixed(1)} before; promised: throughput within ` +
      `${100 * promised.throughput} %, medians of TTFT and ITL within ${100 * promised.latency} %`,
    head: ["cluster", "clients", "prompt", "tokens/s", "TTFT p50 (ms)", "ITL p50 (ms)"],
    rows: compared.map(({ cluster, load: of, measured, predicted }) => [
      cluster,
      String(of.clients),
      String(of.promptTokens),
      pair(measured.tokensPerSecond, predicted.tokensPerSecond),
      pair(measured.ttftMs, predicted.ttftMs),
      pair(measured.itlMs, predicted.itlMs),
    ]),
  };
}

const signed = (share: number): string => `${share < 0 ? "-" : "+"}${Math.abs(100 * share).toFixed(1)} %`;
