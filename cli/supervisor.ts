/**
 * Keeps one child process running: starts it, notices when it is ready, restarts it with backoff when
 * it is lost, ends it when asked. Redis, the coordinator and the workers are all kept this way.
 *
 * A child that ends by itself before it was ever ready is misconfigured more often than unlucky, so
 * its first such exit is final and its own last words become the error. A signal (the kernel's
 * out-of-memory killer, a person) is bad luck and leads to a restart.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { CommandError, failureIn } from "./errors.js";

export interface Backoff {
  firstMs: number;
  maxMs: number;
  /** A child that lived this long is healthy: its next loss starts again at `firstMs`. */
  resetAfterMs: number;
}

export const restartBackoff: Backoff = { firstMs: 200, maxMs: 5_000, resetAfterMs: 30_000 };

/** Lives a child gets before its first readiness; afterwards there is no limit, only the backoff. */
export const startAttemptsMax = 5;

/** How often a probe asks, and how much of a log is searched for the reason of a failure. */
const probeIntervalMs = 25;
const logTailBytes = 16 * 1024;

export type Readiness =
  /** A line on its standard output begins with this. */
  | { by: "line"; prefix: string }
  /** `probe` answers true; asked until it does, at most `limitMs` per life. */
  | { by: "probe"; limitMs: number; probe: (pid: number) => Promise<boolean> }
  /** Whoever owns the supervisor knows, and calls `markReady`. */
  | { by: "owner" };

export interface ChildSpec {
  /** As people read it: "worker-2". */
  name: string;
  command: string;
  /** Asked at every start, so that a restart can take the ports its first life was given. */
  args: () => string[];
  /** Beside our own environment. */
  env?: Record<string, string>;
  /** Its standard error, and its output too unless lines of that tell readiness. Appended to. */
  logFile: string;
  ready: Readiness;
  /** Opens Node's IPC channel to the child and receives its messages. */
  onMessage?: (message: unknown) => void;
}

export interface Observer {
  started(pid: number): void;
  ended(pid: number): void;
  lost(how: string, restartInMs: number): void;
}

type State =
  /** Not started yet. */
  | { kind: "idle" }
  /** A process exists; whether it was ever ready is a separate fact that outlives it. */
  | { kind: "running"; child: ChildProcess; sinceMs: number; logOffset: number }
  /** Lost; the timer starts the next life. */
  | { kind: "waiting"; timer: NodeJS.Timeout }
  /** Asked to end; the timer kills it when it takes too long. */
  | { kind: "stopping"; child: ChildProcess; timer: NodeJS.Timeout }
  /** No process, and none will follow. */
  | { kind: "ended" };

/** The pause before the next life, given the last pause (null: none yet) and how long the child lived. */
export function nextDelayMs(lastDelayMs: number | null, livedMs: number, backoff: Backoff): number {
  if (lastDelayMs === null || livedMs >= backoff.resetAfterMs) return backoff.firstMs;
  return Math.min(lastDelayMs * 2, backoff.maxMs);
}

export class Supervisor {
  /** The first readiness, with the line that told it (empty for other kinds); rejects when there will be none. */
  readonly firstReady: Promise<string>;
  private state: State = { kind: "idle" };
  private wasReady = false;
  private starts = 0;
  private lastDelayMs: number | null = null;
  private resolveReady: (line: string) => void = () => undefined;
  private rejectReady: (error: CommandError) => void = () => undefined;
  private resolveEnded: () => void = () => undefined;
  private readonly ended: Promise<void>;

  constructor(
    private readonly spec: ChildSpec,
    private readonly observer: Observer,
    private readonly backoff: Backoff = restartBackoff,
  ) {
    this.firstReady = new Promise((resolve, reject) => {
      this.resolveReady = resolve;
      this.rejectReady = reject;
    });
    // Not everybody waits for it; a rejection that nobody sees must not end the process.
    this.firstReady.catch(() => undefined);
    this.ended = new Promise((resolve) => {
      this.resolveEnded = resolve;
    });
  }

  get name(): string {
    return this.spec.name;
  }

  /** The living child's process id, or null between two lives. */
  get pid(): number | null {
    return this.state.kind === "running" || this.state.kind === "stopping"
      ? (this.state.child.pid ?? null)
      : null;
  }

  start(): void {
    if (this.state.kind === "idle") this.spawn();
  }

  markReady(line = ""): void {
    this.wasReady = true;
    this.resolveReady(line);
  }

  /** Asks the child to end and kills it after `limitMs`; resolves when no process is left. */
  stop(limitMs: number): Promise<void> {
    const state = this.state;
    if (state.kind === "running") {
      const timer = setTimeout(() => state.child.kill("SIGKILL"), limitMs);
      this.state = { kind: "stopping", child: state.child, timer };
      state.child.kill("SIGTERM");
    } else if (state.kind === "waiting" || state.kind === "idle") {
      if (state.kind === "waiting") clearTimeout(state.timer);
      this.end(new CommandError(`${this.name} was stopped before it was ready`));
    }
    return this.ended;
  }

