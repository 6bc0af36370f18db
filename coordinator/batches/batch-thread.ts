/** Runs the work of work.ts, one piece after the other, in a thread that is there while there is work. */
import { Worker } from "node:worker_threads";
import { RelayError } from "../../common/errors.js";
import { threadFile } from "../thread-file.js";
import type { Work, WorkAnswer, WorkKind } from "./work.js";

/** A thread without work ends after so long. */
const idleMs = 10_000;

export class BatchThread {
  #thread: Worker | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #idle: NodeJS.Timeout | null = null;
  #waiting = 0;
  #closed = false;

  /**
   * At most as many wait as there are batches that have not ended.
   * @throws Error with the code that the operating system gave it, or RelayError draining.
   */
  run<Kind extends WorkKind>(kind: Kind, task: Work[Kind]["task"]): Promise<Work[Kind]["result"]> {
    this.#waiting++;
    const run = this.#last.then(() => this.#run(kind, task));
    this.#last = run
      .catch(() => undefined)
      .then(() => {
        this.#waiting--;
        if (this.#waiting === 0) this.#restSoon();
      });
    return run;
  }

  async close(): Promise<void> {
    this.#closed = true;
    if (this.#idle !== null) clearTimeout(this.#idle);
    await this.#thread?.terminate();
    await this.#last;
  }

  async #run<Kind extends WorkKind>(kind: Kind, task: Work[Kind]["task"]): Promise<Work[Kind]["result"]> {
    if (this.#closed) throw new RelayError("draining", "the server is shutting down");
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#thread ??= new Worker(threadFile(import.meta.url, "work-thread.js"));
    const thread = this.#thread;
    const answer = await new Promise<WorkAnswer>((resolve, reject) => {
      const gone = () => {
        this.#thread = null;
        reject(
          this.#closed
            ? new RelayError("draining", "the server is shutting down")
            : new Error("the thread ended"),
        );
      };
      const done = (message: WorkAnswer) => {
        thread.off("exit", gone).off("error", reject);
        resolve(message);
      };
      thread.once("message", done).once("error", reject).once("exit", gone);
      thread.postMessage({ kind, task });
    });
    if ("result" in answer) return answer.result as Work[Kind]["result"];
    throw Object.assign(new Error(answer.message), answer.code === undefined ? {} : { code: answer.code });
  }

  #restSoon(): void {
    this.#idle = setTimeout(() => {
      void this.#thread?.terminate();
      this.#thread = null;
    }, idleMs).unref();
    this.#thread?.unref();
  }
}
