/**
 * A tiny process beside `up` that outlives it for a moment: when `up` dies in any way, its end of
 * this process's standard input closes, and everything `up` had started is ended. Redis cannot watch
 * for that itself, and a worker that was stopped (SIGSTOP) cannot notice.
 *
 * It also holds the lock on the data directory, so the lock lasts exactly as long as any child could
 * still write there.
 *
 * Input: a line "+PID" per started child, "-PID" per ended one. Output: "locked" or "busy", once,
 * and before that "waiting" when somebody else holds the lock.
 */
import { createInterface } from "node:readline";
import { tryLock } from "../common/lock.js";

/** An earlier run on the same directory may need this long to be cleaned up by its own watchdog. */
const lockWaitMs = 6_000;
const termLimitMs = 3_000;
const killLimitMs = 1_000;
const pollMs = 50;

const children = new Set<number>();
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function signalAll(signal: NodeJS.Signals): void {
  for (const pid of children) {
    try {
      process.kill(pid, signal);
    } catch {
      children.delete(pid);
    }
  }
}

async function waitUntilGone(limitMs: number): Promise<void> {
  const endMs = performance.now() + limitMs;
  while (children.size > 0 && performance.now() < endMs) {
    for (const pid of children) if (!isAlive(pid)) children.delete(pid);
    await pause(pollMs);
  }
}

async function lock(name: string): Promise<boolean> {
  if (await tryLock(name)) return true;
  process.stdout.write("waiting\n");
  const endMs = performance.now() + lockWaitMs;
  while (!(await tryLock(name))) {
    if (performance.now() > endMs) return false;
    await pause(pollMs);
  }
  return true;
}

const input = createInterface({ input: process.stdin });
input.on("line", (line) => {
  const pid = Number(line.slice(1));
  if (line.startsWith("+")) children.add(pid);
  else children.delete(pid);
});
input.on("close", async () => {
  signalAll("SIGTERM");
  await waitUntilGone(termLimitMs);
  signalAll("SIGKILL");
  await waitUntilGone(killLimitMs);
  process.exit(0);
});

// Its end is decided by its input alone.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
// `up` may be gone before it reads the answer.
process.stdout.on("error", () => undefined);
const locked = await lock(process.argv[2]!);
process.stdout.write(locked ? "locked\n" : "busy\n");
if (!locked) process.exit(1);
