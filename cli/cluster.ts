/**
 * A whole cluster on this machine: Redis (unless one is named), one coordinator and its workers, each
 * a supervised child process. `up` and the demo run it.
 */
import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import { packageRoot } from "../common/package.js";
import type { ListedGpu } from "../worker/list-gpus.js";
import { supervisedVariable } from "./configuration/command.js";
import { DataDir } from "./data-dir.js";
import { CommandError, exitStatus } from "./errors.js";
import { assignGpus, localGpus, type WorkerDevice } from "./gpus.js";
import { type LayerFlags, layersArguments } from "./layers.js";
import { watchLoading } from "./loading.js";
import { type ModelFlags, modelArguments } from "./model-options.js";
import { allowedCpus, coreCount, freeMemoryBytes, memoryShare, redisUrl } from "./options.js";
import { isListeningMessage, isRoundedMessage, type ListeningMessage } from "./parent.js";
import { type PrecisionFlags, precisionArguments } from "./precision.js";
import { findRedisServer, freePort, probeRedis, redisArguments, requireFreePort } from "./redis.js";
import type { Teller } from "./status-line.js";
import { type ChildSpec, type Observer, Supervisor } from "./supervisor.js";
import { Watchdog } from "./watch.js";
import { type WebhookFlags, webhookArguments } from "./webhooks.js";

/**
 * How long each part may take to end; together below the 10 s that are promised. The coordinator
 * comes first and drains what runs, for which it needs the workers; they have nothing left to do
 * then. Redis serves both to the last, and what it was told is with the kernel already.
 */
const coordinatorStopMs = 8_000;
const coordinatorDrainS = 7;
const workerStopMs = 700;
const redisStopMs = 700;

/** Reading a large append-only file takes time; a Redis that is silent for so long is restarted. */
const redisStartMs = 60_000;
/** Another process can take the free port that we found before Redis does. */
const redisPortAttempts = 3;
/** Of the data directory: what the coordinator keeps, files and batches. */
const serviceFolder = "service";
const logCheckMs = 30_000;

export interface LocalClusterOptions extends PrecisionFlags, ModelFlags, LayerFlags, WebhookFlags {
  model: string;
  /** Default 1; each has its own workers. */
  pipelines?: number;
  /** 0 picks a free one. */
  port: number;
  /** Of the gRPC API; 0 picks a free one, absent: none. */
  grpcPort?: number;
  threadsPerWorker?: number;
  /** Each on a processor of its own. */
  pinThreads?: boolean;
  memoryPerWorker?: number;
  /** As gpus.ts reads it; default cpu. */
  device?: string;
  redis?: string;
  /** Of the password of `redis`. */
  redisPasswordFile?: string;
  data?: string;
  /** Of packed weights under a data directory that was named; 0: none. Default: the worker's. */
  cacheBytes?: number;
  /** Seconds. */
  recoveryTimeout?: number;
  speculation?: "auto" | "off";
  itlTargetMs?: number;
  /** Of files and batches, as the coordinator takes them. */
  diskReserve?: number;
  filesDays?: number;
  filesBytes?: number;
  /** Tell how far rounded weights are from the stored ones. */
  verbose?: boolean;
}

const workerCount = ({ pipelines = 1, stages }: LocalClusterOptions): number => pipelines * stages;

function threadsPerWorker(options: LocalClusterOptions): number {
  return options.threadsPerWorker ?? Math.max(1, Math.floor(coreCount() / workerCount(options)));
}

