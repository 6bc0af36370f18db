/** Whose turn it is: classes in order, tenants by tokens, and what that costs when many wait. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SequenceId, sequenceId } from "../../../common/ids.js";
import { FairQueue, maxIdleTenants } from "../../../coordinator/scheduler/fair-queue.js";
import {
  generatedTokenCost,
  promptTokenCost,
  type Tab,
  WaitingSet,
} from "../../../coordinator/scheduler/waiting-set.js";

/** A server that runs `places` entries at a time, a token of each per round, and knows what it did for whom. */
class Server {
  readonly waiting = new WaitingSet<{ tenant: string; prompt: number; reply: number }>();
  readonly done = new Map<string, number>();
  readonly order: number[] = [];
  readonly #running: { id: SequenceId; tab: Tab; tenant: string; left: number }[] = [];
  #next = 0;

  constructor(private readonly places: number) {}

  submit(tenant: string, prompt: number, reply: number): void {
    this.waiting.add(sequenceId(this.#next++), tenant, "interactive", { tenant, prompt, reply });
  }

  get busy(): boolean {
    return this.#running.length > 0 || this.waiting.size > 0;
  }

  round(): void {
    while (this.#running.length < this.places) {
      const next = this.waiting.first();
      if (next === null) break;
      const tab = this.waiting.remove(next.id)!;
      const { tenant, prompt, reply } = next.what;
      this.waiting.chargePrompt(tab, prompt);
      this.#note(tenant, prompt * promptTokenCost);
      this.order.push(next.id);
      this.#running.push({ id: next.id, tab, tenant, left: reply });
    }
    for (const running of [...this.#running]) {
      this.waiting.chargeGenerated(running.tab, 1);
      this.#note(running.tenant, generatedTokenCost);
      if (--running.left === 0) this.#running.splice(this.#running.indexOf(running), 1);
    }
  }

  #note(tenant: string, cost: number): void {
    this.done.set(tenant, (this.done.get(tenant) ?? 0) + cost);
  }
}

const costOf = (prompt: number, reply: number) => prompt * promptTokenCost + reply * generatedTokenCost;

describe("tenants that both have work waiting", () => {
  it("are served within one request's worth of each other per place, though one sends ten times as much", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 60 })), {
          minLength: 4,
          maxLength: 20,
        }),
        fc.integer({ min: 1, max: 4 }),
        (requests, places) => {
          const server = new Server(places);
          for (const [prompt, reply] of requests) {
            for (let copy = 0; copy < 10; copy++) server.submit("flood", prompt, reply);
          }
          for (const [prompt, reply] of requests) server.submit("modest", prompt, reply);
          const most = Math.max(...requests.map(([prompt, reply]) => costOf(prompt, reply)));
          // Until the last of its requests has begun.
          const firstOfModest = requests.length * 10;
          const begun = () => server.order.filter((id) => id >= firstOfModest).length;
          while (begun() < requests.length) {
            server.round();
            const [flood, modest] = [server.done.get("flood") ?? 0, server.done.get("modest") ?? 0];
            expect(Math.abs(flood - modest)).toBeLessThanOrEqual(places * most);
          }
          while (server.busy) server.round();
          expect(new Set(server.order).size).toBe(requests.length * 11);
        },
      ),
      { numRuns: 200 },
    );
  });

  it("are served in the order of arrival, each by itself", () => {
    const server = new Server(1);
    for (let n = 0; n < 40; n++) server.submit(n % 4 === 0 ? "a" : "b", 1 + (n % 5), 1 + (n % 3));
    while (server.busy) server.round();
    for (const ofA of [true, false]) {
      const own = server.order.filter((id) => (id % 4 === 0) === ofA);
      expect(own).toEqual([...own].sort((one, other) => one - other));
    }
  });
});

