/** `glm-relay simulate`: what a model would do on hardware that is described, under a load that is described. */
import { writeFileSync } from "node:fs";
import { type Command, Option } from "commander";
import { maxMicroBatchesInFlight, maxStepRows } from "../common/limits.js";
import { stages } from "./coordinator.js";
import { CommandError, exitStatus } from "./errors.js";
import { integer } from "./options.js";
import { addPrecisionOptions } from "./precision.js";
import {
  clientsDefault,
  openRequestsDefault,
  roundsPerClient,
  type SimulateFlags,
} from "./simulate/flags.js";
import { classMix, decimal, duration, durationOrNever, kill, length, span } from "./simulate/values.js";

const requestsMax = 1_000_000;
const clientsMax = 10_000;
const rateMax = 100_000;
const lowestEfficiency = 0.01;
/** As of the coordinator. */
const recoveryTimeoutMs = 600_000;

const examples = `
Examples:
  GLM-130B on four RTX 3090, eight clients that each ask again when answered:
    glm-relay simulate --model glm-130b --gpus 4x3090 --quantization int4 --kv int8 --concurrency 8
  Requests that come by themselves, with a picture of the first seconds:
    glm-relay simulate --model glm-4-9b --gpus 2x3090 --rate 4 --reply-tokens exp:256 --svg stages.svg
  How long a lost worker is missed:
    glm-relay simulate --model glm-130b --gpus 8x3090 --quantization int4 --kill worker2@30s --restart-after 5s
  Machines of your own (docs/simulation.md describes the file):
    glm-relay simulate --model glm-130b --hardware boxes.yaml --quantization int4 --json
`;

export function addSimulateCommand(program: Command): void {
  const command = program
    .command("simulate")
    .description(
      "Predicts throughput and latency on hardware that is not there: the real scheduler, simulated workers.",
    )
    .requiredOption("--model <name|dir>", "a published model such as glm-130b or glm-4-9b, or a directory")
    .option("--gpus <list>", "one host's processors, one worker each: 4x3090, or 4x3090,4x2080ti")
    .option("--hardware <file>", "YAML or JSON that describes hosts, processors and links")
    .option("--pipelines <n>", "pipelines that share the processors of --gpus (default: 1)", integer(1, 64))
    .option("--stages <n>", "of each pipeline; further processors are spares (default: no spares)", stages);
  addPrecisionOptions(command)
    .option("--rate <n>", "requests per second that come by themselves", decimal(0.001, rateMax))
    .option(
      "--concurrency <n>",
      `clients that each ask again when they are answered (default: ${clientsDefault})`,
      integer(1, clientsMax),
    )
    .option(
      "--requests <n>",
      `requests in all (default: ${roundsPerClient} per client, with --rate ${openRequestsDefault})`,
      integer(1, requestsMax),
    )
    .option("--prompt-tokens <n>", "N, LEAST..MOST or exp:MEAN (default: 512)", length)
    .addOption(
      new Option("--reply-tokens <n>", "N, LEAST..MOST or exp:MEAN")
        .argParser(length)
        .default({ kind: "fixed", tokens: 256 }, "256"),
    )
    .option(
      "--class <mix>",
      "interactive, batch, or interactive:SHARE of the requests (default: interactive; with --input batch)",
      classMix,
    )
    .option(
      "--input <file>",
      "sizes of the requests from a batch file; replies are as long as max_tokens, else as --reply-tokens",
    )
    .option(
      "--acceptance <share>",
      "speculation with guesses of which this share holds (default: no speculation)",
      decimal(0, 1),
    )
    .option("--itl-target-ms <ms>", "as of the coordinator", integer(1, 60_000), 200)
    .option("--prefill-chunk <tokens>", "as of the coordinator", integer(1, maxStepRows), 256)
    .option(
      "--micro-batches <m>",
      "as of the coordinator (default: by measured times)",
      integer(1, maxMicroBatchesInFlight),
    )
    .option("--kill <worker@time>", "the process of a worker dies, like worker2@30s (repeatable)", kill)
    .addOption(
      new Option("--restart-after <time>", "until a dead worker's process is there again; or never")
        .argParser(durationOrNever)
        .default(1_000, "1s"),
    )
    .option(
      "--bandwidth-efficiency <share>",
      "reached share of nominal memory bandwidth",
      decimal(lowestEfficiency, 1),
    )
    .option(
      "--compute-efficiency <share>",
      "reached share of nominal arithmetic",
      decimal(lowestEfficiency, 1),
    )
    .option("--profile <file>", "measured times of a real stage instead of data sheets (bench stage-profile)")
    .option("--seed <n>", "same seed, same output", integer(0, 2 ** 32 - 1), 1)
    .addOption(
      new Option("--limit <time>", "simulated time after which it ends though requests are open")
        .argParser(duration)
        .default(24 * 3_600_000, "24h"),
    )
    .option("--svg <file>", "writes a timeline of the stages")
    .addOption(
      new Option(
        "--svg-window <from..to>",
        "its span (default: the first 5 s; with --kill 10 s around the first)",
      ).argParser(span),
    )
    .option("--json", "print JSON")
    .addHelpText("after", examples)
    .action(run);
}

