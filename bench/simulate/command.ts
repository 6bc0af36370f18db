/**
 * The simulator against reality: clusters of real processes under loads, and what `glm-relay simulate` predicts of
 * them. First stages that only sleep, so that nothing but the schedule and the hops is predicted; then real kernels,
 * whose times are measured first (stage-profile.ts). Nothing else may run beside it.
 */
import { availableParallelism, cpus, loadavg } from "node:os";
import type { Command } from "commander";
import { fetchCluster } from "../../cli/api.js";
import { CommandError } from "../../cli/errors.js";
import { integer } from "../../cli/options.js";
import { simulationModel } from "../../cli/simulate/model.js";
import {
  type Assumptions,
  defaultAssumptions,
  localLink,
  networkLink,
} from "../../simulation/hardware/assumptions.js";
import { type Device, devices } from "../../simulation/hardware/devices.js";
import type { Hardware } from "../../simulation/hardware/hardware.js";
import { ProfileTimer } from "../../simulation/hardware/profile.js";
import { NullCluster, nullModel } from "../null/cluster.js";
import { printJson, scratchModel, withoutGuesses } from "../options.js";
import { note } from "../progress.js";
import { percentile, printMarkdown, printTable, type Table } from "../report.js";
import { ProfileMeasurement } from "../stage-profile.js";
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
  turns: number;
  only?: "sleep" | "kernels";
  json?: boolean;
  markdown?: boolean;
}

export function addSimulateBench(program: Command): void {
  program
    .command("simulate")
    .description("Predictions of glm-relay simulate beside measured clusters of real processes.")
    .option("--layers <n>", "layers of the 6B-shaped model", integer(4, 28), 8)
    .option(
      "--turns <n>",
      "measurements of the profile before, between and after the loads",
      integer(1, 20),
      3,
    )
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

interface Besides {
  /** From one process to the next. */
  hopUs: number;
  assumptions: Assumptions;
}

/**
 * What a step takes besides computing, of a load of one client. A hop: by the coordinator's own figure; between long
 * steps it is more than between short ones (bench hop), since a process that wakes finds its caches filled by the
 * kernels. Answers: what all processors were busy for, but for computing and hops.
 */
async function measureBesides(url: string, stages: number): Promise<Besides> {
  const before = { cpuMs: busyCpuMs(), ...computedOf(await fetchCluster(url)) };
  await runClosedLoad(url, firstLoad);
  const cluster = await fetchCluster(url);
  const after = { cpuMs: busyCpuMs(), ...computedOf(cluster) };
  const { hopMs } = cluster.timing;
  if (hopMs === null) throw new CommandError("the coordinator has not measured its hops");
  const hopsUs = Math.max(0, 1_000 * hopMs - defaultAssumptions.coordinatorStepUs);
  const cpuMs = after.cpuMs - before.cpuMs - (after.computedMs - before.computedMs);
  const answersUs = Math.max(0, (1_000 * cpuMs) / (after.steps - before.steps) - hopsUs);
  const hopUs = hopsUs / (stages + 1);
  note(`a hop takes ${Math.round(hopUs)} us, answers ${Math.round(answersUs)} us per step`);
  return { hopUs, assumptions: { ...defaultAssumptions, answersUs } };
}

/** Of this machine since it started. */
function busyCpuMs(): number {
  return cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0);
}

function computedOf({ stages }: Awaited<ReturnType<typeof fetchCluster>>): {
  computedMs: number;
  steps: number;
} {
  const computedMs = stages.reduce((sum, { busySeconds }) => sum + 1_000 * busySeconds, 0);
  return { computedMs, steps: Math.max(...stages.map(({ steps }) => steps)) };
}

async function compareSleeping(): Promise<Compared[]> {
  const count = sleepingStages.length;
  const cluster = await NullCluster.start({ stages: count, pretences: sleepingStages });
  try {
    const { hopUs } = await measureBesides(cluster.url, count);
    const predicted: Predicted = {
      model: await simulationModel(nullModel, {}),
      hardware: hostOf(count, null, hopUs),
      timer: ({ worker }) => {
        const { baseMs, rowMs } = sleepingStages[worker.index]!;
        return {
          cost: ({ rows }) => ({
            ms: baseMs + rowMs * rows,
            share: { memory: 0, arithmetic: 0, crowding: 1 },
          }),
        };
      },
    };
    return await compare("4 stages that sleep", cluster.url, sleepingLoads, () => predicted, {
      turns: 1,
      before: async () => {},
    });
  } finally {
    await cluster.stop();
  }
}

/** A machine's speed changes from one minute to the next: the profile and the loads are measured in turns. */
async function compareKernels({ layers, turns }: Flags): Promise<Compared[]> {
  const quantization = { quantization: "int4" } as const;
  const like = "chatglm2-6b";
  const name = `${like}-shaped, ${layers} layers`;
  const directory = await scratchModel({ like, layers, context: 1_024 });
  const model = await simulationModel(directory, quantization);
  const measurement = await ProfileMeasurement.open(directory, name, { threads: 1, ...quantization });
  const flags = ["--quantization", "int4", "--threads-per-worker", "1", ...withoutGuesses];
  try {
    return await withCluster({ model: directory, stages: kernelStages, flags }, async ({ url }) => {
      const { hopUs, assumptions } = await measureBesides(url, kernelStages);
      const shared = { ...devices.get("cpu")!.shared!, cores: availableParallelism() };
      const predicted = (): Predicted => {
        const profile = measurement.profile();
        return {
          model,
          hardware: hostOf(kernelStages, shared, hopUs),
          assumptions,
          timer: (stage) => new ProfileTimer(profile, stage.layers, model),
        };
      };
      return compare(`${kernelStages} stages, ${name}, int4`, url, kernelLoads, predicted, {
        turns,
        before: () => measurement.round(),
      });
    });
  } finally {
    await measurement.close();
  }
}

/**
 * Medians over the turns.
 * @param predicted What is known when all has been measured.
 */
async function compare(
  cluster: string,
  url: string,
  loads: readonly ClosedLoad[],
  predicted: () => Predicted,
  { turns, before }: { turns: number; before: () => Promise<void> },
): Promise<Compared[]> {
  const measured: LoadFigures[][] = loads.map(() => []);
  for (let turn = 1; turn <= turns; turn++) {
    await before();
    for (const [index, load] of loads.entries()) {
      const figures = await runClosedLoad(url, load);
      const turnOf = turns > 1 ? `turn ${turn}, ` : "";
      note(`${cluster}, ${turnOf}${load.clients} clients: ${figures.tokensPerSecond.toFixed(1)} tokens/s`);
      measured[index]!.push(figures);
    }
  }
  const known = predicted();
  // A load comes after all of an earlier turn, if there is one, and after the one by which hops were measured.
  const earlier = turns > 1 ? loads : [loads[0]!];
  return loads.map((load, index) => ({
    ...{ cluster, load, measured: medians(measured[index]!) },
    predicted: predict(known, load, [...earlier, ...loads.slice(0, index)]),
  }));
}

function medians(all: readonly LoadFigures[]): LoadFigures {
  const median = (of: keyof LoadFigures) =>
    percentile(
      all.map((figures) => figures[of]),
      50,
    );
  return { tokensPerSecond: median("tokensPerSecond"), ttftMs: median("ttftMs"), itlMs: median("itlMs") };
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
