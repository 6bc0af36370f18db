/** The worker's Prometheus metrics, in a registry of their own: several workers may share a process. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { softwareVersion } from "../common/package.js";
import type { Engine } from "./stage/engine.js";

const stepBucketsS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
  40, 80,
];

/** What was out of date: a leader, a plan, its end, or a step of an earlier epoch. */
export type StaleMessage = "welcome" | "assign" | "release" | "step";

export class WorkerMetrics {
  readonly registry = new Registry();
  readonly #stepSeconds: Histogram<"stage" | "phase">;
  readonly #busySeconds: Counter<"stage">;
  readonly #linkBytes: Counter<"stage">;
  readonly #staleMessages: Counter<"reason">;
  #receivedBytes = 0;
  #stale = 0;

  constructor(engine: Engine) {
    const registers = [this.registry];
    new Gauge({
      name: "glm_relay_build_info",
      help: "Always 1; the labels name the release and the kernel variant.",
      labelNames: ["version", "kernels"],
      registers,
    }).set({ version: softwareVersion, kernels: engine.kernels }, 1);
    this.#stepSeconds = new Histogram({
      name: "glm_relay_stage_step_seconds",
      help: "Time of one step inside the engine; phase is decode when every sequence has one row.",
      labelNames: ["stage", "phase"],
      buckets: stepBucketsS,
      registers,
    });
    this.#busySeconds = new Counter({
      name: "glm_relay_stage_busy_seconds_total",
      help: "Time inside the engine.",
      labelNames: ["stage"],
      registers,
    });
    this.#linkBytes = new Counter({
      name: "glm_relay_link_bytes_total",
      help: "Bytes of activations received from the previous stage.",
      labelNames: ["stage"],
      registers,
    });
    this.#staleMessages = new Counter({
      name: "glm_relay_stale_messages_total",
      help: "Messages of an older term or epoch that were dropped.",
      labelNames: ["reason"],
      registers,
    });
  }

  /** Node's own metrics as well; for processes that are scraped. */
  addProcessMetrics(): void {
    collectDefaultMetrics({ register: this.registry });
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  get staleMessages(): number {
    return this.#stale;
  }

  step(stage: number, phase: "prefill" | "decode", computeUs: number): void {
    this.#stepSeconds.observe({ stage, phase }, computeUs / 1e6);
    this.#busySeconds.inc({ stage }, computeUs / 1e6);
  }

  received(stage: number, bytes: number): void {
    this.#receivedBytes += bytes;
    this.#linkBytes.inc({ stage }, bytes);
  }

  stale(message: StaleMessage): void {
    this.#stale += 1;
    this.#staleMessages.inc({ reason: message });
  }
}
