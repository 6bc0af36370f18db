import { pino } from "pino";
import { afterEach, describe, expect, it, vi } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { requestId } from "../../../common/ids.js";
import type { Core } from "../../../coordinator/core.js";
import type { ModelInfo, RequestEvent } from "../../../coordinator/inference.js";
import type { PromptService } from "../../../coordinator/prompt/service.js";
import type { RequestLedger, RequestQueue } from "../../../coordinator/queue/queue.js";
import { Service, type ServiceFacts } from "../../../coordinator/service.js";
import { generation } from "../../support/fake-cluster.js";

class NoLedger implements RequestLedger {
  readonly noted: string[] = [];
  read = async () => [];
  restate = () => {};
  decided = (id: string) => void this.noted.push(id);
  ended = (id: string) => void this.noted.push(id);
  keepAnswer = () => {};
  answer = async () => null;
}

const services: Service[] = [];
afterEach(() => {
  for (const service of services.splice(0)) service.close(new RelayError("draining", "the test is over"));
});

/** A service whose queue takes everything and hands on nothing. */
function service({ up = true, core: given = {} as Partial<Core>, ledger = new NoLedger() } = {}): Service {
  const queue: RequestQueue = {
    up,
    add: async () => {},
    remove: async () => {},
    start: async () => {},
    ledger,
    onUpChange: () => {},
    close: async () => {},
  };
  const core = { notReady: () => null, admit: () => {}, cancel: () => {}, ...given } as unknown as Core;
  const facts: ServiceFacts = {
    model: {} as ModelInfo,
    precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
    numericsId: () => null,
    term: 1,
    recoveryTimeoutMs: 1_000,
    probeAddress: null,
    grpcAddress: () => null,
  };
  const made = new Service(facts, {} as PromptService, queue, () => core, pino({ level: "silent" }));
  services.push(made);
  return made;
}

it("tells a few per turn of the event loop when a lost worker ends hundreds of requests at once", async () => {
  const count = 200;
  const answerMs = 0.5;
  const ids = Array.from({ length: count }, (_, i) => requestId(`r${i}`));
  const under = service();
  const told: number[] = [];
  const ends = ids.map(async (id, i) => {
    const { events } = await under.submit(generation(id, [1]));
    for await (const event of events) {
      if (event.type !== "error") continue;
      told.push(i);
      // What answering one of them may take.
      for (const until = performance.now() + answerMs; performance.now() < until; );
    }
  });
  await new Promise((resolve) => setImmediate(resolve));
  for (const id of ids) {
    under.emit(id, { type: "error", error: new RelayError("worker_lost", "gone") });
    under.ended(id);
  }
  const perTurn: number[] = [];
  while (told.length < count) {
    const before = told.length;
    await new Promise((resolve) => setImmediate(resolve));
    perTurn.push(told.length - before);
    if (perTurn.length > 1_000) throw new Error("not all of them are told");
  }
  await Promise.all(ends);
  expect(told).toEqual(ids.map((_, i) => i));
  // Those woken at once and those of the next turn may fall into the same look.
  expect(Math.max(...perTurn)).toBeLessThanOrEqual(32);
});

describe("a request that the queue took", () => {
  const passSeconds = async (count: number, eachSecond = () => {}) => {
    for (let second = 0; second < count; second++) {
      eachSecond();
      await vi.advanceTimersByTimeAsync(1_000);
    }
  };

  async function submitted(count: number) {
    const under = service();
    const refused: number[] = [];
    const requests = Array.from({ length: count }, (_, i) => generation(`r${i}`, [1]));
    for (const [i, request] of requests.entries()) {
      const { events } = await under.submit(request);
      void (async () => {
        for await (const event of events) if (event.type === "error") refused.push(i);
      })();
    }
    return { under, requests, refused };
  }

  afterEach(() => void vi.useRealTimers());

  it("is given up after ten seconds in which none was handed on", async () => {
    vi.useFakeTimers();
    const { refused } = await submitted(3);
    await passSeconds(9);
    expect(refused).toEqual([]);
    await passSeconds(2);
    expect(refused).toEqual([0, 1, 2]);
  });

  it("is waited for while those before it are handed on, however long that takes", async () => {
    vi.useFakeTimers();
    const { under, requests, refused } = await submitted(60);
    let next = 0;
    await passSeconds(60, () => under.admit(requests[next++]!));
    expect(refused).toEqual([]);
  });

  it("is given up when hundreds of later ones were handed on before it", async () => {
    vi.useFakeTimers();
    const { under, requests, refused } = await submitted(300);
    let next = 290;
    await passSeconds(10, () => under.admit(requests[next++]!));
    await passSeconds(2);
    expect(refused).toEqual(Array.from({ length: 299 - 256 + 1 }, (_, i) => i));
  });
});

describe("a line of a batch", () => {
  const events = () => {
    const told: string[] = [];
    const sink = {
      push: ({ type }: RequestEvent) => void told.push(type),
      end: () => void told.push("end"),
    };
    return { told, sink };
  };

  it("goes straight into the core while Redis is away, and the ledger hears nothing of it", () => {
    const admitted: string[] = [];
    const ledger = new NoLedger();
    const core = { admitLine: ({ id }: { id: string }) => void admitted.push(id) };
    const under = service({ up: false, core, ledger });
    const { told, sink } = events();
    const line = generation("a", [1]);
    under.submitLine(line, sink);
    expect(admitted).toEqual(["a"]);
    under.emit(line.id, { type: "tokens", choice: 0, text: "x", tokens: [1], logprobs: [] });
    under.ended(line.id);
    expect(told).toEqual(["tokens", "end"]);
    expect(under.pendingCount).toBe(0);
    expect(ledger.noted).toEqual([]);
  });

  it("is refused while the model is not served or the server drains, and is cancelled in the core", () => {
    const cancelled: string[] = [];
    let notReady: RelayError | null = new RelayError("model_loading", "not yet");
    const core = {
      notReady: () => notReady,
      admitLine: () => undefined,
      cancel: (id: string) => void cancelled.push(id),
    };
    const under = service({ core });
    const { sink } = events();
    expect(() => under.submitLine(generation("a", [1]), sink)).toThrow("not yet");
    expect(under.pendingCount).toBe(0);
    notReady = null;
    const cancel = under.submitLine(generation("a", [1]), sink);
    cancel();
    expect(cancelled).toEqual(["a"]);
    under.drain();
    expect(() => under.submitLine(generation("b", [1]), sink)).toThrow(/shutting down/);
  });
});
