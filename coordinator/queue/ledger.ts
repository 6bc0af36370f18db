/**
 * The ledger in Redis: a record per admitted request, the tokens decided for it since, and the answers of
 * requests that ended without their client. All writes but the record's are behind: nobody waits for them.
 */
import type { ChainableCommander, Redis } from "ioredis";
import { systemTimers, type Timer, type Timers } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import type { Logger } from "../../common/log.js";
import type { GenerationRequest } from "../inference.js";
import { isCalled } from "../orphans.js";
import { DecidedTokens, tokenBytes } from "./decided-tokens.js";
import { answerTtlS, LedgerKeys, recordTtlS } from "./ledger-keys.js";
import { readLedger } from "./ledger-reader.js";
import type { LedgerEntry, RequestLedger } from "./queue.js";
import { type RequestRecord, toRecord } from "./record.js";

/** At most one pipelined write of decided tokens in so long. */
export const flushMs = 100;
/** Keys deleted by one command. */
const deleteCount = 256;
/** Keys that wait for Redis to come back to be deleted; what is beyond ends with its time to live. */
const maxEndedKeys = 65_536;
/** Answers that wait for Redis to come back, in characters; the requests of those beyond stay in the ledger. */
const maxWaitingAnswers = 64 * 1024 * 1024;

export class RedisLedger implements RequestLedger {
  readonly #redis: Redis;
  readonly #keys: LedgerKeys;
  readonly #log: Logger;
  readonly #timers: Pick<Timers, "after" | "soon">;
  readonly #tokens = new DecidedTokens();
  #flushTimer: Timer | null = null;
  #flushing: Promise<void> | null = null;
  /** Keys that the next turn of the event loop deletes, or Redis' return. */
  #endedKeys: string[] = [];
  #deleting: Promise<void> | null = null;
  /** Answers that are being written, or wait for Redis' return. */
  readonly #answers = new Map<RequestId, { request: GenerationRequest; answer: string; keys: string[] }>();
  #answersLength = 0;

