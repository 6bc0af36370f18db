/** The request queue in simulated Redis: what bullmq-queue.ts keeps of its contract, with BullMQ's ways of failing. */
import type { Redis } from "ioredis";
import { RelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import type { Logger } from "../../common/log.js";
import type { GenerationRequest } from "../../coordinator/inference.js";
import { RedisLedger } from "../../coordinator/queue/ledger.js";
import type { RequestQueue } from "../../coordinator/queue/queue.js";
import { fromRecord, type RequestRecord, toRecord } from "../../coordinator/queue/record.js";
import type { Random } from "../random.js";
import type { Process } from "./process.js";
import { RedisClient, type SimRedis } from "./redis.js";
import type { World } from "./world.js";

const prefix = "sim";
const termKey = `${prefix}:term`;
const jobKey = `${prefix}:job:`;
/** As in bullmq-queue.ts. */
const concurrency = 64;
const retryMs = 200;
const attempts = 5;
/** A job whose process died is handed on again after this (BullMQ's 30 s lock, shorter to save time). */
const stalledMs = 12_000;
/** How soon a worker that waits inside Redis sees a new job. */
const pollMs = 100;
/** Jobs that may come again. */
const maxPast = 16;

interface Job {
  readonly record: RequestRecord;
  readonly priority: number;
  readonly order: number;
  readonly attempts: number;
  /** Not handed on before; of one under way: until it counts as stalled. */
  readonly notBeforeMs: number;
}

export class SimQueue implements RequestQueue {
  readonly ledger: RedisLedger;
  readonly #world: World;
  readonly #redis: SimRedis;
  readonly #process: Process;
  #admit: ((request: GenerationRequest) => void) | null = null;
  #active = 0;
  static #order = 0;
  /** Jobs that were added here, the newest ones. */
  #past: { key: string; job: Job }[] = [];

  constructor(world: World, redis: SimRedis, process: Process, log: Logger) {
    this.#world = world;
    this.#redis = redis;
    this.#process = process;
    const client = new RedisClient(redis, process) as unknown as Redis;
    this.ledger = new RedisLedger(client, prefix, log, process.timers);
  }

  get up(): boolean {
    return this.#redis.up;
  }

  onUpChange(listener: (up: boolean) => void): void {
    const off = this.#redis.onUp((up) => this.#process.run(() => listener(up)));
    this.#process.onDeath(off);
  }

  nextTerm(): Promise<number> {
    return this.#redis.call(this.#process, () => {
      const term = ((this.#redis.get(termKey) as number | undefined) ?? 0) + 1;
      this.#redis.set(termKey, term);
      return term;
    });
  }

  raiseTerm(term: number): void {
    const raise = () => {
      const known = (this.#redis.get(termKey) as number | undefined) ?? 0;
      if (term > known) this.#redis.set(termKey, term);
    };
    this.#redis.call(this.#process, raise).catch(() => {});
  }

  async add(request: GenerationRequest): Promise<void> {
    const record = JSON.parse(JSON.stringify(toRecord(request))) as RequestRecord;
    const priority = request.class === "batch" ? 20 : 10;
    try {
      await this.#redis.call(this.#process, () => {
        const key = jobKey + request.id;
        if (this.#redis.get(key) !== undefined) return;
        const job: Job = { record, priority, order: SimQueue.#order++, attempts: 0, notBeforeMs: 0 };
        this.#redis.set(key, job);
        this.#past = [...this.#past, { key, job }].slice(-maxPast);
      });
    } catch (cause) {
      throw new RelayError("queue_unavailable", "Redis does not answer", { cause, retryAfterS: 1 });
    }
    this.#process.timers.soon(() => this.#pull());
  }

  async remove(id: RequestId): Promise<void> {
    try {
      await this.#redis.call(this.#process, () => {
        const job = this.#redis.get(jobKey + id) as Job | undefined;
        // One that is under way is locked.
        if (job !== undefined && job.notBeforeMs <= this.#nowMs) this.#redis.set(jobKey + id, undefined);
      });
    } catch {
      // Its admission finds nobody who waits for it.
    }
  }

  /** One of the last jobs is there once more. */
  repeat(random: Random): void {
    if (this.#past.length === 0) return;
    const { key, job } = random.pick(this.#past);
    if (this.#redis.get(key) === undefined) this.#redis.set(key, job);
  }

  async start(admit: (request: GenerationRequest) => void): Promise<void> {
    this.#admit = admit;
    this.#process.timers.every(pollMs, () => this.#pull());
  }

  async close(): Promise<void> {
    await this.ledger.close();
  }

  get #nowMs(): number {
    return this.#world.loop.nowMs();
  }

  #pull(): void {
    while (this.#redis.up && this.#active < concurrency) {
      const key = this.#next();
      if (key === null) return;
      const job = this.#redis.get(key) as Job;
      this.#active++;
      this.#redis.set(key, { ...job, notBeforeMs: this.#nowMs + stalledMs });
      void this.#work(key, job);
    }
  }

  /** The job whose turn it is: by class, then by age. */
  #next(): string | null {
    let best: { key: string; job: Job } | null = null;
    for (const key of this.#redis.keys(jobKey)) {
      const job = this.#redis.get(key) as Job;
      if (job.notBeforeMs > this.#nowMs) continue;
      const goesFirst =
        best === null ||
        job.priority < best.job.priority ||
        (job.priority === best.job.priority && job.order < best.job.order);
      if (goesFirst) best = { key, job };
    }
    return best?.key ?? null;
  }

  async #work(key: string, job: Job): Promise<void> {
    try {
      await this.ledger.admit(job.record);
      this.#admit!(fromRecord(job.record));
      await this.#settled(() => this.#redis.set(key, undefined));
    } catch {
      const failed = job.attempts + 1;
      const notBeforeMs = this.#nowMs + retryMs;
      const again = failed < attempts ? { ...job, attempts: failed, notBeforeMs } : undefined;
      await this.#settled(() => this.#redis.set(key, again));
    }
    this.#active--;
    this.#pull();
  }

  /** BullMQ's own connection tries until Redis answers. */
  async #settled(command: () => void): Promise<void> {
    for (;;) {
      try {
        await this.#redis.call(this.#process, command);
        return;
      } catch {
        await new Promise<void>((resolve) => this.#process.timers.after(retryMs, resolve));
      }
    }
  }
}
