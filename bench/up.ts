/**
 * A cluster for a benchmark: `glm-relay up` as a child process, just as people start it. A flag that
 * this version does not know ends the benchmark with the command's own words, and never in figures
 * under a wrong name.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { CommandError, errorPrefix, exitStatus } from "../cli/errors.js";
import { listenForStop } from "../cli/signals.js";
import { readServerSentEvents } from "../cli/sse.js";
import { packageRoot } from "../common/package.js";
import type { ClusterView } from "../coordinator/inference.js";
import { makeScratch, removeScratch } from "./scratch.js";

const mainScript = join(packageRoot, "dist/cli/main.js");
/** `up` ends its parts within 10 s of the signal. */
const stopLimitMs = 15_000;

export interface UpOptions {
  model: string;
  stages: number;
  /** More flags of `up`: `["--quantization", "int4"]`. */
  flags?: readonly string[];
  /**
   * Its data directory, which stays. Absent: one that ends with the cluster, without a weight cache, whose writing
   * would be measured along.
   */
  data?: string;
}

/** Every `up` that this process started and that has not ended. */
const running = new Set<ChildProcess>();

/** Ends what runs and then this process, when a signal asks for it: `up` would go on without us. */
export function endClustersOnSignal(): void {
  const end = () => process.exit(exitStatus.failed);
  void listenForStop(end).requested.then(async () => {
    const ended = [...running].map((child) => once(child, "close"));
    for (const child of running) child.kill("SIGTERM");
    await Promise.all(ended);
    end();
  });
}

/** The part of a streamed completion's event that benchmarks read. */
export interface CompletionChunk {
  choices: { token_ids?: number[] }[];
}

/** A line of a worker's log, as pino writes it. */
export interface LogLine {
  time: string;
  msg: string;
}

export class BenchCluster {
  readonly url: string;
  /** From the start of `up` to its ready line. */
  readonly startSeconds: number;
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  readonly #data: string;
  readonly #keepData: boolean;

  private constructor(
    child: ChildProcess,
    exited: Promise<void>,
    data: string,
    url: string,
    seconds: number,
    keepData: boolean,
  ) {
    this.#child = child;
    this.#exited = exited;
    this.#data = data;
    this.#keepData = keepData;
    this.url = url;
    this.startSeconds = seconds;
  }

  /** @throws CommandError with the last words of `up` when it ends before it is ready. */
  static async start({ model, stages, flags = [], data: kept }: UpOptions): Promise<BenchCluster> {
    const data = kept ?? makeScratch();
    const args = [
      "up",
      "--model",
      model,
      "--stages",
      String(stages),
      "--port",
      "0",
      "--data",
      data,
      ...(kept === undefined ? ["--cache-bytes", "0"] : []),
      ...flags,
    ];
    const started = performance.now();
    // A Redis of somebody's own is none of a benchmark's business.
    const { REDIS_URL: _, ...env } = process.env;
    const child = spawn(process.execPath, [mainScript, ...args], { stdio: ["ignore", "pipe", "pipe"], env });
    let said = "";
    child.stderr!.on("data", (text: Buffer) => {
      said = (said + text.toString()).slice(-4_096);
    });
    running.add(child);
    const exited = new Promise<void>((resolve) => {
      child.once("close", () => {
        running.delete(child);
        resolve();
      });
    });
    const ready = new Promise<string>((resolve) => {
      createInterface({ input: child.stdout! }).on("line", (line) => {
        if (line.startsWith("ready ")) resolve(line.slice("ready ".length));
      });
    });
    const url = await Promise.race([ready, exited]);
    if (typeof url === "string") {
      const seconds = (performance.now() - started) / 1_000;
      return new BenchCluster(child, exited, data, url, seconds, kept !== undefined);
    }
    if (kept === undefined) removeScratch(data);
    const lines = said.trim().split("\n");
    const reason = lines.findLast((line) => line.startsWith(errorPrefix))?.slice(errorPrefix.length);
    throw new CommandError(`glm-relay ${args.join(" ")}: ${reason ?? lines.at(-1)}`);
  }

  async view(): Promise<ClusterView> {
    return (await (await this.#fetch("/api/cluster")).json()) as ClusterView;
  }

  /** @returns The answer's JSON. @throws CommandError for any status but 200. */
  async post<T>(path: string, body: unknown): Promise<T> {
    return (await (await this.#post(path, body)).json()) as T;
  }

  /**
   * The events of a streamed answer. Also for answers that take minutes: fetch gives up on those that
   * send nothing for five.
   * @throws CommandError when the server refuses or breaks off.
   */
  async *stream(path: string, body: object): AsyncGenerator<CompletionChunk> {
    const response = await this.#post(path, { ...body, stream: true });
    for await (const data of readServerSentEvents(response.body!)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data) as CompletionChunk & { error?: { message: string } };
      if (event.error !== undefined) throw new CommandError(`${path} broke off: ${event.error.message}`);
      yield event;
    }
    throw new CommandError(`${path} broke off`);
  }

  /** What a worker has logged so far; lines that are not JSON are left out. */
  workerLog(worker: string): LogLine[] {
    const text = readFileSync(join(this.#data, "logs", `${worker}.log`), "utf8");
    return text.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as LogLine] : []));
  }

  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), stopLimitMs);
    await this.#exited;
    clearTimeout(timer);
    if (!this.#keepData) removeScratch(this.#data);
  }

  #post(path: string, body: unknown): Promise<Response> {
    const headers = { "content-type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  async #fetch(path: string, init?: RequestInit): Promise<Response> {
    const response = await fetch(this.url + path, init);
    if (response.ok) return response;
    throw new CommandError(`${path} answered ${response.status}: ${await response.text()}`);
  }
}

/** Runs `use` on a cluster that ends with it, however it ends. */
export async function withCluster<T>(
  options: UpOptions,
  use: (cluster: BenchCluster) => Promise<T>,
): Promise<T> {
  const cluster = await BenchCluster.start(options);
  try {
    return await use(cluster);
  } finally {
    await cluster.stop();
  }
}