async function run(flags: SimulateFlags): Promise<void> {
  requireOneOf(flags, "gpus", "hardware");
  requireAtMostOneOf(flags, "rate", "concurrency");
  requireAtMostOneOf(flags, "input", "requests");
  requireAtMostOneOf(flags, "input", "promptTokens");
  const [
    { simulationModel },
    { hardwareOf },
    { loadOf },
    { simulate },
    { profileOf, profileTimer },
    { queueLimit },
  ] = await Promise.all([
    import("./simulate/model.js"),
    import("./simulate/hardware.js"),
    import("./simulate/load.js"),
    import("../simulation/hardware/simulate.js"),
    import("./simulate/profile.js"),
    import("../coordinator/core.js"),
  ]);
  const model = await simulationModel(flags.model, flags);
  const described = await hardwareOf(flags);
  const load = await loadOf(flags);
  const profile = flags.profile === undefined ? null : await profileOf(flags.profile, model);
  const kills = (flags.kill ?? []).map((each) => ({ ...each, backAfterMs: flags.restartAfter }));
  const options = {
    model,
    ...described,
    ...(profile === null ? {} : { timer: profileTimer(profile, model) }),
    load: [load],
    kills,
    seed: flags.seed,
    acceptance: flags.acceptance ?? null,
    itlTargetMs: flags.itlTargetMs,
    prefillChunk: flags.prefillChunk,
    microBatches: flags.microBatches ?? null,
    queueLimit,
    recoveryTimeoutMs,
    limitMs: flags.limit,
    timeline: flags.svgWindow ?? defaultWindow(kills[0]?.atMs ?? 0),
  };
  const simulation = simulate(options);
  if (flags.svg !== undefined) {
    const { timelineSvg } = await import("../simulation/hardware/svg.js");
    writeText(flags.svg, timelineSvg(simulation, model.title));
  }
  const { simulationJson, simulationText } = await import("./simulate/report.js");
  const report = { model, options, load, simulation, profile: profile?.what ?? null };
  process.stdout.write(flags.json === true ? simulationJson(report) : await simulationText(report));
}

/** @throws CommandError naming the file and why it cannot be written. */
function writeText(file: string, text: string): void {
  try {
    writeFileSync(file, text);
  } catch (error) {
    throw new CommandError(`${file} cannot be written: ${(error as NodeJS.ErrnoException).code}`);
  }
}

/** Time of the picture, and how much of it is in front of the failure. */
const windowMs = 5_000;
const beforeKillMs = 1_000;

function defaultWindow(killMs: number) {
  const fromMs = Math.max(0, killMs - beforeKillMs);
  return { fromMs, toMs: fromMs + (killMs > 0 ? 2 : 1) * windowMs };
}

type Name = "gpus" | "hardware" | "rate" | "concurrency" | "input" | "requests" | "promptTokens";

function requireOneOf(flags: SimulateFlags, one: Name, other: Name): void {
  requireAtMostOneOf(flags, one, other);
  if (flags[one] !== undefined || flags[other] !== undefined) return;
  throw usage(`expected one of ${named(one)} and ${named(other)}`);
}

function requireAtMostOneOf(flags: SimulateFlags, one: Name, other: Name): void {
  if (flags[one] === undefined || flags[other] === undefined) return;
  throw usage(`option '${named(one)}' stands beside ${named(other)}: expected one of the two`);
}

const named = (name: Name): string => (name === "promptTokens" ? "--prompt-tokens" : `--${name}`);

function usage(message: string): CommandError {
  return new CommandError(message, "invalid_configuration", exitStatus.badUsage);
}
