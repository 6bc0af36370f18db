/**
 * Who is next within one class. Tenants share by tokens: each has a virtual token counter that grows with the work
 * done for it, and of the tenants that wait the one with the smallest goes next, with its oldest entry. One that
 * did not wait for a while is lifted to where the others are: idleness is no credit. Pure.
 * @see Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: the virtual token counter.
 */

/** Tenants without a waiting entry whose counters are remembered; above it the one longest idle is forgotten. */
export const maxIdleTenants = 1_024;

/** What one tenant has had; whoever holds it charges for the work that is really done. */
export class Account {
  /** Tokens of work, weighed. */
  counter = 0;
  /** At most the counter, and what the heap is ordered by: a charge costs nothing until it matters. */
  key = 0;
  /** Index in the heap; -1 while nothing of the tenant waits. */
  place = -1;
  /** Number of its turn to wait: of tenants with equal counters the one that came first goes first. */
  since = 0;
  oldest: Ticket<unknown> | null = null;
  newest: Ticket<unknown> | null = null;

  constructor(readonly tenant: string) {}
}

/** One waiting entry; a link in its tenant's queue. */
export interface Ticket<T> {
  readonly entry: T;
  readonly account: Account;
  older: Ticket<T> | null;
  newer: Ticket<T> | null;
}

export class FairQueue<T> {
  readonly #accounts = new Map<string, Account>();
  /** Those of them that have nothing waiting, the longest idle first. */
  readonly #idle = new Set<Account>();
  /** Binary heap of the accounts that have, the smallest key in front. */
  readonly #heap: Account[] = [];
  /** The tenant whose last entry left last: where one starts when nobody waits. */
  #lastWaiting: Account | null = null;
  #size = 0;
  #entered = 0;

  get size(): number {
    return this.#size;
  }

  /** Accounts that are remembered: of all tenants that wait, and of maxIdleTenants others. */
  get accountCount(): number {
    return this.#accounts.size;
  }

  /** Behind everything of its tenant. O(log tenants). */
  add(tenant: string, entry: T): Ticket<T> {
    const account = this.#accounts.get(tenant) ?? this.#openAccount(tenant);
    if (account.place < 0) this.#enter(account);
    const older = account.newest as Ticket<T> | null;
    const ticket: Ticket<T> = { entry, account, older, newer: null };
    if (older === null) account.oldest = ticket;
    else older.newer = ticket;
    account.newest = ticket;
    this.#size++;
    return ticket;
  }

  /** Whose turn it is; null when nothing waits. O(log tenants) per tenant charged since the last time. */
  first(): Ticket<T> | null {
    return (this.#poorest()?.oldest ?? null) as Ticket<T> | null;
  }

  /** Takes an entry out, admitted or given up. O(log tenants). */
  remove(ticket: Ticket<T>): void {
    const { account, older, newer } = ticket;
    if (older === null) account.oldest = newer;
    else older.newer = newer;
    if (newer === null) account.newest = older;
    else newer.older = older;
    this.#size--;
    if (account.oldest === null) this.#leave(account);
  }

  /** @param cost Tokens of work, weighed; negative: paid in advance and not done. */
  charge(account: Account, cost: number): void {
    account.counter += cost;
    if (account.counter >= account.key) return;
    account.key = account.counter;
    if (account.place >= 0) this.#rise(account);
  }

  #openAccount(tenant: string): Account {
    const account = new Account(tenant);
    this.#accounts.set(tenant, account);
    return account;
  }

  #enter(account: Account): void {
    const level = this.#poorest()?.counter ?? this.#lastWaiting?.counter ?? 0;
    account.counter = Math.max(account.counter, level);
    account.key = account.counter;
    account.since = ++this.#entered;
    this.#idle.delete(account);
    account.place = this.#heap.push(account) - 1;
    this.#rise(account);
  }

  #leave(account: Account): void {
    const last = this.#heap.pop()!;
    if (last !== account) {
      this.#put(last, account.place);
      this.#rise(last);
      this.#sink(last);
    }
    account.place = -1;
    this.#lastWaiting = account;
    this.#idle.add(account);
    if (this.#idle.size <= maxIdleTenants) return;
    const [longest] = this.#idle;
    this.#idle.delete(longest!);
    this.#accounts.delete(longest!.tenant);
  }

  /** The account in front, with keys brought up to date as far as that matters. */
  #poorest(): Account | null {
    for (;;) {
      const [front] = this.#heap;
      if (front === undefined) return null;
      if (front.key === front.counter) return front;
      front.key = front.counter;
      this.#sink(front);
    }
  }

  #rise(account: Account): void {
    while (account.place > 0) {
      const parent = this.#heap[(account.place - 1) >> 1]!;
      if (!goesBefore(account, parent)) return;
      this.#swap(parent, account);
    }
  }

  #sink(account: Account): void {
    for (;;) {
      const left = this.#heap[2 * account.place + 1];
      const right = this.#heap[2 * account.place + 2];
      const child = right !== undefined && goesBefore(right, left!) ? right : left;
      if (child === undefined || !goesBefore(child, account)) return;
      this.#swap(account, child);
    }
  }

  #swap(upper: Account, lower: Account): void {
    const place = upper.place;
    this.#put(upper, lower.place);
    this.#put(lower, place);
  }

  #put(account: Account, place: number): void {
    this.#heap[place] = account;
    account.place = place;
  }
}

const goesBefore = (one: Account, other: Account): boolean =>
  one.key === other.key ? one.since < other.since : one.key < other.key;
