/** How many sequences the coordinator takes in, and when one that it refuses should come back. */
import { RelayError } from "../common/errors.js";
import { FinishRate } from "./finish-rate.js";
import type { RequestClass } from "./request-class.js";

/** Of the limit, what batch sequences may fill: a flood of them leaves room for interactive ones. */
const batchShare = 1 / 2;

export class Intake {
  readonly #limit: number;
  readonly #batchLimit: number;
  /** Sequences that wait or run. */
  readonly #open: Record<RequestClass, number> = { interactive: 0, batch: 0 };
  readonly #finishRate = new FinishRate();

  /** @param limit Sequences of all classes that may wait or run. */
  constructor(limit: number) {
    this.#limit = limit;
    this.#batchLimit = Math.ceil(limit * batchShare);
  }

  /** @throws RelayError queue_full when so many more are too many. */
  require(of: RequestClass, count: number, nowMs: number): void {
    const { batch, interactive } = this.#open;
    this.#requireRoom(batch + interactive, "", count, this.#limit, nowMs);
    if (of === "batch") this.#requireRoom(batch, " batch", count, this.#batchLimit, nowMs);
  }

  opened(of: RequestClass, count: number, nowMs: number): void {
    this.#open[of] += count;
    this.#finishRate.note(nowMs, this.#open.interactive + this.#open.batch);
  }

  /** @param finished Whether it was answered. */
  closed(of: RequestClass, finished: boolean, nowMs: number): void {
    this.#open[of]--;
    this.#finishRate.note(nowMs, this.#open.interactive + this.#open.batch, finished ? 1 : 0);
  }

  #requireRoom(open: number, kind: string, count: number, limit: number, nowMs: number): void {
    const excess = open + count - limit;
    if (excess <= 0) return;
    const message =
      `${open}${kind} sequences are waiting or running, ` +
      `and ${count} more would be above the limit of ${limit}`;
    throw new RelayError("queue_full", message, { retryAfterS: this.#finishRate.retryAfterS(nowMs, excess) });
  }
}
