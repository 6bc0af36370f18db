/** Figures of the queue and of Redis below it, in the coordinator's registry. */
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import { stepBuckets } from "../../common/buckets.js";

/** A scrape waits so long for Redis and shows no counts then: old ones would look like news. */
const countLimitMs = 500;
/** Counts are asked for again after this, however often somebody scrapes. */
const countCacheMs = 2_000;

/** Jobs by the states that BullMQ gives them. */
export type JobCounts = Record<string, number>;

export class QueueMetrics {
  readonly #queue: string;
  readonly #stalled: Counter;
  readonly #retried: Counter;
  readonly #roundtrip: Histogram;
  readonly #countJobs: () => Promise<JobCounts>;
  #counted: { atMs: number; counts: JobCounts | null } | null = null;
  /** At most one question waits for Redis, so a Redis that hangs collects none. */
  #counting: Promise<JobCounts | null> | null = null;

  /** @param countJobs Asks Redis; may fail or never answer. */
  constructor(registry: Registry, queue: string, countJobs: () => Promise<JobCounts>) {
    const registers = [registry];
    this.#queue = queue;
    this.#countJobs = countJobs;
    const collect = () => this.#collect(jobs);
    const jobs: Gauge = new Gauge({
      name: "glm_relay_queue_jobs",
      help: "Jobs in the queue; absent while Redis does not answer.",
      labelNames: ["queue", "state"],
      registers,
      collect,
    });
    const counter = (name: string, help: string) => {
      const metric = new Counter({ name: `glm_relay_${name}`, help, labelNames: ["queue"], registers });
      metric.inc({ queue }, 0);
      return metric;
    };
    this.#stalled = counter("jobs_stalled_total", "Jobs whose lock ran out, so that they ran again.");
    this.#retried = counter(
      "jobs_retried_total",
      "Attempts at admitting a request that failed and are repeated.",
    );
    this.#roundtrip = new Histogram({
      name: "glm_relay_redis_roundtrip_seconds",
      help: "Time of commands whose answer is waited for: ledger records, and counts at a scrape.",
      buckets: stepBuckets,
      registers,
    });
  }

  stalled(): void {
    this.#stalled.inc({ queue: this.#queue });
  }

  retried(): void {
    this.#retried.inc({ queue: this.#queue });
  }

  /** Runs a command and observes how long its answer took; a failure is no round trip. */
  async timed<T>(command: () => Promise<T>): Promise<T> {
    const startedMs = performance.now();
    const answer = await command();
    this.#roundtrip.observe((performance.now() - startedMs) / 1_000);
    return answer;
  }

  /** Never throws: that would fail the whole page. */
  async #collect(jobs: Gauge): Promise<void> {
    const counts = await this.#freshCounts();
    jobs.reset();
    for (const [state, count] of Object.entries(counts ?? {})) jobs.set({ queue: this.#queue, state }, count);
  }

  async #freshCounts(): Promise<JobCounts | null> {
    const counted = this.#counted;
    if (counted !== null && performance.now() - counted.atMs < countCacheMs) return counted.counts;
    this.#counting ??= this.#count().finally(() => {
      this.#counting = null;
    });
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<null>((resolve) => {
      timer = setTimeout(resolve, countLimitMs, null);
    });
    const counts = await Promise.race([this.#counting, limit]);
    clearTimeout(timer);
    return counts;
  }

  async #count(): Promise<JobCounts | null> {
    const counts = await this.timed(this.#countJobs).catch(() => null);
    this.#counted = { atMs: performance.now(), counts };
    return counts;
  }
}
