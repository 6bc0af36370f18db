/** `glm-relay worker`: holds one stage of the model. */
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import type { Command } from "commander";
import {
  address,
  coreCount,
  device,
  freeMemoryBytes,
  integer,
  memoryShare,
  name,
  port,
  size,
  sizeOrNone,
} from "./options.js";
import { tellParent } from "./parent.js";
import { runService } from "./service.js";

interface Flags {
  coordinator: string;
  id?: string;
  listen: string;
  memory?: number;
  device: string;
  threads?: number;
  probePort?: number;
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
  program
    .command("worker")
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
      "--memory <size>",
      "memory for weights and KV cache, like 4GiB (default: 80 % of what is free)",
      size,
    )
    .option("--device <device>", deviceHelp, device, "cpu")
    .option("--threads <t>", "compute threads (default: one per core)", threads)
    .option(
      "--probe-port <port>",
      "serves /livez, /readyz and /metrics on loopback, 0 picks a free one",
      port,
    )
    .option("--data <dir>", "keeps packed weights in DIR/weights, from which the next start maps them")
    .option("--cache-bytes <size>", cacheBytesHelp, sizeOrNone)
    .option("--verbose", verboseHelp)
    .action(run);
}

async function run(flags: Flags): Promise<void> {
  await runService(
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
        memoryBytes: flags.memory ?? Math.floor(freeMemoryBytes() * memoryShare),
        device: flags.device,
        gpuMemoryBytes:
          flags.memory === undefined ? (freeBytes) => Math.floor(freeBytes * memoryShare) : undefined,
        threads: flags.threads ?? coreCount(),
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
  );
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
