/**
 * What computes the steps of one worker, one after the other in the order in which they came. Workers of one host
 * that share its memory and its cores slow each other down while they compute at the same time: what is left of a
 * step is then done at the new pace.
 */
import type { EventLoop, Planned } from "../event-loop.js";
import { slowdowns } from "./sharing.js";
import type { StepCost } from "./timing.js";

export interface Job {
  cost: StepCost;
  /** @param busyMs Time in which it was computed. */
  done(startMs: number, busyMs: number): void;
}

export interface Processor {
  /** @param atMs When it arrives, not before now, and not before those that were announced earlier. */
  submit(job: Job, atMs: number): void;
  /** A step is being computed, or waits. */
  readonly busy: boolean;
  /** Whatever it has is dropped. */
  clear(): void;
}

/** It has its memory and arithmetic to itself: when a step ends is known when it is announced. */
export class OwnProcessor implements Processor {
  readonly #loop: EventLoop;
  readonly #planned = new Set<Planned>();
  #freeAtMs = 0;

  constructor(loop: EventLoop) {
    this.#loop = loop;
  }

  get busy(): boolean {
    return this.#planned.size > 0;
  }

  submit(job: Job, atMs: number): void {
    const startMs = Math.max(atMs, this.#freeAtMs);
    const durationMs = job.cost.ms;
    this.#freeAtMs = startMs + durationMs;
    const planned = this.#loop.at(this.#freeAtMs, () => {
      this.#planned.delete(planned);
      job.done(startMs, durationMs);
    });
    this.#planned.add(planned);
  }

  clear(): void {
    for (const planned of this.#planned) planned.cancel();
    this.#planned.clear();
    this.#freeAtMs = this.#loop.nowMs();
  }
}

/** The jobs that compute on one host now. */
export class SharedHost {
  readonly #loop: EventLoop;
  readonly #running = new Set<Running>();
  #sinceMs = 0;

  constructor(loop: EventLoop) {
    this.#loop = loop;
  }

  processor(): Processor {
    return new SharedProcessor(this.#loop, this);
  }

  begin(job: Job, ended: () => void): Running {
    this.#advance();
    const running: Running = { job, left: 1, wholeMs: 0, startMs: this.#loop.nowMs(), end: null, ended };
    this.#running.add(running);
    this.#plan();
    return running;
  }

  drop(running: Running): void {
    this.#advance();
    running.end?.cancel();
    this.#running.delete(running);
    this.#plan();
  }

  /** What has been done since those that compute changed. */
  #advance(): void {
    const passedMs = this.#loop.nowMs() - this.#sinceMs;
    this.#sinceMs = this.#loop.nowMs();
    for (const running of this.#running) {
      running.left = running.wholeMs > 0 ? Math.max(0, running.left - passedMs / running.wholeMs) : 0;
    }
  }

  #plan(): void {
    const all = [...this.#running];
    const factors = slowdowns(all.map(({ job }) => job.cost.share));
    all.forEach((running, index) => {
      running.wholeMs = running.job.cost.ms * factors[index]!;
      running.end?.cancel();
      running.end = this.#loop.after(running.left * running.wholeMs, () => {
        this.#advance();
        this.#running.delete(running);
        this.#plan();
        running.ended();
        running.job.done(running.startMs, this.#loop.nowMs() - running.startMs);
      });
    });
  }
}

interface Running {
  job: Job;
  /** Of it, 1 to 0. */
  left: number;
  /** What all of it would take at the present pace. */
  wholeMs: number;
  startMs: number;
  end: Planned | null;
  ended: () => void;
}

class SharedProcessor implements Processor {
  readonly #loop: EventLoop;
  readonly #host: SharedHost;
  readonly #queue: Job[] = [];
  readonly #coming = new Set<Planned>();
  #running: Running | null = null;

  constructor(loop: EventLoop, host: SharedHost) {
    this.#loop = loop;
    this.#host = host;
  }

  get busy(): boolean {
    return this.#running !== null || this.#queue.length > 0;
  }

  submit(job: Job, atMs: number): void {
    const coming = this.#loop.at(atMs, () => {
      this.#coming.delete(coming);
      this.#queue.push(job);
      this.#next();
    });
    this.#coming.add(coming);
  }

  clear(): void {
    for (const coming of this.#coming) coming.cancel();
    this.#coming.clear();
    this.#queue.length = 0;
    if (this.#running !== null) this.#host.drop(this.#running);
    this.#running = null;
  }

  #next(): void {
    const job = this.#running === null ? this.#queue.shift() : undefined;
    if (job === undefined) return;
    this.#running = this.#host.begin(job, () => {
      this.#running = null;
      this.#next();
    });
  }
}
