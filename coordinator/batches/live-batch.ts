/** A batch as this process knows it: its record, which lines are answered, and what is under way for it. */
import { setMaxListeners } from "node:events";
import { RelayError } from "../../common/errors.js";
import { type BatchObject, isFinal } from "./batch.js";
import { TokenBudget } from "./budget.js";
import type { LedgerRecord, LineUsage } from "./ledger-record.js";
import { addUsage, type CountResult, lineState } from "./merge.js";
import { type BatchRecord, usageObject } from "./record.js";

export class LiveBatch {
  readonly record: BatchRecord;
  /** By line: one of lineState. Empty while its input is not checked, or its ledgers are not read. */
  states: Uint8Array = new Uint8Array(0);
  readonly usage: LineUsage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0, reasoningTokens: 0 };
  /** Lines that are being answered, or whose answer is being written down. */
  underWay = 0;
  /** Its ledgers have been read: lines may begin. */
  counted = false;
  /** Its files are being made. */
  finishing = false;
  /** Its last state is being written down. */
  ending = false;
  /** The model that it was made for is served. */
  readonly isServed: boolean;
  readonly budget: TokenBudget;
  readonly #listeners = new Set<() => void>();
  readonly #over = new AbortController();

  /** @param served Name of the model that this process serves. */
  constructor(record: BatchRecord, served: string) {
    this.record = record;
    this.isServed = record.object.model === served;
    const used = () => this.usage.promptTokens + this.usage.completionTokens;
    this.budget = new TokenBudget(record.object.token_budget, used);
    // Each line that is being answered listens.
    setMaxListeners(0, this.#over.signal);
  }

  get id(): string {
    return this.record.object.id;
  }

  get object(): BatchObject {
    return this.record.object;
  }

  get ended(): boolean {
    return isFinal(this.object.status);
  }

  /** Fires when its lines are not wanted any more. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  /** Whether another line may begin. */
  get takesLines(): boolean {
    return this.isServed && this.counted && this.object.status === "in_progress" && !this.budget.spent;
  }

  get allAnswered(): boolean {
    const { total, completed, failed } = this.object.request_counts;
    return completed + failed === total;
  }

  isOpen(line: number): boolean {
    return this.states[line] === lineState.open;
  }

  /** Jobs that have lines without an answer. */
  openJobs(): number[] {
    const isOpen = ({ firstLine, lines }: { firstLine: number; lines: number }) =>
      this.states.subarray(firstLine, firstLine + lines).includes(lineState.open);
    return this.record.jobs.flatMap((job, index) => (isOpen(job) ? [index] : []));
  }

  /** Its input is checked: so many lines are to be answered. */
  begin(total: number): void {
    this.object.request_counts = { total, completed: 0, failed: 0 };
    this.states = new Uint8Array(total);
    this.counted = true;
  }

  /** What its ledgers hold. */
  count({ states, completed, failed, usage }: CountResult): void {
    const { total } = this.object.request_counts;
    this.states = states;
    this.object.request_counts = { total, completed, failed };
    Object.assign(this.usage, usage);
    this.object.usage = usageObject(this.usage);
    this.counted = true;
    this.changed();
  }

  /** An answer that is written down. */
  answered({ line, ok, usage }: LedgerRecord): void {
    this.states[line] = ok ? lineState.completed : lineState.failed;
    if (ok) this.object.request_counts.completed++;
    else this.object.request_counts.failed++;
    addUsage(this.usage, usage);
    this.object.usage = usageObject(this.usage);
    this.changed();
  }

  /** Ends all its lines. */
  stop(reason: string): void {
    if (!this.#over.signal.aborted) this.#over.abort(new RelayError("cancelled", reason));
  }

  watch(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  changed(): void {
    for (const listener of this.#listeners) listener();
  }
}
