/** `glm-relay up` with the real command, supervisor, watchdog and Redis; coordinator and worker are stubs. */
import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { allowedCpus } from "../../../cli/options.js";
import { findRedisServer } from "../../../cli/redis.js";
import { packageRoot } from "../../../common/package.js";
import { eventually, fixture, isRunning, scratch } from "./support.js";

let hasRedis = true;
try {
  findRedisServer();
} catch (error) {
  hasRedis = false;
  console.warn(`skipping the tests of up: ${(error as Error).message}`);
}

interface Up {
  process: ChildProcess;
  stdout: () => string;
  stderr: () => string;
  exit: Promise<number | null>;
  data: string;
  events: () => string[];
  children: () => Child[];
}

interface Child {
  pid: number;
  role: string;
  command: string[];
}

/** A package of its own whose coordinator and worker are the stubs. */
function stubPackage(directory: string): string {
  mkdirSync(join(directory, "dist"));
  cpSync(join(packageRoot, "package.json"), join(directory, "package.json"));
  symlinkSync(join(packageRoot, "node_modules"), join(directory, "node_modules"));
  // Of the coordinator what the command line itself uses.
  for (const folder of ["cli", "common", "coordinator/batches", "coordinator/files"]) {
    cpSync(join(packageRoot, "dist", folder), join(directory, "dist", folder), { recursive: true });
  }
  cpSync(fixture("stub"), join(directory, "dist"), { recursive: true });
  return join(directory, "dist/cli/main.js");
}

function startUp(model = "good", flags: string[] = []): Up {
  const directory = scratch();
  const data = join(directory, "data");
  const eventsFile = join(directory, "events");
  writeFileSync(eventsFile, "");
  const { REDIS_URL: _, ...env } = process.env;
  const args = ["up", "--model", `/models/${model}`, "--stages", "2", "--port", "0", "--data", data];
  args.push(...flags);
  const child = spawn(process.execPath, [stubPackage(directory), ...args], {
    env: { ...env, STUB_EVENTS: eventsFile },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const exit = new Promise<number | null>((resolve) => child.once("close", resolve));
  onTestFinished(async () => {
    child.kill("SIGKILL");
    await exit;
    await eventually(() => childrenIn(directory).length === 0, 8_000);
  });
  return {
    process: child,
    stdout: () => stdout,
    stderr: () => stderr,
    exit,
    data,
    events: () => readFileSync(eventsFile, "utf8").trim().split("\n"),
    children: () => childrenIn(directory),
  };
}

/** Coordinator, workers and watchdog by their command line, Redis by its working directory. */
function childrenIn(directory: string): Child[] {
  const children: Child[] = [];
  for (const pid of readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      const [, script, role = ""] = command;
      if (script === join(directory, "dist/cli/main.js") && role !== "up")
        children.push({ pid, role, command });
      else if (script === join(directory, "dist/cli/watchdog.js"))
        children.push({ pid, role: "watchdog", command });
      else if (readlinkSync(`/proc/${pid}/cwd`) === join(directory, "data/redis")) {
        children.push({ pid, role: "redis", command });
      }
    } catch {
      // It has ended meanwhile.
    }
  }
  return children.filter((child) => isRunning(child.pid));
}

const url = (up: Up) => /^ready (http:\S+)$/m.exec(up.stdout())?.[1] ?? "";

async function readyUp(model?: string, flags?: string[]): Promise<Up> {
  const up = startUp(model, flags);
  await eventually(() => url(up) !== "", 20_000);
  return up;
}

describe.skipIf(!hasRedis)("up", () => {
  it("says ready once, restarts whatever is killed on the same ports, and ends in order", async () => {
    const up = await readyUp();
    expect(up.stdout()).toBe(`ready ${url(up)}\n`);
    expect(
      up
        .children()
        .map((child) => child.role)
        .sort(),
    ).toEqual(["coordinator", "redis", "watchdog", "worker", "worker"]);
    for (const role of ["worker", "redis", "coordinator", "watchdog"]) {
      const before = up.children().filter((child) => child.role === role);
      process.kill(before[0]!.pid, "SIGKILL");
      await eventually(() => {
        const now = up.children().filter((child) => child.role === role);
        return now.length === before.length && !now.some((child) => child.pid === before[0]!.pid);
      });
    }
    expect(up.stderr()).toMatch(
      /^worker-[01] lost \(SIGKILL\), restarting in 0.2 s \(log: .*worker-[01].log\)$/m,
    );
    expect(up.stderr()).toMatch(/^redis lost \(SIGKILL\)/m);
    expect(up.stderr()).toMatch(/^coordinator lost \(SIGKILL\)/m);
    await eventually(async () => (await fetch(url(up)).catch(() => null))?.ok === true);

    const beginMs = performance.now();
    up.process.kill("SIGTERM");
    expect(await up.exit).toBe(0);
    expect(performance.now() - beginMs).toBeLessThan(10_000);
    expect(up.stdout().match(/^ready /gm)?.length).toBe(1);
    const ends = up.events().filter((event) => event.includes("closed"));
    expect(ends[0]).toMatch(/^coordinator closed with [12] workers$/);
    expect(ends.slice(1).sort()).toEqual(["worker closed worker-0", "worker closed worker-1"]);
    expect(new Set(up.events().filter((event) => event.startsWith("coordinator start"))).size).toBe(1);
    await eventually(() => up.children().length === 0);
  });

  it("gives each compute thread a processor of its own", async ({ skip }) => {
    const cpus = allowedCpus();
    skip(cpus.length < 2, "this process may use one processor only");
    const up = await readyUp("good", ["--threads-per-worker", "1", "--pin-threads"]);
    const pinned = up
      .children()
      .filter(({ role }) => role === "worker")
      .map(({ command }) => command[command.indexOf("--cpus") + 1]);
    expect(pinned.sort()).toEqual([String(cpus[0]), String(cpus[1])].sort());
  });

  it("leaves nothing behind when it is killed", async () => {
    const up = await readyUp();
    const worker = up.children().find((child) => child.role === "worker")!;
    process.kill(worker.pid, "SIGSTOP");
    up.process.kill("SIGKILL");
    await eventually(() => up.children().length === 0, 8_000);
  });

  it("ends with the coordinator's reason when that cannot start", async () => {
    const up = startUp("bad");
    expect(await up.exit).toBe(1);
    expect(up.stdout()).toBe("");
    const log = join(up.data, "logs/coordinator.log");
    expect(up.stderr()).toContain(`error: coordinator: no model in bad [invalid_model] (log: ${log})\n`);
    expect(up.events().filter((event) => event.startsWith("coordinator start")).length).toBe(1);
    // The watchdog sees that nobody is left to watch over, and goes.
    await eventually(() => up.children().length === 0);
  });

  it("ends at once at the second Ctrl-C, but not for an echo of the first", async () => {
    const up = await readyUp("slow");
    up.process.kill("SIGINT");
    up.process.kill("SIGINT");
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(up.process.exitCode).toBeNull();
    up.process.kill("SIGINT");
    expect(await up.exit).toBe(1);
    await eventually(() => up.children().length === 0);
  });

  it("ends within 10 s although the coordinator does not", async () => {
    const up = await readyUp("slow");
    const beginMs = performance.now();
    up.process.kill("SIGTERM");
    expect(await up.exit).toBe(0);
    expect(performance.now() - beginMs).toBeLessThan(10_000);
    await eventually(() => up.children().length === 0);
  });
});
