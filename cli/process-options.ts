/** Options that `coordinator` and `worker` share: how the process is reached, watched and ended. */
import type { Command } from "commander";
import { CommandError, exitStatus } from "./errors.js";
import { host, integer, port } from "./options.js";

/** Of the longest answers a slow cluster gives; Kubernetes' own limit has to be longer. */
const drainTimeoutMax = 24 * 3600;
const drainTimeoutDefault = 30;

export interface ProcessFlags {
  insecureWorkers?: boolean;
  drainTimeout: number;
  probePort?: number;
  probeHost?: string;
}

/** @param whatEnds What the process waits for after SIGTERM. */
export function addProcessOptions(command: Command, whatEnds: string): Command {
  return command
    .option(
      "--insecure-workers",
      "allows traffic between coordinator and workers beyond loopback, though it is neither encrypted nor authenticated",
    )
    .option(
      "--drain-timeout <seconds>",
      `after SIGTERM, how long ${whatEnds}, 0 not at all; a second signal ends the waiting`,
      integer(0, drainTimeoutMax),
      drainTimeoutDefault,
    )
    .option(
      "--probe-port <port>",
      "serves /livez, /readyz and /metrics, 0 picks a free one (default: no probes)",
      port,
    )
    .option("--probe-host <host>", "address of the probes, for example 0.0.0.0 (default: 127.0.0.1)", host);
}

/** @throws CommandError (bad usage) for an option that would do nothing. */
export function requireProbePort({ probePort, probeHost }: ProcessFlags): void {
  if (probeHost === undefined || probePort !== undefined) return;
  throw new CommandError(
    `option '--probe-host <host>' argument '${probeHost}' needs --probe-port: without a port there are no probes`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}
