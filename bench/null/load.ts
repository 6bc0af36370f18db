/** Clients in a process of their own: they take CPU as well, and none of it may be the coordinator's. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { CommandError } from "../../cli/errors.js";
import type { StreamLoad } from "./stream-client.js";

export type ClientCommand =
  /** Streams begin, one answer after the other, until there are so many. */
  | ({ kind: "start"; streams: number } & StreamLoad)
  /** What came since this was asked last. */
  | { kind: "count" }
  | { kind: "stop" }
  | ({ kind: "burst"; count: number } & StreamLoad);

export interface StreamReport {
  /** What went wrong first; null when nothing did. */
  failure: string | null;
  seconds: number;
  tokens: number;
  /** Answers that came to their end. */
  answers: number;
  /** Time between neighbouring tokens of an answer. */
  gapMs: { p50: number; p99: number };
}

export interface BurstReport {
  /** From the first request to the last answer. */
  seconds: number;
  /** How many had which status, or which error instead. */
  statuses: Record<string, number>;
}

export type ClientReport = StreamReport | BurstReport;

export type LoadShape = Pick<StreamLoad, "promptTokens" | "tokens">;

export class ClientProcess {
  readonly #process: ChildProcess;
  readonly #target: Pick<StreamLoad, "host" | "port">;

  /** @param url Of the API. */
  constructor(url: string) {
    const { hostname, port } = new URL(url);
    this.#target = { host: hostname, port: Number(port) };
    this.#process = fork(fileURLToPath(new URL("./clients.js", import.meta.url)));
  }

  async start(streams: number, shape: LoadShape): Promise<void> {
    await this.#streamed({ kind: "start", streams, ...this.#target, ...shape });
  }

  /** @throws CommandError when a stream failed. */
  count(): Promise<StreamReport> {
    return this.#streamed({ kind: "count" });
  }

  /** All leave, wherever they are in their answers. */
  async stop(): Promise<void> {
    await this.#streamed({ kind: "stop" });
  }

  /** Requests that are not streamed, all at once, each over a connection of its own. */
  burst(count: number, shape: LoadShape): Promise<BurstReport> {
    return this.#ask({ kind: "burst", count, ...this.#target, ...shape }) as Promise<BurstReport>;
  }

  end(): void {
    this.#process.kill("SIGKILL");
  }

  async #streamed(command: ClientCommand): Promise<StreamReport> {
    const report = (await this.#ask(command)) as StreamReport;
    if (report.failure !== null) throw new CommandError(`a stream failed: ${report.failure}`);
    return report;
  }

  /** One command at a time. */
  async #ask(command: ClientCommand): Promise<ClientReport> {
    this.#process.send(command);
    const [report] = (await once(this.#process, "message")) as [ClientReport];
    return report;
  }
}
