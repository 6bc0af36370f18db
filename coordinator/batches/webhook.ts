/**
 * Tells the ends of batches to those who asked for it: one signed POST per batch, as Standard Webhooks has them
 * (so that the openai client's `webhooks.unwrap` verifies them), tried again a bounded number of times. A receiver
 * may see one twice, under the same webhook-id.
 */
import { createHash, createHmac } from "node:crypto";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import type { Logger } from "../../common/log.js";
import type { BatchObject, FinalStatus } from "./batch.js";
import type { WebhookHosts } from "./webhook-hosts.js";

/** An attempt that takes longer has failed. */
export const attemptLimitMs = 10_000;
/** Pauses after the first attempt, the second, and so on; after the last one there is no other. */
export const pausesMs: readonly number[] = [1_000, 5_000, 15_000, 30_000, 60_000, 120_000, 300_000];
export const attemptsMax = pausesMs.length + 1;
/** Attempts at the same time; the others wait for their turn. */
const concurrencyMax = 16;

/** The end of one batch on its way to who asked for it. */
export interface Delivery {
  batchId: string;
  url: string;
  /** How the batch has ended. */
  end: FinalStatus;
  /** Unix seconds. */
  endedAt: number;
  status: NonNullable<BatchObject["webhook"]>["status"];
  /** Those that failed, and the one that did not. */
  attempts: number;
}

/** Where deliveries outlive the process. */
export interface DeliveryStore {
  /** Those that are pending when the process begins. */
  load(): readonly Delivery[];
  /** Writes down what has become of one. @throws when it cannot. */
  save(delivery: Delivery): Promise<void>;
}

/** One event as it is sent. */
export interface SignedEvent {
  headers: Record<string, string>;
  body: string;
}

/**
 * @param key Of the signature, HMAC-SHA256.
 * @param nowS Unix seconds of this attempt: receivers refuse what is older than some minutes.
 */
export function signedEvent(delivery: Delivery, key: Buffer, nowS: number): SignedEvent {
  // The same in every attempt, in every process.
  const id = `evt_${createHash("sha256").update(`${delivery.batchId} ${delivery.end}`).digest("hex").slice(0, 32)}`;
  const body = JSON.stringify({
    id,
    object: "event",
    type: `batch.${delivery.end}`,
    created_at: delivery.endedAt,
    data: { id: delivery.batchId },
  });
  const signature = createHmac("sha256", key).update(`${id}.${nowS}.${body}`).digest("base64");
  return {
    body,
    headers: {
      "content-type": "application/json",
      "content-length": String(Buffer.byteLength(body)),
      "user-agent": "glm-relay",
      "webhook-id": id,
      "webhook-timestamp": String(nowS),
      "webhook-signature": `v1,${signature}`,
    },
  };
}

/** What came of one attempt; a reason is for the log and never holds what a receiver wrote. */
export type Outcome = { delivered: true } | { delivered: false; again: boolean; reason: string };

/** One attempt. Redirects are not followed: they could lead to a host that nobody allowed. Never throws. */
export function post(
  url: string,
  { headers, body }: SignedEvent,
  signal: AbortSignal,
  limitMs = attemptLimitMs,
): Promise<Outcome> {
  const limit = AbortSignal.timeout(limitMs);
  return new Promise((resolve) => {
    const failed = (reason: string) => resolve({ delivered: false, again: true, reason });
    const request = url.startsWith("https:") ? httpsRequest : httpRequest;
    try {
      const outgoing = request(
        url,
        { method: "POST", headers, agent: false, signal: AbortSignal.any([signal, limit]) },
        (response) => {
          const status = response.statusCode ?? 0;
          response.on("error", () => {});
          response.destroy();
          if (status >= 200 && status < 300) resolve({ delivered: true });
          // "Gone" is how a receiver says that it wants no more.
          else resolve({ delivered: false, again: status !== 410, reason: `status ${status}` });
        },
      );
      outgoing.on("error", (error: NodeJS.ErrnoException) => {
        failed(limit.aborted ? `no answer within ${limitMs} ms` : (error.code ?? error.message));
      });
      outgoing.end(body);
    } catch (error) {
      failed((error as Error).message);
    }
  });
}

