/**
 * A cluster whose workers compute nothing: Redis, a coordinator as `glm-relay coordinator` starts it, and
 * workers of null/worker.ts, all processes of their own. What it costs is what we add to any engine.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { CommandError } from "../../cli/errors.js";
import { isListeningMessage, type ListeningMessage } from "../../cli/parent.js";
import { findRedisServer, freePort, probeRedis, redisArguments } from "../../cli/redis.js";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import { type LoopStall, stallSinceLast } from "../loop-stall.js";
import { withoutGuesses } from "../options.js";
import { makeScratch, removeScratch } from "../scratch.js";
import type { Pretence } from "./engine.js";

const mainScript = join(packageRoot, "dist/cli/main.js");
const workerScript = join(packageRoot, "dist/bench/null/worker.js");
const probeScript = pathToFileURL(join(packageRoot, "dist/bench/event-loop-probe.js")).href;
/** Its tokenizer and its shape are used; its weights are not. */
export const nullModel = join(packageRoot, "models/demo");

const startLimitMs = 60_000;
/** Parts end within 10 s of the signal. */
const stopLimitMs = 12_000;
const redisPollMs = 50;

export interface NullClusterOptions {
  stages: number;
  /** What each stage pretends to compute; absent: steps take no time. */
  pretences?: readonly Pretence[];
  /** More flags of `glm-relay coordinator`. */
  flags?: readonly string[];
  /** Of the coordinator's node: `--cpu-prof`, `--expose-gc`. */
  nodeFlags?: readonly string[];
}

/** Every process that was started here and has not ended. */
const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

export class NullCluster {
  readonly coordinator: ChildProcess;
  readonly workers: ChildProcess[] = [];
  readonly redisUrl: string;
  readonly redisPid: number;
  url = "";
  readonly #directory: string;
  readonly #redis: ChildProcess;

  private constructor(
    directory: string,
    redis: ChildProcess,
    redisPort: number,
    options: NullClusterOptions,
  ) {
    this.#directory = directory;
    this.#redis = redis;
    this.redisPid = redis.pid!;
    this.redisUrl = `redis://127.0.0.1:${redisPort}`;
    const { stages, flags = [], nodeFlags = [] } = options;
    const args = [
      ...nodeFlags,
      `--import=${probeScript}`,
      ...[mainScript, "coordinator", "--model", nullModel, "--stages", String(stages), "--port", "0"],
      // Its text goes round in small circles: nearly every guess would hold.
      ...withoutGuesses,
      ...["--redis", this.redisUrl, ...flags],
    ];
    this.coordinator = this.#start("coordinator", args, { EVENT_LOOP_PROBE: this.#probeSocket });
  }

  /** Ready when it resolves. @throws CommandError with a process's last words when it ends before. */
  static async start(options: NullClusterOptions): Promise<NullCluster> {
    const directory = makeScratch();
    const port = await freePort();
    const redis = spawn(findRedisServer(), redisArguments(port, directory), { stdio: "ignore" });
    keep(redis);
    while (!(await probeRedis(port, redis.pid!))) await sleep(redisPollMs);
    const cluster = new NullCluster(directory, redis, port, options);
    try {
      await cluster.#ready(options);
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  async view(): Promise<ClusterView> {
    return (await (await fetch(`${this.url}/api/cluster`)).json()) as ClusterView;
  }

  /** How long the coordinator's event loop stood still at most, since this was asked last. */
  longestStall(): Promise<LoopStall> {
    return stallSinceLast(this.#probeSocket);
  }

  /** Ends all processes, the coordinator first; true when those of ours ended by themselves, with status 0. */
  async stop(): Promise<boolean> {
    const ended: boolean[] = [];
    for (const child of [this.coordinator, ...this.workers]) ended.push(await end(child));
    this.#redis.kill("SIGKILL");
    removeScratch(this.#directory);
    return ended.every((well) => well);
  }

  get #probeSocket(): string {
    return join(this.#directory, "probe");
  }

  async #ready({ stages, pretences = [] }: NullClusterOptions): Promise<void> {
    const ready = new Promise<void>((resolve) => {
      createInterface({ input: this.coordinator.stdout! }).on("line", (line) => {
        if (line.startsWith("ready ")) resolve();
      });
    });
    const listening = new Promise<ListeningMessage>((resolve) => {
      this.coordinator.on("message", (message) => {
        if (isListeningMessage(message)) resolve(message);
      });
    });
    const { url, clusterAddress } = await this.#orFailure(listening);
    this.url = url;
    for (let stage = 0; stage < stages; stage++) {
      const id = `null-${stage}`;
      const { baseMs = 0, rowMs = 0 } = pretences[stage] ?? {};
      const args = [workerScript, clusterAddress, id, String(baseMs), String(rowMs)];
      this.workers.push(this.#start(id, args, {}));
    }
    await this.#orFailure(ready);
  }

  async #orFailure<T>(progress: Promise<T>): Promise<T> {
    const late = new AbortController();
    const failures = [this.coordinator, ...this.workers].map(async (child) => {
      await once(child, "exit", { signal: late.signal });
      throw this.#failure("a process ended");
    });
    const tooLate = sleep(startLimitMs, null, { signal: late.signal }).then(() => {
      throw this.#failure(`not ready after ${startLimitMs / 1_000} s`);
    });
    try {
      return await Promise.race([progress, tooLate, ...failures]);
    } finally {
      for (const pending of [tooLate, ...failures]) pending.catch(() => undefined);
      late.abort();
    }
  }

  #start(name: string, args: readonly string[], env: Record<string, string>): ChildProcess {
    const log = openSync(this.#logFile(name), "a");
    // A Redis of somebody's own is none of a benchmark's business.
    const { REDIS_URL: _, ...own } = process.env;
    const child = spawn(process.execPath, args, {
      stdio: ["ignore", "pipe", log, "ipc"],
      env: { GLM_RELAY_LOG: "warn", ...own, ...env },
    });
    closeSync(log);
    keep(child);
    return child;
  }

  #logFile(name: string): string {
    return join(this.#directory, `${name}.log`);
  }

  #failure(what: string): CommandError {
    const names = ["coordinator", ...Array.from(this.workers, (_, stage) => `null-${stage}`)];
    const logs = names.map((name) => `${name}: ${readFileSync(this.#logFile(name), "utf8").slice(-2_000)}`);
    return new CommandError(`a cluster without an engine: ${what}\n${logs.join("\n")}`);
  }
}

function keep(child: ChildProcess): void {
  running.add(child);
  child.once("exit", () => running.delete(child));
}

async function end(child: ChildProcess): Promise<boolean> {
  if (child.exitCode === null && child.signalCode === null) {
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), stopLimitMs);
    await exited;
    clearTimeout(timer);
  }
  return child.exitCode === 0;
}
