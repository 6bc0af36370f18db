/** Requests of an earlier process, from the ledger and the queue to the one who writes their answers. */
import { pino } from "pino";
import { afterEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { type RequestId, requestId } from "../../../common/ids.js";
import type { Core } from "../../../coordinator/core.js";
import type {
  GenerationRequest,
  ModelInfo,
  RequestHandle,
  TokenIds,
} from "../../../coordinator/inference.js";
import { continuation, poisonOf } from "../../../coordinator/orphans.js";
import type { PromptService } from "../../../coordinator/prompt/service.js";
import type { RequestLedger, RequestQueue } from "../../../coordinator/queue/queue.js";
import { Service } from "../../../coordinator/service.js";
import { generation } from "../../support/fake-cluster.js";

const numericsId = "cpu/canon1/f";
const answer = { n: 1, asTokenIds: false, options: {} };

/** As the process of a term left it. */
const left = (id: string, term: number, more: Partial<GenerationRequest["accepted"] & object> = {}) => ({
  ...generation(id, [1]),
  answer,
  accepted: { term, atMs: 5_000, numericsId, recoveries: 1, tokens: 0, ...more },
});

/** A service of term 7 whose queue and core only take notes. */
class Bench {
  ready = false;
  readonly admitted: { id: string; decided: TokenIds[] }[] = [];
  readonly cancelled: string[] = [];
  readonly noted: unknown[] = [];
  readonly orphans: { request: GenerationRequest; handle: RequestHandle }[] = [];
  readonly service: Service;

  constructor() {
    const ledger: RequestLedger = {
      read: async () => [],
      restate: ({ id, accepted }, keepsTokens) =>
        this.noted.push(["restate", id, accepted!.numericsId, accepted!.recoveries, keepsTokens]),
      decided: (id, choice, tokens) => this.noted.push(["decided", id, choice, tokens]),
      ended: (id) => this.noted.push(["ended", id]),
      keepAnswer: ({ id }, text) => this.noted.push(["keep", id, text]),
      answer: async (name) => (name === "old" ? "kept" : null),
    };
    const queue: RequestQueue = {
      ...{ up: true, ledger, add: async () => {}, remove: async () => {}, start: async () => {} },
      ...{ onUpChange: () => {}, close: async () => {} },
    };
    const core = {
      notReady: () => null,
      cancel: (id: string) => this.cancelled.push(id),
      admit: ({ id }: GenerationRequest, decided: TokenIds[] = []) => this.admitted.push({ id, decided }),
    };
    Object.defineProperty(core, "ready", { get: () => this.ready });
    this.service = new Service(
      {
        model: { id: "glm" } as ModelInfo,
        precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
        numericsId: () => numericsId,
        term: 7,
        recoveryTimeoutMs: 60_000,
        probeAddress: null,
        grpcAddress: () => null,
      },
      {} as PromptService,
      queue,
      () => core as unknown as Core,
      pino({ level: "silent" }),
    );
  }

  listen(): this {
    this.service.onOrphan((request, handle) => this.orphans.push({ request, handle }));
    return this;
  }

  /** The pipeline serves; what was held goes to the core. */
  async serve(): Promise<void> {
    this.ready = true;
    this.service.readinessChanged();
    await new Promise((resolve) => setImmediate(resolve));
  }

  ids(): string[] {
    return this.admitted.map(({ id }) => id);
  }

  end(id: RequestId): void {
    this.service.emit(id, { type: "started" });
    this.service.emit(id, { type: "tokens", choice: 0, text: "x", tokens: [4], logprobs: [] });
    this.service.ended(id);
  }
}

const benches: Bench[] = [];
const bench = (): Bench => {
  const made = new Bench().listen();
  benches.push(made);
  return made;
};
afterEach(() => {
  for (const { service } of benches.splice(0)) service.close(new RelayError("draining", "the test is over"));
});

const a = requestId("a");

describe("requests that an earlier process left", () => {
  it("go to the core in their order behind their tokens when the pipeline serves, before later ones", async () => {
    const { service, admitted, ids, serve, orphans } = bind(bench());
    service.restore([
      { request: left("a", 3), decided: [Int32Array.of(5, 6)] },
      { request: left("b", 4), decided: [[]] },
    ]);
    service.admit(left("c", 4));
    expect(ids()).toEqual([]);
    expect(await service.lookUp(a, "default")).toEqual({ status: "queued", id: "a", createdS: 5 });
    expect(await service.lookUp("log-a", "default")).toMatchObject({ id: "a" });
    expect(await service.lookUp("log-a", "other")).toBeNull();
    await serve();
    expect(ids()).toEqual(["a", "b", "c"]);
    expect(admitted[0]!.decided).toEqual([Int32Array.of(5, 6)]);
    expect(orphans.map(({ request }) => request.id)).toEqual(["a", "b", "c"]);
  });

  it("are told to one who listens later, too", () => {
    const made = new Bench();
    benches.push(made);
    made.service.restore([{ request: left("a", 3), decided: [] }]);
    expect(made.listen().orphans.map(({ request }) => request.id)).toEqual(["a"]);
  });

  it("are told some per turn of the event loop, in their order", async () => {
    const made = new Bench();
    benches.push(made);
    const ids = Array.from({ length: 150 }, (_, i) => `r${i}`);
    made.service.restore(ids.slice(0, 149).map((id) => ({ request: left(id, 3), decided: [] })));
    expect(made.listen().orphans).toHaveLength(64);
    made.service.admit(left("r149", 3));
    expect(made.orphans).toHaveLength(64);
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(made.orphans.map(({ request }) => request.id)).toEqual(ids);
  });

  it("end when their answer is kept, and leave nothing else in the ledger", async () => {
    const { service, noted, serve, orphans, end } = bind(bench());
    service.restore([{ request: left("a", 3), decided: [[]] }]);
    await serve();
    end(a);
    const events = [];
    for await (const { type } of orphans[0]!.handle.events) events.push(type);
    expect(events).toEqual(["started", "tokens"]);
    expect(service.pendingCount).toBe(1);
    expect(await service.lookUp(a, "default")).toMatchObject({ status: "running" });
    service.keepAnswer(a, "text");
    expect(service.pendingCount).toBe(0);
    expect(await service.lookUp(a, "default")).toBeNull();
    expect(noted).toEqual([
      ["restate", "a", numericsId, 2, true],
      ["decided", "a", 0, [4]],
      ["keep", "a", "text"],
    ]);
    expect(await service.lookUp("old", "default")).toEqual({ status: "ended", answer: "kept" });
  });

  it("stay in the ledger when the process that took them up shuts down: the next one answers them", async () => {
    const { service, noted, serve, cancelled } = bind(bench());
    service.restore([
      { request: left("a", 3), decided: [[]] },
      { request: left("b", 3), decided: [[]] },
    ]);
    await serve();
    service.emit(a, { type: "started" });
    service.close(new RelayError("draining", "the server shut down"));
    expect(cancelled).toEqual([]);
    expect(noted).toEqual([["restate", "a", numericsId, 2, true]]);
    expect(await service.lookUp(a, "default")).toMatchObject({ status: "running" });
  });

  it("are not taken up again when BullMQ hands them on once more, before or after their end", async () => {
    const { service, serve, ids, end, noted } = bind(bench());
    service.restore([{ request: left("a", 3), decided: [[]] }]);
    service.admit(left("a", 3));
    await serve();
    service.admit(left("a", 3));
    expect(ids()).toEqual(["a"]);
    end(a);
    service.keepAnswer(a, "text");
    service.admit(left("a", 3));
    expect(ids()).toEqual(["a"]);
    expect(noted.at(-1)).toEqual(["ended", "a"]);
  });

  it("can be cancelled while they are held, and while they run", async () => {
    const { service, serve, ids, orphans, cancelled } = bind(bench());
    service.restore([
      { request: left("a", 3), decided: [[]] },
      { request: left("b", 3), decided: [[]] },
    ]);
    orphans[0]!.handle.cancel();
    await serve();
    expect(ids()).toEqual(["b"]);
    orphans[1]!.handle.cancel();
    expect(cancelled).toEqual(["b"]);
  });

  it("begin anew under other numerics, and end under another model", async () => {
    const { service, serve, admitted, noted, orphans } = bind(bench());
    service.restore([
      { request: left("a", 3, { numericsId: "cuda/canon1/f" }), decided: [Int32Array.of(5)] },
      { request: left("b", 3, { numericsId: "cpu/canon1/g" }), decided: [Int32Array.of(5)] },
    ]);
    await serve();
    expect(admitted).toEqual([{ id: "a", decided: [] }]);
    expect(noted).toEqual([["restate", "a", numericsId, 0, false]]);
    const events = [];
    for await (const event of orphans[1]!.handle.events) events.push(event);
    expect(events).toMatchObject([{ type: "error", error: { code: "model_not_found" } }]);
  });

  it("end when nobody wants their answer any more", async () => {
    const { service, serve, ids, orphans } = bind(bench());
    const late = { ...left("a", 3), deadlineMs: Date.now() - 1 };
    const timely = { ...left("b", 3), deadlineMs: Date.now() + 60_000 };
    service.restore([late, timely].map((request) => ({ request, decided: [[]] })));
    await serve();
    expect(ids()).toEqual(["b"]);
    for await (const event of orphans[0]!.handle.events) {
      expect(event).toMatchObject({ type: "error", error: { code: "deadline_exceeded" } });
    }
  });

  it("end when one process after the other ended with them: they may be why", async () => {
    const { service, serve, ids, orphans } = bind(bench());
    service.restore([
      { request: left("a", 3, { recoveries: 5, tokens: 2 }), decided: [Int32Array.of(5, 6)] },
      // It has got on, so it was not.
      { request: left("b", 3, { recoveries: 5, tokens: 2 }), decided: [Int32Array.of(5), [6, 7]] },
    ]);
    await serve();
    expect(ids()).toEqual(["b"]);
    expect(orphans[1]!.request.accepted).toMatchObject({ recoveries: 0, tokens: 3 });
    for await (const event of orphans[0]!.handle.events) {
      expect(event).toMatchObject({ type: "error", error: { code: "request_poisoned" } });
    }
    expect(poisonOf(left("a", 3, { recoveries: 4 }))).toBeNull();
  });
});

describe("requests that the queue hands on and nobody waits for", () => {
  it("are dropped when their client left this process, or nobody could write their answer", () => {
    const { service, ids, noted, orphans } = bind(bench());
    service.admit(left("a", 7));
    service.admit(generation("b", [1]));
    const { answer: _, ...silent } = left("c", 3);
    service.admit(silent);
    expect([ids(), orphans]).toEqual([[], []]);
    expect(noted).toEqual([
      ["ended", "a"],
      ["ended", "b"],
      ["ended", "c"],
    ]);
  });

  it("stay in the queue when a newer coordinator leads", () => {
    expect(() => bench().service.admit(left("a", 8))).toThrow(
      "a coordinator of term 8 leads, this one has term 7",
    );
  });
});

it("accepts a request under its own term and numerics, and notes its tokens unless it is scored", async () => {
  const { service, noted, serve } = bind(bench());
  await serve();
  const seen: GenerationRequest[] = [];
  for (const request of [generation("a", [1]), generation("b", [1], { topLogprobs: 0 })]) {
    await service.submit(request);
    service.admit(request);
    service.emit(request.id, { type: "tokens", choice: 0, text: "", tokens: [1], logprobs: [] });
    seen.push(request);
  }
  expect(noted).toEqual([["decided", "a", 0, [1]]]);
  service.ended(a);
  expect(noted.at(-1)).toEqual(["ended", "a"]);
});

it("knows when a request can go on", () => {
  expect(continuation("cpu/canon1/f", "cpu/canon1/f")).toBe("goOn");
  expect(continuation("cpu/canon1/f", "cpu/canon2/f")).toBe("anew");
  expect(continuation("cpu/canon1/f", "cpu/canon1/g")).toBe("never");
});

/** Methods that can be taken apart. */
function bind(made: Bench) {
  const { service, admitted, cancelled, noted, orphans } = made;
  return {
    ...{ service, admitted, cancelled, noted, orphans },
    ids: () => made.ids(),
    serve: () => made.serve(),
    end: (id: RequestId) => made.end(id),
  };
}
