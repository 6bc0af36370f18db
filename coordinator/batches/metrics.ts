/** Figures of batches, in the coordinator's registry. */
import { Counter, Gauge, type Registry } from "prom-client";
import { type BatchStatus, batchStatuses } from "./batch.js";

export class BatchMetrics {
  readonly #model: string;
  readonly #lines: Counter;

  /** @param statuses Of all batches that are kept, asked at each scrape. */
  constructor(registry: Registry, model: string, statuses: () => Iterable<BatchStatus>) {
    const registers = [registry];
    this.#model = model;
    const batches = new Gauge({
      name: "glm_relay_batches",
      help: "Batches that are kept, by their status.",
      labelNames: ["model", "status"],
      registers,
      collect: () => {
        const counts = new Map<BatchStatus, number>(batchStatuses.map((status) => [status, 0]));
        for (const status of statuses()) counts.set(status, counts.get(status)! + 1);
        for (const [status, count] of counts) batches.set({ model, status }, count);
      },
    });
    this.#lines = new Counter({
      name: "glm_relay_batch_lines_total",
      help: "Lines of batches whose answer was written down; failed: with an error of their own.",
      labelNames: ["model", "result"],
      registers,
    });
    for (const result of ["completed", "failed"]) this.#lines.inc({ model, result }, 0);
  }

  answered(ok: boolean): void {
    this.#lines.inc({ model: this.#model, result: ok ? "completed" : "failed" });
  }
}
