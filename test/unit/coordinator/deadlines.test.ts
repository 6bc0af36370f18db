/** A request ends at its deadline wherever it is: in the queue, waiting for its turn, or on its way. */
import { pino } from "pino";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { RelayError } from "../../../common/errors.js";
import { requestId } from "../../../common/ids.js";
import { Deadlines } from "../../../coordinator/deadlines.js";
import type {
  GenerationRequest,
  ModelInfo,
  RequestEvent,
  RequestHandle,
} from "../../../coordinator/inference.js";
import type { PromptService } from "../../../coordinator/prompt/service.js";
import type { RequestQueue } from "../../../coordinator/queue/queue.js";
import { Service } from "../../../coordinator/service.js";
import { FakeCluster, generation } from "../../support/fake-cluster.js";

beforeEach(() => {
  vi.useFakeTimers({
    now: 1_000_000,
    toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "Date"],
  });
});
afterEach(() => {
  vi.useRealTimers();
});

/** A service in front of a core whose workers answer when they are told to. */
function start(options: { takes?: boolean; admits?: boolean; maxBlocks?: number } = {}) {
  const cluster = new FakeCluster({ maxBlocks: options.maxBlocks ?? 64 });
  const removed: string[] = [];
  const ended: string[] = [];
  const queue: RequestQueue = {
    up: true,
    add: async (request) => {
      if (options.takes === false) throw new Error("Redis is away");
      if (options.admits ?? true) service.admit(request);
    },
    remove: async (id) => void removed.push(id),
    start: async () => {},
    ledger: {
      read: async () => [],
      restate: () => {},
      decided: () => {},
      ended: (id) => ended.push(id),
      keepAnswer: () => {},
      answer: async () => null,
    },
    onUpChange: () => {},
    close: async () => {},
  };
  const facts = {
    model: {} as ModelInfo,
    precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
    numericsId: () => null,
    term: 7,
    recoveryTimeoutMs: 600_000,
    probeAddress: null,
    grpcAddress: () => null,
  } as const;
  const log = pino({ level: "silent" });
  const service = new Service(facts, {} as PromptService, queue, () => cluster.core, log);
  cluster.listen({ emit: (id, event) => service.emit(id, event), ended: (id) => service.ended(id) });
  cluster.start();
  return { cluster, service, removed, ended };
}

async function readAll(handle: RequestHandle): Promise<RequestEvent[]> {
  const events: RequestEvent[] = [];
  for await (const event of handle.events) events.push(event);
  return events;
}

const errorOf = (events: RequestEvent[]): RelayError | null => {
  const last = events.at(-1);
  return last?.type === "error" ? last.error : null;
};

const until = (deadlineMs: number, request: GenerationRequest): GenerationRequest => ({
  ...request,
  deadlineMs,
});

it("in the queue", async () => {
  const { service, removed, ended } = start({ admits: false });
  const events = readAll(await service.submit(until(1_000_500, generation("a", [1]))));
  vi.advanceTimersByTime(499);
  expect(service.pendingCount).toBe(1);
  vi.advanceTimersByTime(1);
  expect(errorOf(await events)).toMatchObject({
    code: "deadline_exceeded",
    httpStatus: 408,
    retryable: false,
  });
  expect(service.pendingCount).toBe(0);
  expect([removed, ended]).toEqual([["a"], ["a"]]);
});

it("waiting for its turn, from which it goes at once", async () => {
  const { cluster, service } = start({ maxBlocks: 8 });
  const first = readAll(await service.submit(generation("first", [1], { maxTokens: 100 })));
  const second = readAll(
    await service.submit(until(1_000_500, generation("second", [2], { maxTokens: 100 }))),
  );
  expect(cluster.core.view().sequences).toEqual({ running: 1, waiting: 1 });
  vi.advanceTimersByTime(500);
  expect(cluster.core.view().sequences).toEqual({ running: 1, waiting: 0 });
  expect(errorOf(await second)?.code).toBe("deadline_exceeded");
  cluster.answerAll();
  expect((await first).at(-1)).toMatchObject({ type: "finish", completionTokens: 100 });
});

