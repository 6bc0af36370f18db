/** The worker's Prometheus metrics, in a registry of their own: several workers may share a process. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { stepBuckets } from "../common/buckets.js";
import { softwareVersion } from "../common/package.js";
import type { WeightCacheReport } from "../native/index.js";
import type { Engine } from "./stage/engine.js";

/** What was out of date: a leader, a plan, its end, or a step of an earlier epoch. */
export type StaleMessage = "welcome" | "assign" | "release" | "step";
const staleMessages: readonly StaleMessage[] = ["welcome", "assign", "release", "step"];

export type Phase = "prefill" | "decode";

/** The plan that is served, as far as a scrape looks at it. */
interface LivePlan {
  stage: number;
  downstream: { readonly credits: number };
}

export class WorkerMetrics {
  readonly #registry = new Registry();
  readonly #stepSeconds: Histogram<"stage" | "phase">;
  readonly #busySeconds: Counter<"stage">;
  readonly #idleSeconds: Counter<"stage">;
  readonly #sendSeconds: Histogram<"stage" | "phase">;
  readonly #linkBytes: Counter<"stage">;
  readonly #staleMessages: Counter<"reason">;
  readonly #cacheHits: Counter;
  readonly #cacheMisses: Counter;
  readonly #cacheMappedBytes: Gauge;
  readonly #cacheWrittenBytes: Counter;
  /** The stage that takes steps, and up to when its time is counted as busy or idle. */
  #linked: { stage: number; countedMs: number; computing: boolean } | null = null;
  #idleUs = 0;
  #receivedBytes = 0;
  #stale = 0;

  constructor(engine: Engine, plan: () => LivePlan | null) {
    const registers = [this.#registry];
    new Gauge({
      name: "glm_relay_build_info",
      help: "Always 1; the labels name the release and the kernel variant.",
      labelNames: ["version", "kernels"],
      registers,
    }).set({ version: softwareVersion, kernels: engine.kernels }, 1);
    this.#stepSeconds = new Histogram({
      name: "glm_relay_stage_step_seconds",
      help: "Time of one step inside the engine; phase is decode when every sequence has one row, drafts aside.",
      labelNames: ["stage", "phase"],
      buckets: stepBuckets,
      registers,
    });
    this.#busySeconds = new Counter({
      name: "glm_relay_stage_busy_seconds_total",
      help: "Time inside the engine.",
      labelNames: ["stage"],
      registers,
    });
    this.#idleSeconds = new Counter({
      name: "glm_relay_stage_idle_seconds_total",
      help: "Time linked and outside the engine.",
      labelNames: ["stage"],
      registers,
      collect: () => this.#countIdle(),
    });
    this.#sendSeconds = new Histogram({
      name: "glm_relay_link_send_seconds",
      help: "From a step's end until the transport has taken its frame, waiting for credits included.",
      labelNames: ["stage", "phase"],
      buckets: stepBuckets,
      registers,
    });
    this.#linkBytes = new Counter({
      name: "glm_relay_link_bytes_total",
      help: "Bytes of activations received from the previous stage.",
      labelNames: ["stage"],
      registers,
    });
    const credits: Gauge<"stage"> = new Gauge({
      name: "glm_relay_link_credits",
      help: "Frames that the next stage would take now; 0 without one.",
      labelNames: ["stage"],
      registers,
      collect: () => {
        credits.reset();
        const live = plan();
        if (live !== null) credits.set({ stage: live.stage }, live.downstream.credits);
      },
    });
    this.#staleMessages = new Counter({
      name: "glm_relay_stale_messages_total",
      help: "Messages of an older term or epoch that were dropped.",
      labelNames: ["reason"],
      registers,
    });
    for (const reason of staleMessages) this.#staleMessages.inc({ reason }, 0);
    this.#cacheHits = new Counter({
      name: "glm_relay_weight_cache_hits_total",
      help: "Files of packed weights, of a layer or the head each, that a load mapped from the cache.",
      registers,
    });
    this.#cacheMisses = new Counter({
      name: "glm_relay_weight_cache_misses_total",
      help: "Such files that a load did not find, or could not use, and made anew.",
      registers,
    });
    this.#cacheMappedBytes = new Gauge({
      name: "glm_relay_weight_cache_mapped_bytes",
      help: "Weights of the stage at hand that lie in mapped files of the cache.",
      registers,
    });
    this.#cacheWrittenBytes = new Counter({
      name: "glm_relay_weight_cache_written_bytes_total",
      help: "Packed weights written into the cache.",
      registers,
    });
  }

  /** Node's own metrics as well; for processes that are scraped. */
  addProcessMetrics(): void {
    collectDefaultMetrics({ register: this.#registry });
  }

  readonly contentType = this.#registry.contentType;

  scrape(): Promise<string> {
    return this.#registry.metrics();
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  get staleMessages(): number {
    return this.#stale;
  }

  /** Time linked and outside the engine since the process began, in microseconds. */
  get idleUs(): number {
    this.#countIdle();
    return Math.round(this.#idleUs);
  }

  /** A stage takes steps from now on, or none does. */
  linkedStage(stage: number | null): void {
    this.#countIdle();
    this.#linked = stage === null ? null : { stage, countedMs: performance.now(), computing: false };
  }

  stepBegins(): void {
    this.#countIdle();
    if (this.#linked !== null) this.#linked.computing = true;
  }

  step(stage: number, phase: Phase, computeUs: number): void {
    this.#stepSeconds.observe({ stage, phase }, computeUs / 1e6);
    this.#busySeconds.inc({ stage }, computeUs / 1e6);
    if (this.#linked === null) return;
    this.#linked.computing = false;
    this.#countIdle(computeUs);
  }

  /** A step's frame has left. */
  sent(stage: number, phase: Phase, ms: number): void {
    this.#sendSeconds.observe({ stage, phase }, ms / 1e3);
  }

  received(stage: number, bytes: number): void {
    this.#receivedBytes += bytes;
    this.#linkBytes.inc({ stage }, bytes);
  }

  /** Null: a stage without a cache. */
  weightCacheLoaded(report: WeightCacheReport | null): void {
    this.#cacheHits.inc(report?.hits ?? 0);
    this.#cacheMisses.inc(report?.misses ?? 0);
    this.#cacheMappedBytes.set(report?.mappedBytes ?? 0);
  }

  weightCacheWritten(bytes: number): void {
    this.#cacheWrittenBytes.inc(bytes);
  }

  stale(message: StaleMessage): void {
    this.#stale += 1;
    this.#staleMessages.inc({ reason: message });
  }

  /**
   * Counts the time since it was last counted, so that busy and idle together are the time linked. While
   * the engine computes nothing is counted: how much of it was busy is known at its end.
   */
  #countIdle(busyUs = 0): void {
    const linked = this.#linked;
    if (linked === null || linked.computing) return;
    const nowMs = performance.now();
    const idleUs = Math.max(0, (nowMs - linked.countedMs) * 1e3 - busyUs);
    linked.countedMs = nowMs;
    this.#idleUs += idleUs;
    this.#idleSeconds.inc({ stage: linked.stage }, idleUs / 1e6);
  }
}