describe("a tenant that was idle", () => {
  it("has no credit for it: from its return on both are served alike", () => {
    const server = new Server(1);
    server.submit("sleeper", 1, 1);
    for (let n = 0; n < 200; n++) server.submit("worker", 5, 5);
    for (let round = 0; round < 500; round++) server.round();
    const before = { ...Object.fromEntries(server.done) };
    expect(before.worker! - before.sleeper!).toBeGreaterThan(1_000);
    for (let n = 0; n < 50; n++) server.submit("sleeper", 5, 5);
    for (let round = 0; round < 200; round++) {
      server.round();
      const served = (tenant: string) => server.done.get(tenant)! - before[tenant]!;
      expect(Math.abs(served("worker") - served("sleeper"))).toBeLessThanOrEqual(2 * costOf(5, 5));
    }
  });

  it("has none either when nobody waited as it came back", () => {
    const server = new Server(2);
    for (let n = 0; n < 50; n++) server.submit("worker", 5, 5);
    while (server.waiting.size > 0) server.round();
    const before = server.done.get("worker")!;
    for (let n = 0; n < 40; n++) server.submit("sleeper", 5, 5);
    for (let n = 0; n < 40; n++) server.submit("worker", 5, 5);
    for (let round = 0; round < 100; round++) {
      server.round();
      const [worker, sleeper] = [server.done.get("worker")! - before, server.done.get("sleeper") ?? 0];
      expect(Math.abs(worker - sleeper)).toBeLessThanOrEqual(2 * costOf(5, 5));
    }
  });

  it("keeps its debt for a while, and is forgotten when many others were idle since", () => {
    const queue = new FairQueue<string>();
    const wait = (tenant: string) => queue.add(tenant, tenant);
    wait("poor");
    const debtor = wait("debtor");
    queue.charge(debtor.account, 1_000);
    queue.remove(debtor);
    expect(wait("debtor").account).toBe(debtor.account);
    queue.charge(queue.first()!.account, 999);
    expect(queue.first()!.entry).toBe("poor");
    queue.charge(queue.first()!.account, 2);
    expect(queue.first()!.entry).toBe("debtor");
    for (let n = 0; n < 3 * maxIdleTenants; n++) queue.remove(wait(`once ${n}`));
    expect(queue.accountCount).toBe(maxIdleTenants + 2);
  });
});