it("on its way, from which it goes with the step that it is in", async () => {
  const { cluster, service, ended } = start();
  const events = readAll(await service.submit(until(1_000_500, generation("a", [1, 2], { maxTokens: 40 }))));
  for (let n = 0; n < 5; n++) cluster.answer();
  vi.advanceTimersByTime(500);
  expect(cluster.core.view().sequences.running).toBe(1);
  cluster.answer();
  expect(cluster.core.view()).toMatchObject({ sequences: { running: 0, waiting: 0 }, blocks: { used: 0 } });
  const told = await events;
  expect(told.filter(({ type }) => type === "tokens")).toHaveLength(5);
  expect(errorOf(told)?.code).toBe("deadline_exceeded");
  expect(ended).toEqual(["a"]);
});

it("of an earlier process, while it is held and where it runs", async () => {
  const { cluster, service } = start();
  const left = (id: string, deadlineMs: number) => ({
    ...until(deadlineMs, generation(id, [1, 2], { maxTokens: 40 })),
    accepted: { term: 3, atMs: 5_000, numericsId: "", recoveries: 1, tokens: 0 },
    answer: { n: 1, asTokenIds: false, options: {} },
  });
  const followed: Promise<RequestEvent[]>[] = [];
  service.onOrphan((_, handle) => followed.push(readAll(handle)));
  // The model is not served yet.
  cluster.core.membership.gone(1, "its control stream broke");
  service.restore(
    [left("held", 1_000_500), left("runs", 1_002_000)].map((request) => ({ request, decided: [[]] })),
  );
  vi.advanceTimersByTime(500);
  expect(errorOf(await followed[0]!)?.code).toBe("deadline_exceeded");
  cluster.join(3, { worker: "worker-1" });
  cluster.pass(6_000, [2, 3]);
  cluster.link();
  service.readinessChanged();
  await new Promise((resolve) => setImmediate(resolve));
  for (let n = 0; n < 5; n++) cluster.answer();
  expect(cluster.core.view().sequences.running).toBe(1);
  vi.advanceTimersByTime(1_500);
  cluster.answerAll();
  const told = await followed[1]!;
  expect(told.filter(({ type }) => type === "tokens").length).toBeGreaterThan(2);
  expect(errorOf(told)?.code).toBe("deadline_exceeded");
  expect(cluster.core.view().blocks.used).toBe(0);
});

it("is refused when it comes too late, and left alone when it was answered before", async () => {
  const { cluster, service } = start();
  await expect(service.submit(until(1_000_000, generation("late", [1])))).rejects.toMatchObject({
    code: "deadline_exceeded",
  });
  const events = readAll(await service.submit(until(1_000_500, generation("a", [1]))));
  cluster.answerAll();
  expect((await events).at(-1)?.type).toBe("finish");
  const timers = vi.getTimerCount();
  vi.advanceTimersByTime(10_000);
  expect(timers).toBe(1); // the service's own
  expect(service.pendingCount).toBe(0);
});

it("holds no timer for a request that the queue did not take", async () => {
  const { service } = start({ takes: false });
  await expect(service.submit(until(1_000_500, generation("a", [1])))).rejects.toThrow("away");
  expect(vi.getTimerCount()).toBe(1);
});

it("may lie further off than a timer can, or before a clock that was set back", () => {
  const passed: string[] = [];
  const deadlines = new Deadlines((id) => passed.push(id));
  const month = 31 * 24 * 3_600_000;
  deadlines.watch(requestId("far"), 1_000_000 + month);
  deadlines.watch(requestId("near"), 1_000_000 + 10_000);
  vi.advanceTimersByTime(5_000);
  vi.setSystemTime(Date.now() - 3_000);
  vi.advanceTimersByTime(5_000);
  expect(passed).toEqual([]);
  vi.advanceTimersByTime(3_000);
  expect(passed).toEqual(["near"]);
  vi.advanceTimersByTime(month);
  expect(passed).toEqual(["near", "far"]);
});
