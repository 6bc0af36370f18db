/**
 * Jobs of batches in BullMQ. The ledgers say what is done, so whatever Redis forgets or hands on twice does no harm:
 * jobs are put there again under the same name, and one that this process runs already is waited for.
 */
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import { redisName, redisOptions } from "../queue/redis.js";
import type { JobName, JobQueue } from "./jobs.js";
import { jobConcurrency } from "./limits.js";

const queueName = "batch-lines";
/** The coordinator's loop is never blocked for half of this, else a job would be taken for stalled. */
const lockDurationMs = 30_000;
/** A job that stalls is run again however often: what it has done stands in its ledger. */
const maxStalledCount = 1_000_000;
/**
 * The first jobs of batches of priority 0; those of others stand so far away. Later jobs of a batch come behind the
 * first ones of all others of its priority: a small batch is not kept waiting by a large one. All are between BullMQ's
 * 1 and 2^21.
 */
const middlePriority = 2 ** 20;
const priorityStep = 10_000;
/** BullMQ's close has no deadline of its own. */
const closeLimitMs = 2_000;
/** How often a start that Redis does not answer is tried again. */
const startRetryMs = 1_000;
/** Jobs that one command puts into the queue. */
const addGroup = 256;

export class BullmqJobs implements JobQueue {
  readonly #url: string;
  readonly #prefix: string;
  readonly #log: Logger;
  readonly #commands: Redis;
  /** Null until Redis has answered for the first time: a queue that is made before is of no use later. */
  #queue: Queue<JobName> | null = null;
  #worker: Worker<JobName> | null = null;
  #closed = false;
  #endPause: (() => void) | null = null;

  /** @param name Namespace of this cluster's keys: `glm-relay:NAME:...`. */
  constructor(url: string, name: string, log: Logger) {
    this.#url = url;
    this.#prefix = `glm-relay:${name}`;
    this.#log = log;
    this.#commands = new Redis({ ...redisOptions(url, false), lazyConnect: true });
    // The queue of requests tells whether Redis is there.
    this.#commands.on("error", () => undefined);
    this.#commands.connect().catch(() => undefined);
  }

  async add(jobs: readonly JobName[], priority: number): Promise<void> {
    const queue = this.#queue;
    try {
      if (queue === null) throw new Error("it has not answered yet");
      for (let begin = 0; begin < jobs.length; begin += addGroup) {
        const group = jobs.slice(begin, begin + addGroup).map((job) => ({
          name: "lines",
          data: job,
          opts: {
            jobId: `${job.batchId}-${job.index}`,
            priority: middlePriority + priorityStep * priority + job.index,
          },
        }));
        await queue.addBulk(group);
      }
    } catch (cause) {
      const message = `the queue (Redis at ${redisName(this.#url)}) does not take the jobs of a batch`;
      throw new RelayError("queue_unavailable", message, { cause, retryAfterS: 1 });
    }
  }

  async start(run: (job: JobName) => Promise<void>): Promise<void> {
    this.#queue = await this.#cleared();
    if (this.#queue === null) return;
    this.#worker = new Worker<JobName>(queueName, ({ data }) => run(data), {
      connection: redisOptions(this.#url, true),
      prefix: this.#prefix,
      concurrency: jobConcurrency,
      lockDuration: lockDurationMs,
      maxStalledCount,
    });
    this.#worker.on("error", (error) => this.#log.debug({ err: error }, "queue worker of batches"));
    this.#worker.on("stalled", (jobId) =>
      this.#log.info({ jobId }, "a job of a batch stalled and comes again"),
    );
    this.#worker.on("failed", (job, error) => {
      this.#log.warn({ ...job?.data, err: error }, "a job of a batch failed; it comes again");
    });
  }

  onUp(listener: () => void): void {
    this.#commands.on("ready", () => {
      if (this.#worker !== null) listener();
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#endPause?.();
    const deadline = new Promise<void>((resolve) => setTimeout(resolve, closeLimitMs).unref());
    const close = async () => {
      await this.#worker?.close();
      await this.#queue?.close();
    };
    await Promise.race([close().catch(() => undefined), deadline]);
    this.#commands.disconnect();
    await this.#worker?.disconnect().catch(() => {});
    await this.#queue?.disconnect().catch(() => {});
  }

  /**
   * The queue without what an earlier process left: its jobs would wait for a lock to run out that nobody holds.
   * Whoever starts puts in again what is still to be done. Null when this is closed before Redis answers.
   */
  async #cleared(): Promise<Queue<JobName> | null> {
    while (!this.#closed) {
      const queue = this.#commands.status === "ready" ? this.#open() : null;
      try {
        await queue?.obliterate({ force: true });
        if (queue !== null) return queue;
      } catch (error) {
        this.#log.debug({ err: error }, "the queue of batches cannot be cleared yet");
        await queue?.close().catch(() => undefined);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, startRetryMs);
        this.#endPause = () => {
          clearTimeout(timer);
          resolve();
        };
        if (queue === null) this.#commands.once("ready", this.#endPause);
      });
    }
    return null;
  }

  #open(): Queue<JobName> {
    const queue = new Queue<JobName>(queueName, {
      connection: this.#commands,
      prefix: this.#prefix,
      defaultJobOptions: { removeOnComplete: true, removeOnFail: true },
    });
    queue.on("error", (error) => this.#log.debug({ err: error }, "queue of batches"));
    return queue;
  }
}
