/** Follows a batch to its end with its progress shown; a signal ends the watching, not the batch. */
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { exitStatus } from "../errors.js";
import { listenForStop } from "../signals.js";
import type { BatchClient } from "./client.js";
import { follow } from "./follow.js";
import { BatchTracker, type Progress, ProgressDisplay } from "./progress.js";
import { Patience } from "./retry.js";

/** What a command does until it is done, or somebody wants its end. */
export class Session {
  readonly patience: Patience;
  readonly tracker = new BatchTracker();
  /** What is shown in place of the batch: the upload before it. */
  instead: Progress | null = null;
  readonly #display: ProgressDisplay;
  readonly #stop: ReturnType<typeof listenForStop>;
  readonly #cut = new AbortController();
  #signal: NodeJS.Signals | null = null;

  constructor() {
    // Whoever watches may leave before the work is done.
    process.stderr.on("error", () => undefined);
    this.patience = new Patience(this.#cut.signal, (reason) => this.tracker.away(reason));
    this.#display = new ProgressDisplay(
      process.stderr,
      () => this.instead ?? this.tracker.progress(performance.now()),
    );
    this.#stop = listenForStop(() => process.exit(exitStatus.failed));
    void this.#stop.requested.then((signal) => {
      this.#signal = signal;
      this.#cut.abort(new Error(signal));
    });
  }

  /** The signal by which somebody wanted the end; null without one. */
  get signal(): NodeJS.Signals | null {
    return this.#signal;
  }

  print(line: string): void {
    this.#display.print(line);
  }

  /** @returns The batch in its final state. */
  async follow(client: BatchClient, id: string): Promise<BatchObject> {
    let last: BatchObject | null = null;
    for await (const batch of follow(client, id, this.patience)) {
      this.tracker.note(batch, performance.now());
      last = batch;
    }
    return last!;
  }

  /** Shows the last state, which stays. */
  end(): void {
    this.#stop.release();
    this.#display.stop();
  }
}
