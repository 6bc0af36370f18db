/** The life of a `coordinator` or `worker` process from its start to its exit status. */
import { CommandError } from "./errors.js";
import { exitWithParent } from "./parent.js";
import { listenForStop } from "./signals.js";

/** Closing has its own limits; this one ends the process should they not hold, within the promised 10 s. */
const closeLimitMs = 9_000;

interface Service {
  closed: Promise<{ code: number; reason: string }>;
  close(reason: string): Promise<void>;
}

/**
 * Runs a service until it closes by itself or a signal asks it to. Never returns.
 * @param start Begins the service; a signal during the start ends the process at once.
 */
export async function runService<S extends Service>(
  start: () => Promise<S>,
  started: (service: S) => void,
): Promise<never> {
  exitWithParent();
  const stop = listenForStop(() => process.exit(1));
  const service = await Promise.race([start(), stop.requested.then(() => null)]);
  if (service === null) process.exit(0);
  started(service);
  const ended = await Promise.race([service.closed, stop.requested]);
  if (typeof ended !== "string") {
    if (ended.code === 0) process.exit(0);
    throw new CommandError(ended.reason, null);
  }
  const limit = new Promise<"late">((resolve) => setTimeout(resolve, closeLimitMs, "late"));
  const outcome = await Promise.race([service.close(`received ${ended}`), limit]);
  if (outcome === "late") {
    process.stderr.write(`still busy ${closeLimitMs / 1000} s after ${ended}: ending anyway\n`);
  }
  process.exit(0);
}
