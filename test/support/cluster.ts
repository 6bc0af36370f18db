/**
 * A cluster of real processes for integration tests: redis-server, one coordinator, its workers, all
 * on free loopback ports with a directory of their own. `stop` leaves nothing behind and says so.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import { testDevice, testLibrary } from "./test-gpu.js";

const main = join(packageRoot, "dist/cli/main.js");
export const tinyModel = join(packageRoot, "test/golden/fixtures/chatglm3-tiny");
export const demoModel = join(packageRoot, "models/demo");

/** Characters of a process's output that a test can look at: minutes of debug logs. */
const keptOutput = 4_000_000;

export interface ClusterOptions {
  model?: string;
  stages: number;
  dtype?: string;
  /** More flags of the coordinator: --quantization, --group-size, --head, --scales, --kv. */
  precision?: string[];
  kernels?: string;
  /** The workers compute on an emulated GPU (test-gpu.ts). */
  gpu?: boolean;
  prefillChunk?: number;
  microBatches?: number;
  /** Default: the coordinator's. */
  speculation?: "auto" | "off";
  itlTargetMs?: number;
  memory?: string;
  threads?: number;
  /** The coordinator serves the gRPC API as well, on a free port. */
  grpc?: boolean;
  /** Every process serves its probe port, a free one. */
  probes?: boolean;
  /** Level of the logs; default info. */
  logLevel?: string;
  /** The workers keep packed weights under it. */
  weights?: string;
  /** Its directory of files and batches; absent: it offers neither. */
  data?: string;
  /** Flags of what it keeps there: --disk-reserve, --files-days, --files-bytes, --webhook-hosts. */
  files?: string[];
  /** False: none is started, and none is waited for. */
  workers?: boolean;
  /** More flags; of flags given twice the last one counts. */
  coordinatorFlags?: string[];
  workerFlags?: (index: number) => string[];
  /** More of a worker's environment, whenever it is started. */
  workerEnvironment?: (index: number) => Record<string, string>;
  /** Sent with each request of the cluster's own. */
  apiKey?: string;
  /** A Redis that is there already; it is not stopped with the cluster. */
  redis?: TestRedis;
}

/** A child process with what it wrote, for the message of a failing test. */
export class TestProcess {
  readonly child: ChildProcess;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  readonly name: string;
  output = "";

  constructor(name: string, command: string, args: string[], env: Record<string, string> = {}) {
    this.name = name;
    this.child = spawn(command, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, GLM_RELAY_LOG: "info", ...env },
    });
    for (const stream of [this.child.stdout!, this.child.stderr!]) {
      stream.on("data", (data: Buffer) => {
        this.output = (this.output + data.toString()).slice(-keptOutput);
      });
    }
    this.exited = new Promise((resolve) => {
      this.child.on("exit", (code, signal) => resolve({ code, signal }));
    });
  }

  get pid(): number {
    return this.child.pid!;
  }

  private wasKilled = false;

  get alive(): boolean {
    return !this.wasKilled && this.child.exitCode === null && this.child.signalCode === null;
  }

  kill(signal: NodeJS.Signals): void {
    // Nobody survives it; that it is over may be told later than that its connections are.
    if (signal === "SIGKILL") this.wasKilled = true;
    this.child.kill(signal);
  }

  /** Waits for a line that matches, anywhere in the output. */
  async line(pattern: RegExp, limitMs = 30_000): Promise<RegExpExecArray> {
    return until(
      `${this.name} to print ${pattern}`,
      () => {
        const found = pattern.exec(this.output);
        if (found === null && !this.alive) throw new Error(`${this.name} ended:\n${this.output}`);
        return found;
      },
      limitMs,
      () => this.output,
    );
  }
}

/** Polls until `check` gives something; fails with what was waited for. */
export async function until<T>(
  what: string,
  check: () => T | null | undefined | false | Promise<T | null | undefined | false>,
  limitMs = 30_000,
  context: () => string = () => "",
): Promise<T> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    const value = await check();
    if (value !== null && value !== undefined && value !== false) return value;
    if (performance.now() > deadline) throw new Error(`waited ${limitMs} ms for ${what}\n${context()}`);
    await sleep(20);
  }
}

