/**
 * The inference service that the API sees: keeps each accepted request until it is answered, takes
 * it through the queue and hands its events to the one who waits.
 */
import { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";
import type { Logger } from "../common/log.js";
import { formatName, type Precision } from "../models/quantization.js";
import type { Core } from "./core.js";
import { Deadlines, deadlinePassed } from "./deadlines.js";
import type {
  ClusterView,
  GenerationRequest,
  InferenceService,
  ModelInfo,
  RequestEvent,
  RequestHandle,
} from "./inference.js";
import type { PromptService } from "./prompt/service.js";
import type { RequestQueue } from "./queue/queue.js";
import { WakeUps } from "./wake-ups.js";

/** A request that the queue took and nobody admitted within this time is given up with a 503. */
const admitLimitMs = 10_000;
/** How often overdue requests are looked for. */
const sweepMs = 1_000;

/** An accepted request: queued until the core has it, then admitted. */
interface Pending {
  request: GenerationRequest;
  admitted: boolean;
  queuedAtMs: number;
  stream: EventStream;
}

export interface ServiceFacts {
  model: ModelInfo;
  precision: Precision;
  numericsId: () => string | null;
  /** host:port of the coordinator's probes; null without them. */
  probeAddress: string | null;
  /** host:port of the gRPC API; null without it. */
  grpcAddress: () => string | null;
}

export class Service implements InferenceService {
  readonly model: ModelInfo;
  readonly prompt: PromptService;
  readonly #facts: ServiceFacts;
  readonly #queue: RequestQueue;
  readonly #core: () => Core;
  readonly #log: Logger;
  /** Bounded by the core's queue limit and, while they are queued, by admitLimitMs. */
  readonly #pending = new Map<RequestId, Pending>();
  /** When those of them were accepted that have had no step yet, oldest first. */
  readonly #waitingSinceMs = new Map<RequestId, number>();
  readonly #deadlines = new Deadlines((id) => this.#giveUp(id, deadlinePassed()));
  readonly #wakeUps = new WakeUps();
  readonly #stepListeners: ((rows: number) => void)[] = [];
  readonly #recoveryListeners: ((reason: string, seconds: number) => void)[] = [];
  readonly #readinessListeners: (() => void)[] = [];
  readonly #sweep: NodeJS.Timeout;
  #draining = false;

  constructor(
    facts: ServiceFacts,
    prompt: PromptService,
    queue: RequestQueue,
    core: () => Core,
    log: Logger,
  ) {
    this.#facts = facts;
    this.model = facts.model;
    this.prompt = prompt;
    this.#queue = queue;
    this.#core = core;
    this.#log = log;
    this.#sweep = setInterval(() => this.#giveUpOverdue(), sweepMs).unref();
    queue.onUpChange((up) => {
      this.readinessChanged();
      if (up) void this.#resubmit();
    });
  }

  get pendingCount(): number {
    return this.#pending.size;
  }

  notReady(): RelayError | null {
    if (this.#draining) return new RelayError("draining", "the server is shutting down", { retryAfterS: 5 });
    if (!this.#queue.up) {
      return new RelayError("queue_unavailable", "the queue (Redis) does not answer", { retryAfterS: 1 });
    }
    return this.#core().notReady();
  }

  async submit(request: GenerationRequest): Promise<RequestHandle> {
    const notReady = this.notReady();
    if (notReady !== null) throw notReady;
    const { deadlineMs = Number.POSITIVE_INFINITY } = request;
    if (deadlineMs <= Date.now()) throw deadlinePassed();
    const stream = new EventStream(this.#wakeUps);
    const queuedAtMs = performance.now();
    this.#pending.set(request.id, { request, admitted: false, queuedAtMs, stream });
    this.#waitingSinceMs.set(request.id, queuedAtMs);
    if (Number.isFinite(deadlineMs)) this.#deadlines.watch(request.id, deadlineMs);
    try {
      await this.#queue.add(request);
    } catch (error) {
      this.#pending.delete(request.id);
      this.#waitingSinceMs.delete(request.id);
      this.#deadlines.forget(request.id);
      throw error;
    }
    this.#log.debug({ requestId: request.logId, completionId: request.id }, "request queued");
    return { id: request.id, events: stream, cancel: () => this.#cancel(request.id) };
  }

  /** The queue's side: a request without anyone waiting (its client left, or an earlier process had it) is dropped. */
  admit(request: GenerationRequest): void {
    const pending = this.#pending.get(request.id);
    if (pending === undefined) {
      this.#queue.ended(request.id);
      return;
    }
    if (pending.admitted) return;
    pending.admitted = true;
    this.#core().admit(pending.request);
  }

  /** The core's side. */
  emit(id: RequestId, event: RequestEvent): void {
    if (event.type === "started") this.#waitingSinceMs.delete(id);
    this.#pending.get(id)?.stream.push(event);
  }

  ended(id: RequestId): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    this.#waitingSinceMs.delete(id);
    this.#deadlines.forget(id);
    pending.stream.end();
    this.#queue.ended(id);
  }

  stepFinished(rows: number): void {
    for (const listener of this.#stepListeners) listener(rows);
  }

  get contextLength(): number {
    return Math.min(this.model.contextLength, this.#core().sequenceTokens);
  }

  onStep(listener: (rows: number) => void): void {
    this.#stepListeners.push(listener);
  }

  recovered(reason: string, seconds: number): void {
    for (const listener of this.#recoveryListeners) listener(reason, seconds);
  }

  onRecovery(listener: (reason: string, seconds: number) => void): void {
    this.#recoveryListeners.push(listener);
  }

  /** The core's side, and the queue's. */
  readinessChanged(): void {
    for (const listener of this.#readinessListeners) listener();
  }

  onReadiness(listener: () => void): void {
    this.#readinessListeners.push(listener);
  }

  cluster(): ClusterView {
    const view = this.#core().view();
    const { precision } = this.#facts;
    return {
      ...view,
      model: this.model.id,
      state: this.#draining ? "draining" : view.state,
      reason: this.notReady()?.message ?? "",
      dtype: precision.dtype,
      kvType: precision.kvType,
      quantization: { weights: formatName(precision.weights), head: formatName(precision.head) },
      numericsId: this.#facts.numericsId(),
      redisUp: this.#queue.up,
      oldestWaitMs: this.#oldestWaitMs(),
      probeAddress: this.#facts.probeAddress,
      grpcAddress: this.#facts.grpcAddress(),
    };
  }

  /** From now on new requests are refused; what was accepted goes on. */
  drain(): void {
    this.#draining = true;
    this.readinessChanged();
  }

  /** Ends what is left with an error. */
  close(error: RelayError): void {
    clearInterval(this.#sweep);
    for (const id of [...this.#pending.keys()]) this.#giveUp(id, error);
  }

  #oldestWaitMs(): number {
    for (const sinceMs of this.#waitingSinceMs.values()) return performance.now() - sinceMs;
    return 0;
  }

  #giveUp(id: RequestId, error: RelayError): void {
    this.emit(id, { type: "error", error });
    this.#cancel(id);
  }

  #cancel(id: RequestId): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    if (pending.admitted) {
      this.#core().cancel(id);
      return;
    }
    this.ended(id);
    void this.#queue.remove(id);
  }

  /** Redis may have lost its last second: whoever still waits is queued again under the same id. */
  async #resubmit(): Promise<void> {
    for (const [id, { request, admitted }] of [...this.#pending]) {
      if (admitted || !this.#pending.has(id)) continue;
      try {
        await this.#queue.add(request);
      } catch (error) {
        this.#log.debug(
          { requestId: request.logId, completionId: id, err: error },
          "could not queue a request again yet",
        );
      }
    }
  }

  #giveUpOverdue(): void {
    const now = performance.now();
    for (const [id, { admitted, queuedAtMs }] of this.#pending) {
      if (admitted || now - queuedAtMs < admitLimitMs) continue;
      const message = `the queue did not hand the request on within ${admitLimitMs / 1000} s`;
      this.#giveUp(id, new RelayError("queue_unavailable", message, { retryAfterS: 1 }));
    }
  }
}

/** The events of one request: at most one per token and choice, read by one consumer. */
class EventStream implements AsyncIterable<RequestEvent> {
  readonly #wakeUps: WakeUps;
  readonly #events: RequestEvent[] = [];
  #done = false;
  #wake: (() => void) | null = null;

  constructor(wakeUps: WakeUps) {
    this.#wakeUps = wakeUps;
  }

  push(event: RequestEvent): void {
    this.#events.push(event);
    this.#notify();
  }

  end(): void {
    this.#done = true;
    this.#notify();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<RequestEvent> {
    for (;;) {
      while (this.#events.length > 0) yield this.#events.shift()!;
      if (this.#done) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #notify(): void {
    const wake = this.#wake;
    if (wake === null) return;
    this.#wake = null;
    this.#wakeUps.wake(wake);
  }
}