/** @throws CommandError (bad usage) when --pin-threads wants more processors than there are. */
export function requireProcessors(options: LocalClusterOptions): void {
  if (!options.pinThreads) return;
  const threads = workerCount(options) * threadsPerWorker(options);
  const { length } = allowedCpus();
  if (threads <= length) return;
  throw new CommandError(
    `option '--pin-threads' wants a processor for each of ${threads} compute threads: this process may use ${length}`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}

/** Of workers that share the host's memory. */
function devicesOnHost({ memoryPerWorker }: LocalClusterOptions, count: number): WorkerDevice[] {
  const memoryBytes = memoryPerWorker ?? Math.floor((freeMemoryBytes() * memoryShare) / count);
  return Array.from({ length: count }, () => ({ device: "cpu", memoryBytes }));
}

/** "cuda:0 (NVIDIA H100), cuda:1 (NVIDIA H100)" */
function deviceNames(devices: readonly WorkerDevice[], gpus: readonly ListedGpu[]): string {
  const used = gpus.filter(({ index }) => devices.some(({ device }) => device === `cuda:${index}`));
  return used.map(({ index, name }) => `cuda:${index} (${name})`).join(", ");
}

export class LocalCluster {
  private data: DataDir | null = null;
  private watchdog: Watchdog | null = null;
  private redis: Supervisor | null = null;
  private coordinator: Supervisor | null = null;
  private workers: Supervisor[] = [];
  private logTimer: NodeJS.Timeout | null = null;
  private apiUrl: string | null = null;
  private stopping = false;

  /** @param teller Receives a line for people at every step and every loss, and how far loading is. */
  constructor(
    private readonly options: LocalClusterOptions,
    private readonly teller: Teller,
  ) {}

  /**
   * Starts everything.
   * @returns The URL of the API, once a token has travelled through all stages.
   * @throws CommandError when a part cannot start; `stop` then ends the others.
   */
  async start(): Promise<string> {
    const { options } = this;
    for (const port of [options.port, options.grpcPort ?? 0]) if (port !== 0) await requireFreePort(port);
    const external = externalRedis(options.redis);
    requireExternal(external, options.redisPasswordFile);
    const { device = "cpu", memoryPerWorker } = options;
    const gpus = await localGpus(device);
    const onGpus = gpus.length === 0 ? null : assignGpus(device, gpus, workerCount(options), memoryPerWorker);
    const data = new DataDir(options.data);
    this.data = data;
    this.watchdog = await Watchdog.start(data.path, () =>
      this.teller.print(`waiting for an earlier run on ${data.path} to end`),
    );
    this.logTimer = setInterval(() => data.trimLogs(), logCheckMs);
    this.logTimer.unref();

    const redis = external ?? (await this.startRedis(data));
    // A Redis of our own holds nobody else's keys; in a shared one each data directory has its own.
    const hash = createHash("sha256").update(data.path).digest("hex").slice(0, 12);
    const name = external === null ? "glm-relay" : `glm-relay-${hash}`;
    const address = await this.startCoordinator(data, redis, name);
    this.startWorkers(data, address, gpus, onGpus);
    this.teller.print("loading the model");
    const stopWatching = watchLoading(this.apiUrl!, this.teller);
    const line = await this.firstReadiness().finally(stopWatching);
    for (const worker of this.workers) worker.markReady();
    return line.slice("ready ".length);
  }

  /** Drains and ends everything, Redis last. */
  async stop(wentWell: boolean): Promise<void> {
    this.stopping = true;
    if (this.logTimer) clearInterval(this.logTimer);
    await this.coordinator?.stop(coordinatorStopMs);
    await Promise.all(this.workers.map((worker) => worker.stop(workerStopMs)));
    await this.redis?.stop(redisStopMs);
    await this.watchdog?.close();
    if (wentWell) this.data?.removeIfTemporary();
  }

  /** Ends every process at once. */
  kill(): void {
    this.stopping = true;
    for (const child of [this.coordinator, ...this.workers, this.redis]) child?.kill();
  }

  private async startRedis(data: DataDir): Promise<string> {
    const command = findRedisServer();
    const folder = data.folder("redis");
    this.teller.print("starting redis");
    for (let attempt = 1; ; attempt++) {
      const port = await freePort();
      this.redis = this.supervise({
        name: "redis",
        command,
        args: () => redisArguments(port, folder),
        logFile: data.logFile("redis"),
        ready: { by: "probe", limitMs: redisStartMs, probe: (pid) => probeRedis(port, pid) },
      });
      try {
        await this.redis.firstReady;
        return `redis://127.0.0.1:${port}`;
      } catch (error) {
        const lostPort = /address already in use/i.test((error as Error).message);
        if (this.stopping || !lostPort || attempt === redisPortAttempts) throw error;
      }
    }
  }

  /** @returns Where workers connect. */
  private async startCoordinator(data: DataDir, redis: string, name: string): Promise<string> {
    const { options } = this;
    let listening: ListeningMessage | null = null;
    const folder = data.folder(serviceFolder);
    this.teller.print("starting coordinator");
    const address = new Promise<string>((resolveAddress) => {
      this.coordinator = this.supervise({
        name: "coordinator",
        command: process.execPath,
        args: () => [
          ...[
            mainScript,
            "coordinator",
            "--model",
            resolve(options.model),
            "--stages",
            String(options.stages),
          ],
          ...(options.pipelines === undefined ? [] : ["--pipelines", String(options.pipelines)]),
          // A restart takes the ports of the first life: clients and workers know them.
          ...["--port", listening ? new URL(listening.url).port : String(options.port)],
          ...grpcArguments(listening?.grpcAddress ?? null, options.grpcPort),
          ...[
            "--cluster-listen",
            listening?.clusterAddress ?? "127.0.0.1:0",
            "--redis",
            redis,
            "--name",
            name,
          ],
          ...(options.redisPasswordFile === undefined
            ? []
            : ["--redis-password-file", resolve(options.redisPasswordFile)]),
          ...layersArguments(options),
          ...modelArguments(options),
          ...precisionArguments(options),
          ...(options.recoveryTimeout === undefined
            ? []
            : ["--recovery-timeout", String(options.recoveryTimeout)]),
          ...(options.speculation === undefined ? [] : ["--speculation", options.speculation]),
          ...(options.itlTargetMs === undefined ? [] : ["--itl-target-ms", String(options.itlTargetMs)]),
          ...["--data", folder],
          ...filesArguments(options),
          ...webhookArguments(options),
          ...["--probe-port", "0", "--drain-timeout", String(coordinatorDrainS)],
        ],
        logFile: data.logFile("coordinator"),
        ready: { by: "line", prefix: "ready " },
        onMessage: (message) => {
          if (!isListeningMessage(message)) return;
          // Once: a restart takes the same port.
          if (listening === null && message.grpcAddress !== null) {
            this.teller.print(`gRPC at ${message.grpcAddress}`);
          }
          listening = message;
          this.apiUrl = message.url;
          resolveAddress(message.clusterAddress);
        },
      });
    });
    // Readiness needs workers, so at this point the race can only be won by the address or lost.
    return Promise.race([address, this.coordinator!.firstReady]);
  }

  /** @param onGpus Of every worker; null: all are on the CPU. */
  private startWorkers(
    data: DataDir,
    address: string,
    gpus: readonly ListedGpu[],
    onGpus: readonly WorkerDevice[] | null,
  ): void {
    const { options } = this;
    const count = workerCount(options);
    const devices = onGpus ?? devicesOnHost(options, count);
    const threads = threadsPerWorker(options);
    const cpus = options.pinThreads ? allowedCpus() : null;
    const pinned = (index: number) =>
      cpus === null ? [] : ["--cpus", cpus.slice(index * threads, (index + 1) * threads).join(",")];
    const where = onGpus === null ? "" : ` on ${deviceNames(onGpus, gpus)}`;
    this.teller.print(`starting ${count} ${count === 1 ? "worker" : "workers"}${where}`);
    this.workers = Array.from({ length: count }, (_, index) =>
      this.supervise({
        name: `worker-${index}`,
        command: process.execPath,
        args: () => [
          ...[mainScript, "worker", "--coordinator", address, "--id", `worker-${index}`],
          ...["--device", devices[index]!.device, "--memory", String(devices[index]!.memoryBytes)],
          ...["--threads", String(threads)],
          ...pinned(index),
          ...weightCacheArguments(data, options),
          ...(options.verbose ? ["--verbose"] : []),
          ...["--probe-port", "0"],
        ],
        logFile: data.logFile(`worker-${index}`),
        ready: { by: "owner" },
        onMessage: (message) => {
          if (!isRoundedMessage(message)) return;
          for (const line of message.lines) this.teller.print(`worker-${index}: ${line}`);
        },
      }),
    );
  }

  /** The coordinator's ready line, or the first part that gives up. */
  private firstReadiness(): Promise<string> {
    const others = [...this.workers].map((child) => child.firstReady);
    return Promise.race([this.coordinator!.firstReady, ...others]);
  }

  private supervise(spec: ChildSpec): Supervisor {
    const observer: Observer = {
      started: (pid) => this.watchdog?.watch(pid),
      ended: (pid) => this.watchdog?.forget(pid),
      lost: (how, delayMs) =>
        this.teller.print(
          `${spec.name} lost (${how}), restarting in ${delayMs / 1000} s (log: ${spec.logFile})`,
        ),
    };
    const supervisor = new Supervisor({ ...spec, env: { [supervisedVariable]: "1" } }, observer);
    if (this.stopping) throw new CommandError("stopped");
    supervisor.start();
    return supervisor;
  }
}

const mainScript = join(packageRoot, "dist/cli/main.js");

function filesArguments({ diskReserve, filesDays, filesBytes }: LocalClusterOptions): string[] {
  return [
    ...(diskReserve === undefined ? [] : ["--disk-reserve", String(diskReserve)]),
    ...(filesDays === undefined ? [] : ["--files-days", String(filesDays)]),
    ...(filesBytes === undefined ? [] : ["--files-bytes", String(filesBytes)]),
  ];
}

/** @param bound Where the first life of the coordinator served it. */
function grpcArguments(bound: string | null, port: number | undefined): string[] {
  if (port === undefined) return [];
  return ["--grpc-port", bound === null ? String(port) : bound.slice(bound.lastIndexOf(":") + 1)];
}

/** Weights kept in a directory that goes at the end would only cost disk, or memory where /tmp is memory. */
function weightCacheArguments(data: DataDir, { data: named, cacheBytes }: LocalClusterOptions): string[] {
  if (named === undefined) return [];
  return ["--data", data.path, ...(cacheBytes === undefined ? [] : ["--cache-bytes", String(cacheBytes)])];
}

/** @throws CommandError (bad usage) for a password that nobody asks for. */
function requireExternal(external: string | null, passwordFile: string | undefined): void {
  if (passwordFile === undefined || external !== null) return;
  throw new CommandError(
    "option '--redis-password-file <file>' needs --redis: a Redis of our own has no password",
    "invalid_configuration",
    exitStatus.badUsage,
  );
}

/** --redis, else REDIS_URL, else null: then we bring our own. */
function externalRedis(option: string | undefined): string | null {
  const fromEnvironment = process.env.REDIS_URL;
  if (option !== undefined || !fromEnvironment) return option ?? null;
  try {
    return redisUrl(fromEnvironment);
  } catch (error) {
    throw new CommandError(
      `environment variable REDIS_URL '${fromEnvironment}' is invalid. ${(error as Error).message}`,
      null,
      exitStatus.badUsage,
    );
  }
}