export interface WebhookOptions {
  hosts: WebhookHosts;
  /** Of the signatures; null: there are no hosts, so nothing is sent. */
  key: Buffer | null;
  store: DeliveryStore;
  log: Logger;
  /** Default: pausesMs, attemptLimitMs. */
  pausesMs?: readonly number[];
  attemptLimitMs?: number;
}

export class Webhooks {
  readonly #options: WebhookOptions;
  readonly #closing = new AbortController();
  /** What waits for the time of its next attempt, by batch. */
  readonly #pausing = new Map<string, NodeJS.Timeout>();
  /** Whose time has come and who waits for one of concurrencyMax places. */
  readonly #due: Delivery[] = [];
  #running = 0;

  constructor(options: WebhookOptions) {
    this.#options = options;
  }

  /** Goes on with what an earlier process left. */
  start(): void {
    for (const delivery of this.#options.store.load()) this.deliver(delivery);
  }

  /** @param delivery Pending, and written down already; it is not changed. */
  deliver(delivery: Delivery): void {
    if (this.#closing.signal.aborted) return;
    this.#after(this.#pauseMs(delivery.attempts), { ...delivery });
  }

  /** Cuts what runs; it is still pending, and the next process goes on with it. */
  close(): void {
    this.#closing.abort();
    for (const timer of this.#pausing.values()) clearTimeout(timer);
    this.#pausing.clear();
    this.#due.length = 0;
  }

  #after(ms: number, delivery: Delivery): void {
    const timer = setTimeout(() => {
      this.#pausing.delete(delivery.batchId);
      this.#due.push(delivery);
      this.#next();
    }, ms);
    timer.unref();
    clearTimeout(this.#pausing.get(delivery.batchId));
    this.#pausing.set(delivery.batchId, timer);
  }

  #next(): void {
    while (this.#running < concurrencyMax) {
      const delivery = this.#due.shift();
      if (delivery === undefined) return;
      this.#running += 1;
      void this.#attempt(delivery).finally(() => {
        this.#running -= 1;
        this.#next();
      });
    }
  }

  async #attempt(delivery: Delivery): Promise<void> {
    const outcome = await this.#send(delivery);
    // What was cut at the end of the process says nothing of the receiver.
    if (this.#closing.signal.aborted) return;
    delivery.attempts += 1;
    const fields = { batchId: delivery.batchId, attempts: delivery.attempts };
    if (outcome.delivered) {
      delivery.status = "delivered";
    } else if (outcome.again && delivery.attempts < this.#pauses.length + 1) {
      this.#options.log.info({ ...fields, reason: outcome.reason }, "a webhook is tried again");
    } else {
      delivery.status = "failed";
      this.#options.log.warn({ ...fields, reason: outcome.reason }, "a webhook is given up");
    }
    try {
      await this.#options.store.save({ ...delivery });
    } catch (error) {
      // The next process may send once more what was delivered: under the same id.
      this.#options.log.warn({ ...fields, err: error }, "what became of a webhook could not be written down");
    }
    if (delivery.status === "pending" && !this.#closing.signal.aborted) {
      this.#after(this.#pauseMs(delivery.attempts), delivery);
    }
  }

  async #send(delivery: Delivery): Promise<Outcome> {
    const { hosts, key } = this.#options;
    // It was allowed when the batch was made; another start of the coordinator may allow less.
    const refused = hosts.refuse(delivery.url);
    if (refused !== null || key === null)
      return { delivered: false, again: false, reason: refused ?? "there is no key to sign it with" };
    const event = signedEvent(delivery, key, Math.floor(Date.now() / 1_000));
    return post(delivery.url, event, this.#closing.signal, this.#options.attemptLimitMs);
  }

  get #pauses(): readonly number[] {
    return this.#options.pausesMs ?? pausesMs;
  }

  #pauseMs(attempts: number): number {
    return attempts === 0 ? 0 : (this.#pauses[attempts - 1] ?? this.#pauses.at(-1)!);
  }
}
