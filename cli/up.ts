/** `glm-relay up`: everything on this machine, supervised until Ctrl-C. */
import type { Command } from "commander";
import { LocalCluster, type LocalClusterOptions, requireProcessors } from "./cluster.js";
import { ConfigurableCommand } from "./configuration/command.js";
import {
  addPipelinesOption,
  addRecoveryOption,
  addRedisPasswordOption,
  addSchedulingOptions,
  grpcPortHelp,
  stages,
} from "./coordinator.js";
import { addFilesOptions } from "./files-options.js";
import { devices } from "./gpus.js";
import { addLayersOption, requireRangePerStage } from "./layers.js";
import { addModelOptions } from "./model-options.js";
import { port, redisUrl, size, sizeOrNone } from "./options.js";
import { addPrecisionOptions, quantizationOf } from "./precision.js";
import { listenForStop } from "./signals.js";
import { StatusLine } from "./status-line.js";
import { addWebhookOptions, requireUse } from "./webhooks.js";
import { cacheBytesHelp, threads, verboseHelp } from "./worker.js";

const devicesHelp =
  "cpu; cuda: worker i on GPU i modulo their number; cuda:N: all on that one; auto: cuda where there is a GPU, else cpu";

/** In a log, how far the loading is stands once in so long. */
export const statusLogMs = 5_000;

export function addUpCommand(program: Command): void {
  const command = ConfigurableCommand.addTo(program, "up")
    .description(
      "Runs everything on this machine: Redis, a coordinator and one worker per stage of each pipeline.",
    )
    .requiredOption("--model <dir>", "directory of the model")
    .requiredOption("--stages <n>", "workers that share the model's layers", stages);
  addRedisPasswordOption(command);
  addWebhookOptions(command);
  addSchedulingOptions(
    addRecoveryOption(addPrecisionOptions(addModelOptions(addLayersOption(addPipelinesOption(command))))),
  );
  addFilesOptions(command)
    .option("--threads-per-worker <t>", "compute threads of each worker (default: cores / workers)", threads)
    .option("--pin-threads", "each compute thread stays on a processor of its own")
    .option(
      "--memory-per-worker <size>",
      "memory of each worker, like 4GiB (default: 80 % of what is free, of a GPU 90 % / workers on it)",
      size,
    )
    .option("--device <device>", devicesHelp, devices, "cpu")
    .option("--port <port>", "port of the HTTP API on loopback, 0 picks a free one", port, 8000)
    .option("--grpc-port <port>", grpcPortHelp, port)
    .option("--redis <url>", "Redis to use (default: REDIS_URL, else one of its own)", redisUrl)
    .option(
      "--data <dir>",
      "keeps Redis data, files, batches, packed weights and logs (default: a fresh one without weights, removed at a clean end)",
    )
    .option("--cache-bytes <size>", cacheBytesHelp, sizeOrNone)
    .option("--verbose", verboseHelp)
    .action(run);
}

async function run(options: LocalClusterOptions): Promise<void> {
  // A mistake in the flags is told before anything starts.
  quantizationOf(options);
  requireRangePerStage(options);
  requireUse(options, true);
  requireProcessors(options);
  const cluster = new LocalCluster(options, new StatusLine(process.stderr, statusLogMs));
  await serve(cluster, async (url) => {
    process.stdout.write(`ready ${url}\n`);
    return true;
  });
}

/**
 * Starts a cluster, runs `whenReady` and serves until a signal; ends earlier when that answers false.
 * Ends the process with status 0 after a clean end; a second signal kills everything and ends with 1.
 * @throws What the start or `whenReady` throws, after everything has ended.
 */
export async function serve(
  cluster: LocalCluster,
  whenReady: (url: string) => Promise<boolean>,
): Promise<never> {
  // Whoever reads our output may leave before we do; that must not end the service.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined);
  const stop = listenForStop(() => {
    cluster.kill();
    process.exit(1);
  });
  try {
    const goOn = await Promise.race([cluster.start().then(whenReady), stop.requested]);
    const signal = goOn === true ? await stop.requested : goOn;
    if (typeof signal === "string") process.stderr.write(`${signal}: draining and ending\n`);
  } catch (error) {
    await cluster.stop(false);
    throw error;
  }
  await cluster.stop(true);
  process.exit(0);
}
