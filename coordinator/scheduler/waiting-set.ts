/**
 * Sequences that wait for admission, and which is next: classes in order; of a class first what was preempted, then
 * tenants by what they have had (fair-queue.ts), each with its sequences as they came. Knows what work costs and is
 * told of it as it is done. Pure.
 */
import type { SequenceId } from "../../common/ids.js";
import { type RequestClass, requestClasses } from "../request-class.js";
import { type Account, FairQueue, type Ticket } from "./fair-queue.js";

/**
 * What a token costs its tenant. Prompt tokens are computed many at a time and share one reading of the weights;
 * a generated one takes part in a step of its own. The ratio is that of the paper.
 */
export const promptTokenCost = 1;
export const generatedTokenCost = 2;

export interface Waiting<T> {
  id: SequenceId;
  class: RequestClass;
  what: T;
}

/** Where the work for an admitted sequence is charged. */
export interface Tab {
  readonly class: RequestClass;
  readonly account: Account;
}

/** One that ran before. */
interface Preempted<T> extends Waiting<T> {
  tab: Tab;
  /** Number of its arrival. */
  order: number;
}

export class WaitingSet<T> {
  readonly #queues: Record<RequestClass, FairQueue<Waiting<T>>> = {
    interactive: new FairQueue(),
    batch: new FairQueue(),
  };
  readonly #tickets = new Map<SequenceId, Ticket<Waiting<T>>>();
  /** At most as many as have run at the same time. */
  readonly #preempted = new Map<SequenceId, Preempted<T>>();

  get size(): number {
    return this.#tickets.size + this.#preempted.size;
  }

  sizeOf(of: RequestClass): number {
    let preempted = 0;
    for (const waiting of this.#preempted.values()) if (waiting.class === of) preempted++;
    return this.#queues[of].size + preempted;
  }

  add(id: SequenceId, tenant: string, of: RequestClass, what: T): void {
    this.#tickets.set(id, this.#queues[of].add(tenant, { id, class: of, what }));
  }

  /** Of one that had its turn and lost it: in the order of arrival, before all of its class that never ran. */
  putBack(id: SequenceId, tab: Tab, order: number, what: T): void {
    this.#preempted.set(id, { id, class: tab.class, what, tab, order });
  }

  /** One that was put back, with where its work is charged. */
  preempted(id: SequenceId): { what: T; tab: Tab } | undefined {
    return this.#preempted.get(id);
  }

  /** The one to admit next, of a later class only when none of those before it waits; null when none waits. */
  first(): Waiting<T> | null {
    for (const of of requestClasses) {
      const first = this.#firstPreempted(of) ?? this.#queues[of].first()?.entry;
      if (first !== undefined) return first;
    }
    return null;
  }

  /** @returns Where its work is charged; null for one that does not wait here. */
  remove(id: SequenceId): Tab | null {
    const preempted = this.#preempted.get(id);
    if (preempted !== undefined) {
      this.#preempted.delete(id);
      return preempted.tab;
    }
    const ticket = this.#tickets.get(id);
    if (ticket === undefined) return null;
    this.#tickets.delete(id);
    const { entry, account } = ticket;
    this.#queues[entry.class].remove(ticket);
    return { class: entry.class, account };
  }

  /** @param count Prompt tokens that are computed; negative: that were charged and are not. */
  chargePrompt({ class: of, account }: Tab, count: number): void {
    this.#queues[of].charge(account, count * promptTokenCost);
  }

  chargeGenerated({ class: of, account }: Tab, count: number): void {
    this.#queues[of].charge(account, count * generatedTokenCost);
  }

  #firstPreempted(of: RequestClass): Waiting<T> | undefined {
    let first: Preempted<T> | undefined;
    for (const waiting of this.#preempted.values()) {
      if (waiting.class === of && waiting.order < (first?.order ?? Number.POSITIVE_INFINITY)) first = waiting;
    }
    return first;
  }
}