describe("the waiting set", () => {
  const taken = (set: WaitingSet<string>): string[] => {
    const order: string[] = [];
    for (let next = set.first(); next !== null; next = set.first()) {
      set.remove(next.id);
      order.push(next.what);
    }
    return order;
  };

  it("gives out a later class only when nothing of an earlier one waits", () => {
    const set = new WaitingSet<string>();
    set.add(sequenceId(1), "a", "batch", "batch 1");
    set.add(sequenceId(2), "a", "interactive", "interactive 1");
    set.add(sequenceId(3), "b", "interactive", "interactive 2");
    set.add(sequenceId(4), "b", "batch", "batch 2");
    expect([set.size, set.sizeOf("interactive"), set.sizeOf("batch")]).toEqual([4, 2, 2]);
    expect(taken(set)).toEqual(["interactive 1", "interactive 2", "batch 1", "batch 2"]);
    expect(set.size).toBe(0);
  });

  it("gives out what was put back first, of its class and in the order of arrival", () => {
    const set = new WaitingSet<string>();
    for (const [n, of] of [[1, "batch"] as const, [2, "interactive"] as const, [3, "interactive"] as const]) {
      set.add(sequenceId(n), "a", of, `${of} ${n}`);
    }
    const [first, second] = [set.remove(sequenceId(2))!, set.remove(sequenceId(3))!];
    const third = set.remove(sequenceId(1))!;
    set.add(sequenceId(4), "a", "interactive", "new");
    set.putBack(sequenceId(1), third, 0, "batch again");
    set.putBack(sequenceId(3), second, 2, "3 again");
    set.putBack(sequenceId(2), first, 1, "2 again");
    expect([set.size, set.sizeOf("interactive"), set.sizeOf("batch")]).toEqual([4, 3, 1]);
    expect(set.preempted(sequenceId(3))?.what).toBe("3 again");
    expect(taken(set)).toEqual(["2 again", "3 again", "new", "batch again"]);
  });

  it("does as a plain search over all that wait does, whatever happens", () => {
    interface Entry {
      id: SequenceId;
      tenant: string;
    }
    const action = fc.oneof(
      fc.record({ kind: fc.constant("add" as const), tenant: fc.constantFrom("a", "b", "c", "d", "e") }),
      fc.record({ kind: fc.constant("take" as const), prompt: fc.integer({ min: 0, max: 9 }) }),
      fc.record({
        kind: fc.constant("charge" as const),
        pick: fc.nat(),
        count: fc.integer({ min: -3, max: 9 }),
      }),
      fc.record({ kind: fc.constant("remove" as const), pick: fc.nat() }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 120 }), (actions) => {
        const set = new WaitingSet<string>();
        const entries: Entry[] = [];
        const tabs: { tab: Tab; tenant: string }[] = [];
        const counters = new Map<string, number>();
        const enteredAt = new Map<string, number>();
        let lastWaiting: string | null = null;
        const isWaiting = (tenant: string) => entries.some((entry) => entry.tenant === tenant);
        const waitingCounters = () => entries.map(({ tenant }) => counters.get(tenant)!);
        const expectedFirst = (): Entry | undefined => {
          const least = Math.min(...waitingCounters());
          const poorest = entries.filter(({ tenant }) => counters.get(tenant) === least);
          const since = Math.min(...poorest.map(({ tenant }) => enteredAt.get(tenant)!));
          return poorest.find(({ tenant }) => enteredAt.get(tenant) === since);
        };
        const takeOut = (entry: Entry): Tab => {
          entries.splice(entries.indexOf(entry), 1);
          if (!isWaiting(entry.tenant)) lastWaiting = entry.tenant;
          return set.remove(entry.id)!;
        };
        for (const [n, act] of actions.entries()) {
          if (act.kind === "add") {
            if (!isWaiting(act.tenant)) {
              const level =
                entries.length > 0
                  ? Math.min(...waitingCounters())
                  : lastWaiting === null
                    ? 0
                    : counters.get(lastWaiting)!;
              counters.set(act.tenant, Math.max(counters.get(act.tenant) ?? 0, level));
              enteredAt.set(act.tenant, n);
            }
            entries.push({ id: sequenceId(n), tenant: act.tenant });
            set.add(sequenceId(n), act.tenant, "interactive", act.tenant);
          } else if (act.kind === "take") {
            const expected = expectedFirst();
            expect(set.first()?.id).toBe(expected?.id);
            if (expected === undefined) continue;
            const tab = takeOut(expected);
            set.chargePrompt(tab, act.prompt);
            counters.set(expected.tenant, counters.get(expected.tenant)! + act.prompt * promptTokenCost);
            tabs.push({ tab, tenant: expected.tenant });
          } else if (act.kind === "charge") {
            if (tabs.length === 0) continue;
            const { tab, tenant } = tabs[act.pick % tabs.length]!;
            set.chargePrompt(tab, act.count);
            counters.set(tenant, counters.get(tenant)! + act.count * promptTokenCost);
          } else if (entries.length > 0) {
            takeOut(entries[act.pick % entries.length]!);
          }
          expect(set.size).toBe(entries.length);
          expect(set.first()?.id).toBe(expectedFirst()?.id);
        }
      }),
      { numRuns: 500 },
    );
  });

  it.each([
    ["one tenant", 1],
    ["a tenant each", 10_000],
  ])("is cheap with 10,000 sequences of %s waiting", (_, tenants) => {
    const set = new WaitingSet<null>();
    const count = 10_000;
    const begunMs = performance.now();
    for (let n = 0; n < count; n++) set.add(sequenceId(n), `t${n % tenants}`, "interactive", null);
    for (let n = 0; n < count; n++) {
      // Asked in every step, and as a rule nothing can be admitted.
      for (let step = 0; step < 10; step++) set.first();
      const tab = set.remove(set.first()!.id)!;
      set.chargePrompt(tab, 100);
      set.chargeGenerated(tab, 100);
    }
    expect(set.size).toBe(0);
    // 110,000 choices: about 0.05 s. Looking through all that wait each time, it would be minutes.
    expect(performance.now() - begunMs).toBeLessThan(5_000);
  });
});
