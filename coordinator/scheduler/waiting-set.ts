/**
 * Sequences that wait for admission, and which is next: classes in order, tenants of a class by what they have had
 * (fair-queue.ts), sequences of a tenant as they came. Knows what work costs; is told of it as it is done. Pure.
 */
import type { SequenceId } from "../../common/ids.js";
import { type RequestClass, requestClasses } from "../request-class.js";
import { type Account, FairQueue, type Ticket } from "./fair-queue.js";

/**
 * What a token costs its tenant. Prompt tokens are computed many at a time and weights are read once for all of
 * them; a generated one takes part in a step of its own. The ratio is that of the paper and of public prices.
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

export class WaitingSet<T> {
  readonly #queues: Record<RequestClass, FairQueue<Waiting<T>>> = {
    interactive: new FairQueue(),
    batch: new FairQueue(),
  };
  readonly #tickets = new Map<SequenceId, Ticket<Waiting<T>>>();

  get size(): number {
    return this.#tickets.size;
  }

  sizeOf(of: RequestClass): number {
    return this.#queues[of].size;
  }

  add(id: SequenceId, tenant: string, of: RequestClass, what: T): void {
    this.#tickets.set(id, this.#queues[of].add(tenant, { id, class: of, what }));
  }

  /** The one to admit next, of a later class only when none of those before it waits; null when none waits. */
  first(): Waiting<T> | null {
    for (const of of requestClasses) {
      const ticket = this.#queues[of].first();
      if (ticket !== null) return ticket.entry;
    }
    return null;
  }

  /** @returns Where its work is charged; null for one that does not wait here. */
  remove(id: SequenceId): Tab | null {
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
}
