/** `glm-relay worker`: holds one stage of the model. */
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import type { Command } from "commander";
import { ConfigurableCommand } from "./configuration/command.js";
import { CommandError, exitStatus } from "./errors.js";
import {
  address,
  allowedCpus,
  coreCount,
  cpuList,
  device,
  freeMemoryBytes,
  gpuMemoryShare,
  integer,
  memoryShare,
  name,
  size,
  sizeOrNone,
} from "./options.js";
import { tellParent } from "./parent.js";
import { addProcessOptions, type ProcessFlags, requireProbePort } from "./process-options.js";
import { runService } from "./service.js";

interface Flags extends ProcessFlags {
  coordinator: string;
  id?: string;
  listen: string;
  advertise?: string;
  memory?: number;
  device: string;
  threads?: number;
  cpus?: number[];
  data?: string;
  cacheBytes?: number;
  verbose?: boolean;
}

export const threads = integer(1, 1_024);
const deviceHelp =
  "cpu, a GPU as cuda:N, or auto: the first GPU if the CUDA library and a driver are there (docs/cuda.md)";
export const defaultCacheBytes = 64 * 2 ** 30;
export const cacheBytesHelp =
  "most bytes of packed weights to keep under --data, like 64GiB (default), 0 keeps none";
export const verboseHelp = "tells how far every matrix that is rounded on loading is from the stored one";

export function addWorkerCommand(program: Command): void {
  const command = ConfigurableCommand.addTo(program, "worker")
    .description("Runs one worker: it joins a coordinator and computes the layers it is given.")
    .requiredOption("--coordinator <host:port>", "the coordinator's --cluster-listen address", address)
    .option("--id <name>", "name of this worker (default: host name and process id)", name)
    .option(
      "--listen <host:port>",
      "where the next stage connects, port 0 picks a free one",
      address,
      "127.0.0.1:0",
    )
    .option(
      "--advertise <host:port>",
      "where others reach that, port 0 for the one that is listened on (default: where it listens)",
      address,
    )
    .option(
      "--memory <size>",
      "memory for weights and KV cache, like 4GiB (default: 80 % of what is free, of a GPU 90 %)",
      size,
    )
    .option("--device <device>", deviceHelp, device, "cpu")
    .option("--threads <t>", "compute threads (default: one per core, or one for each of --cpus)", threads)
    .option(
      "--cpus <list>",
      "processors that the compute threads stay on, one each, like 0-3,8 (default: the system moves them)",
      cpuList,
    )
    .option("--data <dir>", "keeps packed weights in DIR/weights, from which the next start maps them")
    .option("--cache-bytes <size>", cacheBytesHelp, sizeOrNone)
    .option("--verbose", verboseHelp);
  addProcessOptions(command, "it goes on while it is needed").action(run);
}

async function run(flags: Flags): Promise<void> {
  requireProbePort(flags);
  requireCpus(flags);
  await runService(
    "worker",
    async () => {
      const [{ startWorker }, { createLogger }] = await Promise.all([
        import("../worker/worker.js"),
        import("../common/log.js"),
      ]);
      const log = createLogger("worker");
      return startWorker({
        id: flags.id ?? `${hostname()}-${process.pid}`,
        coordinator: flags.coordinator,
        listen: flags.listen,
        advertise: flags.advertise,
        insecureWorkers: flags.insecureWorkers,
        drainTimeout: flags.drainTimeout,
        probeHost: flags.probeHost,
        memoryBytes: flags.memory ?? Math.floor(freeMemoryBytes() * memoryShare),
        device: flags.device,
        gpuMemoryBytes:
          flags.memory === undefined ? (freeBytes) => Math.floor(freeBytes * gpuMemoryShare) : undefined,
        threads: flags.threads ?? flags.cpus?.length ?? coreCount(),
        cpus: flags.cpus ?? null,
        probePort: flags.probePort,
        weightCache: weightCacheOf(flags),
        log,
        onRounded: flags.verbose
          ? (roundings) => {
              const lines = roundingLines(roundings);
              for (const line of lines) log.info(line);
              tellParent({ type: "rounded", lines });
            }
          : undefined,
      });
    },
    () => undefined,
    flags.drainTimeout,
  );
}

/** Told before the worker joins; the engine would tell it when it loads. */
function requireCpus({ cpus, threads }: Flags): void {
  if (cpus === undefined) return;
  const refuse = (what: string) => {
    throw new CommandError(
      `option '--cpus <list>' argument '${cpus}' ${what}`,
      "invalid_configuration",
      exitStatus.badUsage,
    );
  };
  if (threads !== undefined && threads !== cpus.length)
    refuse(`is ${cpus.length} processors: expected one for each of ${threads} threads`);
  const allowed = allowedCpus();
  const missing = cpus.filter((cpu) => !allowed.includes(cpu));
  if (missing.length > 0) refuse(`names ${missing}: this process may use ${allowed}`);
}

function weightCacheOf({ data, cacheBytes = defaultCacheBytes }: Flags) {
  if (data === undefined || cacheBytes === 0) return null;
  return { directory: join(resolve(data), "weights"), maxBytes: cacheBytes };
}

interface Rounding {
  tensor: string;
  relativeError: number;
}

/** Relative: the root mean square of the errors over that of the weights. */
function roundingLines(roundings: readonly Rounding[]): string[] {
  return roundings.map(
    ({ tensor, relativeError }) => `${tensor}: relative error ${(100 * relativeError).toFixed(3)} %`,
  );
}
