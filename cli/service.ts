/** The life of a `coordinator` or `worker` process from its start to its exit status. */
import { CommandError, exitStatus, failureLine, statusOfFailure } from "./errors.js";
import { exitWithParent } from "./parent.js";
import { listenForStop } from "./signals.js";

/** Closing has its own limits; this one ends the process should they not hold, after what ran had its time. */
const closeLimitMs = 9_000;

interface Service {
  closed: Promise<{ code: number; reason: string }>;
  /** Drains, then closes. */
  close(reason: string): Promise<void>;
  /** Ends the draining: closes now. */
  hurry(): void;
}

/**
 * Runs a service until it closes by itself or a signal asks it to. Never returns. A second signal ends the
 * draining, a third one the process. A failure is the last line of its log, whatever the level of that is.
 * @param component Name of the process in that log.
 * @param start Begins the service; a signal during the start ends the process at once.
 * @param drainTimeoutS How long the service may drain.
 * @throws CommandError (bad usage) of the start: it is told to who wrote the command line.
 */
export async function runService<S extends Service>(
  component: string,
  start: () => Promise<S>,
  started: (service: S) => void,
  drainTimeoutS: number,
): Promise<never> {
  try {
    return await live(component, start, started, drainTimeoutS);
  } catch (error) {
    const status = statusOfFailure(error);
    if (status === exitStatus.badUsage) throw error;
    const { fields, message } = failureLine(error);
    (await logger(component, "fatal")).fatal(fields, message);
    // Whatever a failed start has left open must not keep the process alive.
    process.exit(status);
  }
}

async function logger(component: string, level?: string) {
  const { createLogger } = await import("../common/log.js");
  return createLogger(component, level);
}

async function live<S extends Service>(
  component: string,
  start: () => Promise<S>,
  started: (service: S) => void,
  drainTimeoutS: number,
): Promise<never> {
  exitWithParent();
  const limit = new Limit();
  let hurry = (): void => process.exit(1);
  const stop = listenForStop((times) => {
    if (times > 1) process.exit(1);
    hurry();
  });
  const service = await Promise.race([start(), stop.requested.then(() => null)]);
  if (service === null) process.exit(0);
  hurry = () => {
    service.hurry();
    limit.set(closeLimitMs);
  };
  started(service);
  const ended = await Promise.race([service.closed, stop.requested]);
  if (typeof ended !== "string") {
    if (ended.code === 0) process.exit(0);
    throw new CommandError(ended.reason, null);
  }
  limit.set(drainTimeoutS * 1_000 + closeLimitMs);
  const outcome = await Promise.race([service.close(`received ${ended}`), limit.passed]);
  if (outcome === "late") (await logger(component)).warn(`still busy long after ${ended}: ending anyway`);
  process.exit(0);
}

/** A time that can be set anew. */
class Limit {
  readonly passed: Promise<"late">;
  #resolve: (late: "late") => void = () => undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor() {
    this.passed = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  set(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#resolve("late"), ms);
  }
}
