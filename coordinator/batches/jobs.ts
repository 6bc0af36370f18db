/** How the jobs of batches wait for their turn: the contract that BullMQ on Redis (bullmq-jobs.ts) keeps. */

export interface JobName {
  batchId: string;
  /** Of the batch's jobs. */
  index: number;
}

export interface JobQueue {
  /**
   * Puts jobs into the queue; one that is there already is not put there once more.
   * @param priority Lower ones go first.
   * @throws RelayError queue_unavailable; some may be queued then.
   */
  add(jobs: readonly JobName[], priority: number): Promise<void>;
  /** Hands jobs to `run`, at least once each; a job is done when it has resolved. Jobs of earlier processes are gone. */
  start(run: (job: JobName) => Promise<void>): Promise<void>;
  /** Called when the queue answers again: it may have forgotten jobs. */
  onUp(listener: () => void): void;
  /** Hands on no more jobs, and waits for none. */
  close(): Promise<void>;
}
