/** `up`'s side of the watchdog (watchdog.ts). */
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { lockName } from "../common/lock.js";
import { packageRoot } from "../common/package.js";
import { CommandError } from "./errors.js";

/** Somebody who kills the watchdog gets a new one after this pause. */
const restartDelayMs = 500;
const closeLimitMs = 300;

export class Watchdog {
  private readonly pids = new Set<number>();
  private child: ChildProcess;
  private closed = false;

  private constructor(private readonly lock: string) {
    this.child = this.spawn();
  }

  /**
   * Starts the watchdog and locks the data directory.
   * @param onWait Called when an earlier run still holds it; it may be about to end.
   * @throws CommandError when another run holds the directory.
   */
  static async start(dataDir: string, onWait: () => void): Promise<Watchdog> {
    const watchdog = new Watchdog(lockName(dataDir));
    if (await watchdog.isLocked(onWait)) return watchdog;
    await watchdog.close();
    throw new CommandError(`another glm-relay uses ${dataDir}: choose another --data, or end the other one`);
  }

  watch(pid: number): void {
    this.pids.add(pid);
    this.send(`+${pid}`);
  }

  forget(pid: number): void {
    this.pids.delete(pid);
    this.send(`-${pid}`);
  }

  /** Ends the watchdog and waits for it, but not for long: it may be cleaning up what did not want to end. */
  close(): Promise<void> {
    this.closed = true;
    const { child } = this;
    return new Promise((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return resolve();
      const timer = setTimeout(resolve, closeLimitMs);
      child.once("exit", () => {
        clearTimeout(timer);
        resolve();
      });
      child.stdin?.end();
    });
  }

  private send(line: string): void {
    // A pipe takes so few bytes at once, so the line has left before anything can kill us.
    this.child.stdin?.write(`${line}\n`);
  }

  private async isLocked(onWait: () => void): Promise<boolean> {
    for await (const line of createInterface({ input: this.child.stdout! })) {
      if (line !== "waiting") return line === "locked";
      onWait();
    }
    return false;
  }

  private spawn(): ChildProcess {
    // A group of its own, so that what kills the group of `up` leaves it to its work.
    const script = join(packageRoot, "dist/cli/watchdog.js");
    const child = spawn(process.execPath, [script, this.lock], {
      stdio: ["pipe", "pipe", "ignore"],
      detached: true,
    });
    child.stdin.on("error", () => undefined);
    child.once("error", () => undefined);
    child.once("exit", () => {
      if (this.closed) return;
      setTimeout(() => {
        if (this.closed) return;
        this.child = this.spawn();
        for (const pid of this.pids) this.send(`+${pid}`);
      }, restartDelayMs).unref();
    });
    return child;
  }
}
