/** How batches begin: their input is checked, and prepared to be run. */
import type { Logger } from "../../common/log.js";
import { isDiskFull } from "../files/disk.js";
import type { BatchStore } from "./batch-store.js";
import type { BatchThread } from "./batch-thread.js";
import type { BatchChanges } from "./changes.js";
import type { CheckResult } from "./check.js";
import type { BatchEnding } from "./ending.js";
import type { LiveBatch } from "./live-batch.js";

/** Starts of the thread for one input that a fault of ours may cost. */
const maxAttempts = 3;

export class Validating {
  constructor(
    private readonly parts: {
      store: BatchStore;
      thread: BatchThread;
      changes: BatchChanges;
      ending: BatchEnding;
      draining: AbortSignal;
      log: Logger;
    },
  ) {}

  /** @returns Whether the batch is in progress then; it may also have been cancelled meanwhile, or its input is bad. */
  async run(batch: LiveBatch): Promise<boolean> {
    const { store, changes, ending } = this.parts;
    const result = await this.#check(batch);
    if (result === null || batch.object.status !== "validating") return false;
    const { problems, total, jobs } = result;
    if (problems.length > 0) {
      batch.object.errors = { object: "list", data: problems };
      await ending.end(batch, "invalid");
      return false;
    }
    batch.record.jobs = jobs;
    batch.begin(total);
    changes.apply(batch, "valid");
    if (!(await changes.saved(batch))) return false;
    await store.removeSource(batch.id).catch(() => undefined);
    return true;
  }

  /** Null when this process or the batch ends before. */
  async #check({ id, object }: LiveBatch): Promise<CheckResult | null> {
    const { store, thread, changes, draining, log } = this.parts;
    const { source, prepared } = store.paths(id);
    for (let attempt = 1; object.status === "validating"; attempt++) {
      try {
        return await thread.run("check", {
          source,
          prepared,
          endpoint: object.endpoint,
          model: object.model,
        });
      } catch (error) {
        if (draining.aborted) return null;
        log.error({ batchId: id, attempt, err: error }, "the input of a batch could not be checked");
        if (!isDiskFull(error) && attempt >= maxAttempts) {
          const message = `the input could not be checked: ${(error as Error).message}`;
          return {
            total: 0,
            jobs: [],
            problems: [{ code: "invalid_value", line: null, message, param: null }],
          };
        }
        await changes.pause();
      }
    }
    return null;
  }
}