  /** Ends the child at once. */
  kill(): void {
    void this.stop(0);
    if (this.state.kind === "stopping") this.state.child.kill("SIGKILL");
  }

  private spawn(): void {
    const { spec } = this;
    const log = openSync(spec.logFile, "a", 0o600);
    const logOffset = fstatSync(log).size;
    const output = spec.ready.by === "line" ? "pipe" : log;
    this.starts += 1;
    // Its own process group: a Ctrl-C in the terminal reaches `up` alone, which then ends its children in order.
    const child = spawn(spec.command, spec.args(), {
      stdio: spec.onMessage ? ["ignore", output, log, "ipc"] : ["ignore", output, log],
      env: { ...process.env, ...spec.env },
      detached: true,
    });
    closeSync(log);
    this.state = { kind: "running", child, sinceMs: performance.now(), logOffset };
    child.once("error", (error) => {
      // Without a process id it never started, and no exit will follow.
      if (child.pid === undefined) this.lost(child, `cannot start: ${error.message}`, false);
    });
    child.once("exit", (code, signal) => {
      this.observer.ended(child.pid!);
      this.lost(child, signal ?? `exit status ${code}`, signal !== null);
    });
    if (spec.onMessage) child.on("message", spec.onMessage);
    if (child.pid === undefined) return;
    this.observer.started(child.pid);
    if (spec.ready.by === "line") this.watchOutput(child, spec.ready.prefix);
    if (spec.ready.by === "probe") void this.probe(child, child.pid, spec.ready.probe, spec.ready.limitMs);
  }

  private watchOutput(child: ChildProcess, prefix: string): void {
    createInterface({ input: child.stdout! }).on("line", (line) => {
      const log = openSync(this.spec.logFile, "a", 0o600);
      writeSync(log, `${line}\n`);
      closeSync(log);
      if (line.startsWith(prefix)) this.markReady(line);
    });
  }

  private async probe(
    child: ChildProcess,
    pid: number,
    probe: (pid: number) => Promise<boolean>,
    limitMs: number,
  ): Promise<void> {
    const endMs = performance.now() + limitMs;
    while (this.isCurrent(child)) {
      if (await probe(pid)) {
        if (this.isCurrent(child)) this.markReady();
        return;
      }
      if (performance.now() > endMs) {
        child.kill("SIGKILL");
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, probeIntervalMs));
    }
  }

  private isCurrent(child: ChildProcess): boolean {
    return this.state.kind === "running" && this.state.child === child;
  }

  private lost(child: ChildProcess, how: string, bySignal: boolean): void {
    const state = this.state;
    if (state.kind === "stopping") {
      clearTimeout(state.timer);
      this.end(new CommandError(`${this.name} was stopped before it was ready`));
      return;
    }
    if (state.kind !== "running" || state.child !== child) return;
    const ownFault = !bySignal && this.starts === 1;
    if (!this.wasReady && (ownFault || this.starts >= startAttemptsMax)) {
      this.end(this.startFailure(how, state.logOffset));
      return;
    }
    const delayMs = nextDelayMs(this.lastDelayMs, performance.now() - state.sinceMs, this.backoff);
    this.lastDelayMs = delayMs;
    this.state = { kind: "waiting", timer: setTimeout(() => this.spawn(), delayMs) };
    this.observer.lost(how, delayMs);
  }

  private end(error: CommandError): void {
    this.state = { kind: "ended" };
    this.rejectReady(error);
    this.resolveEnded();
  }

  private startFailure(how: string, logOffset: number): CommandError {
    const words = lastWords(this.spec.logFile, logOffset);
    const reason = words.error ?? (words.line === null ? how : `${how}, last line: ${words.line}`);
    return new CommandError(`${this.name}: ${reason} (log: ${this.spec.logFile})`);
  }
}

/** The last error line and the last line of any kind that a child wrote since `offset`. */
function lastWords(logFile: string, offset: number): { error: string | null; line: string | null } {
  const log = openSync(logFile, "r");
  try {
    const { size } = fstatSync(log);
    const begin = Math.min(size, Math.max(offset, size - logTailBytes));
    const tail = Buffer.alloc(size - begin);
    readSync(log, tail, 0, tail.length, begin);
    const lines = tail
      .toString("utf8")
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line !== "");
    const error = lines.map(failureIn).findLast((reason) => reason !== null);
    return { error: error ?? null, line: lines.at(-1) ?? null };
  } finally {
    closeSync(log);
  }
}