/** --memory for workers of such a cluster that then have little more than so many KV blocks. */
export function memoryFor({ blocks, stages }: ClusterView, count: number): string {
  const bytes = stages.map(
    ({ planned: { weightBytes, kvBytes, workspaceBytes, processBytes } }) =>
      weightBytes + workspaceBytes + processBytes + Math.ceil((kvBytes / blocks.total) * count),
  );
  return `${Math.max(...bytes)}`;
}

/**
 * A port that stays free until it is used, and between the runs of a process that is killed: from below the range in
 * which the kernel gives ports to whoever asks for any.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(10_000, 32_000);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error("no free port was found");
}

/** A private redis-server with AOF, which can be stopped and started again on the same port and data. */
export class TestRedis {
  readonly port: number;
  readonly directory: string;
  process: TestProcess | null = null;

  private constructor(port: number) {
    this.port = port;
    this.directory = mkdtempSync(join(tmpdir(), "glm-relay-redis-"));
  }

  static async start(): Promise<TestRedis> {
    const redis = new TestRedis(await freePort());
    await redis.resume();
    return redis;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  async resume(): Promise<void> {
    const args = ["--port", String(this.port), "--bind", "127.0.0.1", "--dir", this.directory];
    // With everysec Redis may answer a write up to two seconds before the kernel has it, and SIGKILL loses it.
    args.push("--appendonly", "yes", "--appendfsync", "always", "--save", "");
    args.push("--maxmemory-policy", "noeviction");
    this.process = new TestProcess("redis-server", "redis-server", args);
    await this.process.line(/Ready to accept connections/);
  }

  async kill(): Promise<void> {
    this.process?.kill("SIGKILL");
    await this.process?.exited;
  }

  async stop(): Promise<void> {
    await this.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export class TestCluster {
  readonly options: ClusterOptions;
  readonly redis: TestRedis;
  coordinator!: TestProcess;
  readonly workers: TestProcess[] = [];
  url = "";
  private clusterPort = 0;

  private constructor(options: ClusterOptions, redis: TestRedis) {
    this.options = options;
    this.redis = redis;
  }

  /** Starts everything and waits until a token has travelled through all stages. */
  static async start(options: ClusterOptions): Promise<TestCluster> {
    const cluster = new TestCluster(options, options.redis ?? (await TestRedis.start()));
    try {
      cluster.clusterPort = await freePort();
      cluster.startCoordinator(await freePort());
      if (options.workers === false) {
        await cluster.until("the coordinator to listen", () => true);
        return cluster;
      }
      for (let index = 0; index < options.stages; index++) cluster.startWorker(index);
      await cluster.ready();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  /** host:port of the gRPC API. */
  async grpcAddress(): Promise<string> {
    return (await this.view()).grpcAddress!;
  }

  startCoordinator(port: number): void {
    const { options } = this;
    const args = [
      main,
      "coordinator",
      "--model",
      options.model ?? tinyModel,
      "--stages",
      `${options.stages}`,
    ];
    args.push(
      "--port",
      `${port}`,
      "--cluster-listen",
      `127.0.0.1:${this.clusterPort}`,
      "--redis",
      this.redis.url,
    );
    args.push("--name", `test-${this.clusterPort}`);
    if (options.dtype !== undefined) args.push("--dtype", options.dtype);
    args.push(...(options.precision ?? []));
    if (options.data !== undefined) args.push("--data", options.data);
    args.push(...(options.files ?? []));
    if (options.prefillChunk !== undefined) args.push("--prefill-chunk", `${options.prefillChunk}`);
    if (options.microBatches !== undefined) args.push("--micro-batches", `${options.microBatches}`);
    if (options.speculation !== undefined) args.push("--speculation", options.speculation);
    if (options.itlTargetMs !== undefined) args.push("--itl-target-ms", `${options.itlTargetMs}`);
    if (options.probes) args.push("--probe-port", "0");
    if (options.grpc) args.push("--grpc-port", "0");
    args.push("--drain-timeout", "7", ...(options.coordinatorFlags ?? []));
    this.url = `http://127.0.0.1:${port}`;
    this.coordinator = new TestProcess("coordinator", process.execPath, args, this.environment());
  }

  startWorker(index: number): void {
    const { options } = this;
    const args = [
      main,
      "worker",
      "--coordinator",
      `127.0.0.1:${this.clusterPort}`,
      "--id",
      `worker-${index}`,
    ];
    args.push("--memory", options.memory ?? "512MiB", "--threads", `${options.threads ?? 1}`);
    if (options.probes) args.push("--probe-port", "0");
    if (options.weights !== undefined) args.push("--data", options.weights);
    args.push(...(options.workerFlags?.(index) ?? []));
    const env = { ...this.environment(), ...options.workerEnvironment?.(index) };
    if (options.kernels !== undefined) env["GLM_RELAY_KERNELS"] = options.kernels;
    if (options.gpu) {
      args.push("--device", testDevice);
      env["GLM_RELAY_CUDA_LIBRARY"] = testLibrary;
    }
    this.workers[index] = new TestProcess(`worker-${index}`, process.execPath, args, env);
  }

  private environment(): Record<string, string> {
    const { logLevel } = this.options;
    return logLevel === undefined ? {} : { GLM_RELAY_LOG: logLevel };
  }

  async ready(limitMs = 30_000): Promise<void> {
    await this.coordinator.line(/^ready http/m, limitMs);
    await this.until("the cluster to be ready", (view) => view.state === "ready", limitMs);
  }

  /**
   * Starts dead workers again and waits until the cluster is ready with them. Before they have joined, "ready" may
   * still be that of the plan whose worker is dead and not yet missed; joining ends that plan.
   */
  async revive(): Promise<void> {
    for (const [index, worker] of this.workers.entries()) if (!worker.alive) this.startWorker(index);
    await this.until("the cluster to be ready with its workers", ({ state, workers }) => {
      const joined = workers.map(({ pid }) => pid);
      return state === "ready" && this.workers.every(({ pid }) => joined.includes(pid));
    });
  }

  async view(): Promise<ClusterView> {
    const response = await fetch(`${this.url}/api/cluster`, { headers: this.authorization() });
    return (await response.json()) as ClusterView;
  }

  async until(what: string, check: (view: ClusterView) => boolean, limitMs = 30_000): Promise<ClusterView> {
    return until(
      what,
      async () => {
        if (!this.coordinator.alive) throw new Error(`coordinator ended:\n${this.coordinator.output}`);
        const view = await this.view().catch(() => null);
        return view !== null && check(view) ? view : null;
      },
      limitMs,
      () => this.log(),
    );
  }

  async post(
    path: string,
    body: unknown,
    headers: Record<string, string> = {},
  ): Promise<{ status: number; headers: Headers; body: any }> {
    const response = await fetch(this.url + path, {
      method: "POST",
      headers: { "content-type": "application/json", ...this.authorization(), ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
    });
    return { status: response.status, headers: response.headers, body: await response.json() };
  }

  private authorization(): Record<string, string> {
    const { apiKey } = this.options;
    return apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  }

  /** What all processes wrote, for a failing test. */
  log(): string {
    return [this.coordinator, ...this.workers]
      .map((each) => `--- ${each.name}\n${each.output.slice(-4_000)}`)
      .join("\n");
  }

  /**
   * Ends every process: politely, then with SIGKILL.
   * @returns exit status of coordinator and workers, null for one that had to be killed.
   */
  async stop(): Promise<(number | null)[]> {
    const processes = [this.coordinator, ...this.workers].filter((each) => each !== undefined);
    const codes: (number | null)[] = [];
    for (const each of processes) {
      each.kill("SIGCONT");
      each.kill("SIGTERM");
      const ended = await Promise.race([each.exited, sleep(10_000, null, { ref: false })]);
      if (ended === null) each.kill("SIGKILL");
      codes.push((await each.exited).code);
    }
    if (this.options.redis === undefined) await this.redis.stop();
    return codes;
  }
}