  /** @param redis Fails at once while it is away. */
  constructor(
    redis: Redis,
    prefix: string,
    log: Logger,
    timers: Pick<Timers, "after" | "soon"> = systemTimers,
  ) {
    this.#redis = redis;
    this.#keys = new LedgerKeys(prefix);
    this.#log = log;
    this.#timers = timers;
    redis.on("ready", () => {
      this.#scheduleDelete();
      for (const [id] of this.#answers) this.#writeAnswer(id);
    });
  }

  async read(tokenCount: number): Promise<LedgerEntry[]> {
    const entries = await answered(() => readLedger(this.#redis, this.#keys, { tokenCount, log: this.#log }));
    for (const { request, decided } of entries) {
      this.#tokens.restore(
        request.id,
        decided.map(({ length }) => length),
      );
    }
    return entries;
  }

  /** Resolves when the record is written. */
  async admit(record: RequestRecord): Promise<void> {
    await this.#redis.set(this.#keys.record(record.id), JSON.stringify(record), "EX", recordTtlS);
  }

  restate(request: GenerationRequest, keepsTokens: boolean): void {
    const { id } = request;
    const record = JSON.stringify(toRecord(request));
    const write = this.#redis.multi().set(this.#keys.record(id), record, "EX", recordTtlS);
    const stale = keepsTokens ? [] : this.#tokens.forget(id).map((choice) => this.#keys.tokens(id, choice));
    if (stale.length > 0) write.del(...stale);
    void this.#behind(write);
  }

  decided(id: RequestId, choice: number, tokens: readonly number[]): void {
    this.#tokens.note(id, choice, tokens);
    this.#scheduleFlush();
  }

  ended(id: RequestId): void {
    this.#endedKeys.push(...this.#keysOf(id));
    this.#scheduleDelete();
  }

  keepAnswer(request: GenerationRequest, answer: string): void {
    const { id } = request;
    const keys = this.#keysOf(id);
    if (this.#answersLength + answer.length > maxWaitingAnswers) {
      this.#log.warn({ completionId: id }, "Redis is away and too many answers wait for it: one is lost");
      return;
    }
    this.#answersLength += answer.length;
    this.#answers.set(id, { request, answer, keys });
    this.#writeAnswer(id);
  }

  async answer(name: string, tenant: string): Promise<string | null> {
    for (const { request, answer } of this.#answers.values()) {
      if (isCalled(request, name, tenant)) return answer;
    }
    return answered(async () => {
      const kept = await this.#redis.get(this.#keys.answer(name));
      if (kept !== null) return kept;
      const id = await this.#redis.get(this.#keys.named({ tenant, logId: name }));
      return id === null ? null : this.#redis.get(this.#keys.answer(id));
    });
  }

  /** Writes what can be written now. */
  async close(): Promise<void> {
    this.#flushTimer?.cancel();
    this.#flushTimer = null;
    await this.#flushing;
    while (this.#endedKeys.length > 0 && this.#redis.status === "ready") await this.#deleteEnded();
  }

  #scheduleFlush(): void {
    if (this.#flushTimer !== null || !this.#tokens.isDue) return;
    const flush = () => {
      this.#flushTimer = null;
      this.#flush();
    };
    this.#flushTimer = this.#timers.after(flushMs, flush, false);
  }

  /** One write at a time: a Redis that is slow gets fewer and longer ones. */
  #flush(): void {
    if (this.#flushing !== null) return;
    if (this.#redis.status !== "ready") {
      this.#scheduleFlush();
      return;
    }
    const pipeline = this.#redis.pipeline();
    for (const { id, choice, position, tokens } of this.#tokens.take()) {
      const key = this.#keys.tokens(id, choice);
      pipeline.setrange(key, 4 * position, tokenBytes(tokens));
      if (position === 0) pipeline.expire(key, recordTtlS);
    }
    this.#flushing = this.#behind(pipeline).then((stored) => {
      this.#flushing = null;
      this.#tokens.settle(stored);
      this.#scheduleFlush();
    });
  }

  #scheduleDelete(): void {
    if (this.#endedKeys.length === 0 || this.#deleting !== null) return;
    this.#deleting = new Promise<void>((resolve) => this.#timers.soon(resolve))
      .then(() => this.#deleteEnded())
      .then((stored) => {
        this.#deleting = null;
        if (stored) this.#scheduleDelete();
      });
  }

  /** A lost worker ends thousands of requests at once. */
  async #deleteEnded(): Promise<boolean> {
    const keys = this.#endedKeys.splice(0, deleteCount);
    if (keys.length === 0) return true;
    const stored = await this.#behind(this.#redis.pipeline().del(...keys));
    if (!stored) this.#endedKeys = this.#endedKeys.concat(keys).slice(0, maxEndedKeys);
    return stored;
  }

  /** The answer takes the record's place in one go: a crash in between would compute it once more. */
  #writeAnswer(id: RequestId): void {
    const { request, answer, keys } = this.#answers.get(id)!;
    const write = this.#redis
      .multi()
      .set(this.#keys.answer(id), answer, "EX", answerTtlS)
      .set(this.#keys.named(request), id, "EX", answerTtlS)
      .del(...keys);
    void this.#behind(write).then((stored) => {
      if (!stored || !this.#answers.delete(id)) return;
      this.#answersLength -= answer.length;
    });
  }

  /** While Redis is away a write is lost, and its loss does no harm. @returns Whether all of it is stored. */
  async #behind(write: ChainableCommander): Promise<boolean> {
    try {
      const results = await write.exec();
      const failed = results?.find(([error]) => error !== null)?.[0];
      if (failed != null) this.#log.debug({ err: failed }, "a write to the ledger failed");
      return results !== null && failed === undefined;
    } catch (error) {
      this.#log.debug({ err: error }, "a write to the ledger was lost");
      return false;
    }
  }

  #keysOf(id: RequestId): string[] {
    const choices = this.#tokens.forget(id);
    return [this.#keys.record(id), ...choices.map((choice) => this.#keys.tokens(id, choice))];
  }
}

async function answered<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (cause) {
    throw new RelayError("queue_unavailable", "the ledger (Redis) does not answer", {
      cause,
      retryAfterS: 1,
    });
  }
}
