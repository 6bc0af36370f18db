/**
 * The live request queue: BullMQ on Redis, and the ledger of admitted requests beside it. A job is
 * finished when its ledger record is written and it stands in the waiting set, not when it is
 * answered: BullMQ would otherwise run long answers twice after a stall.
 */
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { Registry } from "prom-client";
import { RelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import type { Logger } from "../../common/log.js";
import type { GenerationRequest } from "../inference.js";
import type { RequestClass } from "../request-class.js";
import { RedisLedger } from "./ledger.js";
import { QueueMetrics } from "./metrics.js";
import type { RequestQueue } from "./queue.js";
import { fromRecord, type RequestRecord, toRecord } from "./record.js";
import { redisName, redisOptions, requireFitRedis } from "./redis.js";

/** Jobs admitted at the same time; each waits for one write to Redis. */
const admitConcurrency = 64;
/** The coordinator's loop is never blocked for half of this, else a job would be taken for stalled. */
const lockDurationMs = 30_000;
/** The lower one goes first; 0 would mean before everything else. */
const jobPriority: Record<RequestClass, number> = { interactive: 10, batch: 20 };
/** An admission fails only when its ledger record could not be written: Redis was away for a moment. */
const admitRetry = { attempts: 5, backoff: { type: "fixed", delay: 200 } };
/** BullMQ's close has no deadline of its own. */
const closeLimitMs = 2_000;

const queueName = "requests";
/** A number never goes down. */
const raiseScript =
  "if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[1]) or '0') then redis.call('SET', KEYS[1], ARGV[1]) end";
/** States that a job of ours can stay in: with a priority it waits as `prioritized`, between attempts as `delayed`. */
const countedStates = ["waiting", "prioritized", "active", "delayed"] as const;

export class BullmqQueue implements RequestQueue {
  readonly ledger: RedisLedger;
  readonly #url: string;
  readonly #prefix: string;
  readonly #log: Logger;
  readonly #commands: Redis;
  readonly #queue: Queue<RequestRecord>;
  readonly #metrics: QueueMetrics;
  #worker: Worker<RequestRecord> | null = null;
  readonly #listeners: ((up: boolean) => void)[] = [];
  #isUp = true;
  #closing = false;

  /**
   * @param name Namespace of this cluster's keys: `glm-relay:NAME:...`.
   * @param registry Where the queue's metrics are served from.
   * @throws RelayError queue_unavailable, invalid_configuration (see requireFitRedis).
   */
  static async open(
    url: string,
    name: string,
    log: Logger,
    registry: Registry = new Registry(),
  ): Promise<BullmqQueue> {
    await requireFitRedis(url);
    const commands = new Redis({ ...redisOptions(url, false), lazyConnect: true });
    const queue = new BullmqQueue(url, name, commands, log, registry);
    await queue.#queue.waitUntilReady();
    return queue;
  }

  private constructor(url: string, name: string, commands: Redis, log: Logger, registry: Registry) {
    this.#url = url;
    this.#prefix = `glm-relay:${name}`;
    this.#log = log;
    this.#commands = commands;
    commands.on("error", () => this.#setUp(false));
    commands.on("close", () => this.#setUp(false));
    commands.on("ready", () => this.#setUp(true));
    this.ledger = new RedisLedger(commands, this.#prefix, log);
    this.#queue = new Queue(queueName, {
      connection: commands,
      prefix: this.#prefix,
      defaultJobOptions: { ...admitRetry, removeOnComplete: true, removeOnFail: true },
    });
    // Whether Redis is there is told by `commands`, which the queue uses too: who hears "up" can add at once.
    this.#queue.on("error", (error) => log.debug({ err: error }, "queue"));
    this.#metrics = new QueueMetrics(registry, queueName, () => this.#queue.getJobCounts(...countedStates));
  }

  get up(): boolean {
    return this.#isUp;
  }

  onUpChange(listener: (up: boolean) => void): void {
    this.#listeners.push(listener);
  }

  /** A number that no earlier leadership of this cluster had. */
  async nextTerm(): Promise<number> {
    return this.#answered(() => this.#commands.incr(`${this.#prefix}:term`));
  }

  /** Writes down a term that workers know, or this process has, and Redis may have forgotten; a later one stays. */
  raiseTerm(term: number): void {
    this.#behind(this.#commands.eval(raiseScript, 1, `${this.#prefix}:term`, term));
  }

  async add(request: GenerationRequest): Promise<void> {
    const options = { jobId: request.id, priority: jobPriority[request.class] };
    await this.#answered(() => this.#queue.add("generate", toRecord(request), options));
  }

  async remove(id: RequestId): Promise<void> {
    try {
      await this.#queue.remove(id);
    } catch (error) {
      this.#log.debug({ completionId: id, err: error }, "could not take a request out of the queue");
    }
  }

  async start(admit: (request: GenerationRequest) => void): Promise<void> {
    this.#worker = new Worker<RequestRecord>(
      queueName,
      async (job) => {
        const request = fromRecord(job.data);
        await this.#metrics.timed(() => this.ledger.admit(job.data));
        admit(request);
      },
      {
        connection: redisOptions(this.#url, true),
        prefix: this.#prefix,
        concurrency: admitConcurrency,
        lockDuration: lockDurationMs,
      },
    );
    this.#worker.on("error", (error) => this.#log.debug({ err: error }, "queue worker"));
    this.#worker.on("stalled", () => this.#metrics.stalled());
    this.#worker.on("failed", (job, error) => {
      if (job !== undefined && job.attemptsMade < admitRetry.attempts) this.#metrics.retried();
      const { logId: requestId, id: completionId } = job?.data ?? {};
      this.#log.warn({ requestId, completionId, err: error }, "a request could not be admitted");
    });
    await this.#worker.waitUntilReady();
  }

  async close(): Promise<void> {
    this.#closing = true;
    const deadline = new Promise<void>((resolve) => setTimeout(resolve, closeLimitMs).unref());
    const close = async () => {
      await this.#worker?.close();
      await this.ledger.close();
      await this.#queue.close();
    };
    await Promise.race([close().catch(() => undefined), deadline]);
    this.#commands.disconnect();
    await this.#worker?.disconnect().catch(() => {});
    await this.#queue.disconnect().catch(() => {});
  }

  /** Runs a command whose failure means that Redis is away. */
  async #answered<T>(command: () => Promise<T>): Promise<T> {
    try {
      return await command();
    } catch (error) {
      throw new RelayError(
        "queue_unavailable",
        `the queue (Redis at ${redisName(this.#url)}) does not answer`,
        {
          cause: error,
          retryAfterS: 1,
        },
      );
    }
  }

  /** A write that nobody waits for: while Redis is away it is lost, and its loss does no harm. */
  #behind(write: Promise<unknown>): void {
    write.catch((error: unknown) => this.#log.debug({ err: error }, "a write to Redis was lost"));
  }

  #setUp(up: boolean): void {
    if (this.#isUp === up || this.#closing) return;
    this.#isUp = up;
    this.#log[up ? "info" : "warn"](up ? "Redis answers again" : "Redis does not answer");
    for (const listener of this.#listeners) listener(up);
  }
}
