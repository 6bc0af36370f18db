/**
 * The inference service that the API sees: keeps each accepted request until it is answered, takes
 * it through the queue and hands its events to the one who waits.
 */
import { systemTimers, type Timer, type Timers } from "../common/clock.js";
import { RelayError } from "../common/errors.js";
import { type RequestId, requestId } from "../common/ids.js";
import type { Logger } from "../common/log.js";
import { formatName, type Precision } from "../models/quantization.js";
import type { Core } from "./core.js";
import { Deadlines, deadlinePassed, hasPassed } from "./deadlines.js";
import { EventStream } from "./event-stream.js";
import { type Accepted, HandOver, handOverLimitS, sweepMs } from "./hand-over.js";
import { HeldRequests } from "./held-requests.js";
import type {
  Acceptance,
  ClusterView,
  EventSink,
  GenerationRequest,
  InferenceService,
  ModelInfo,
  RequestEvent,
  RequestHandle,
  RequestState,
  TokenIds,
} from "./inference.js";
import {
  begun,
  continuation,
  isCalled,
  type OrphanListener,
  Orphans,
  poisonOf,
  withProgress,
} from "./orphans.js";
import { canReplay } from "./output/replay.js";
import type { PromptService } from "./prompt/service.js";
import type { LedgerEntry, RequestQueue } from "./queue/queue.js";
import { WakeUps } from "./wake-ups.js";

/** An accepted request: queued until the core has it, then admitted. */
interface Pending {
  request: GenerationRequest;
  admitted: boolean;
  accepted: Accepted;
  stream: EventSink;
  /** Its client was lost with the process that accepted it. */
  orphan: boolean;
  /** Its tokens are worth keeping. */
  replays: boolean;
  /** Neither queue nor ledger know of it. */
  isLine: boolean;
}

export interface ServiceFacts {
  model: ModelInfo;
  precision: Precision;
  numericsId: () => string | null;
  /** The number that Redis gave this process. */
  term: number;
  /** How long requests of an earlier process wait for the model to be served. */
  recoveryTimeoutMs: number;
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
  /** Bounded by the core's queue limit and, while they are queued, by intakeLimitS. */
  readonly #pending = new Map<RequestId, Pending>();
  /** When those of them were accepted that have had no step yet, oldest first. */
  readonly #waitingSinceMs = new Map<RequestId, number>();
  readonly #timers: Timers;
  readonly #deadlines: Deadlines;
  readonly #wakeUps: WakeUps;
  readonly #stepListeners: ((rows: number) => void)[] = [];
  readonly #recoveryListeners: ((reason: string, seconds: number) => void)[] = [];
  readonly #readinessListeners: (() => void)[] = [];
  readonly #held: HeldRequests;
  readonly #orphans: Orphans;
  readonly #sweep: Timer;
  readonly #handOver = new HandOver();
  #draining = false;

  constructor(
    facts: ServiceFacts,
    prompt: PromptService,
    queue: RequestQueue,
    core: () => Core,
    log: Logger,
    timers: Timers = systemTimers,
  ) {
    this.#facts = facts;
    this.model = facts.model;
    this.prompt = prompt;
    this.#queue = queue;
    this.#core = core;
    this.#log = log;
    this.#timers = timers;
    this.#deadlines = new Deadlines((id) => this.#giveUp(id, deadlinePassed()), timers);
    this.#wakeUps = new WakeUps(timers);
    this.#orphans = new Orphans(facts.term, timers.soon);
    this.#held = new HeldRequests({
      ready: () => core().ready,
      admit: (request, decided) => this.#giveToCore(request, decided),
      later: timers.soon,
      nowMs: timers.nowMs,
    });
    this.#sweep = timers.every(sweepMs, () => this.#giveUpOverdue());
    queue.onUpChange((up) => {
      this.readinessChanged();
      if (up) void this.#resubmit();
    });
  }

  get pendingCount(): number {
    return this.#pending.size;
  }

  notReady(): RelayError | null {
    if (this.#draining) return shuttingDown();
    if (!this.#queue.up) {
      return new RelayError("queue_unavailable", "the queue (Redis) does not answer", { retryAfterS: 1 });
    }
    return this.#core().notReady();
  }

  async submit(submitted: GenerationRequest): Promise<RequestHandle> {
    const notReady = this.notReady();
    if (notReady !== null) throw notReady;
    if (hasPassed(submitted.deadlineMs, this.#timers.timeOfDayMs())) throw deadlinePassed();
    const request = { ...submitted, accepted: this.#acceptance() };
    const stream = new EventStream(this.#wakeUps);
    this.#accept(request, stream);
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

  submitLine(request: GenerationRequest, sink: EventSink): () => void {
    if (this.#draining) throw shuttingDown();
    const notReady = this.#core().notReady();
    if (notReady !== null) throw notReady;
    if (this.#held.any) {
      throw new RelayError("model_loading", "requests of an earlier run come first", { retryAfterS: 1 });
    }
    this.#accept(request, sink, { isLine: true }).admitted = true;
    this.#core().admitLine(request);
    return () => this.#cancel(request.id);
  }

  /**
   * The queue's side. A request without anyone waiting is dropped when its client left, and finished when the
   * process that accepted it is gone.
   * @throws RelayError stale_epoch for a request of a process that began after this one.
   */
  admit(request: GenerationRequest): void {
    let pending = this.#pending.get(request.id);
    if (pending === undefined) {
      if (!this.#orphans.accepts(request)) {
        this.#queue.ledger.ended(request.id);
        return;
      }
      pending = this.#takeUp(request);
    }
    if (pending.admitted) return;
    pending.admitted = true;
    this.#handOver.handedOn(pending.orphan ? null : pending.accepted);
    if (this.#held.any || pending.orphan) this.#held.add(pending.request);
    else this.#core().admit(pending.request);
  }

  /** At the start, before the queue hands anything on: what earlier processes had admitted and not ended. */
  restore(entries: readonly LedgerEntry[]): void {
    for (const entry of entries) {
      const request = withProgress(entry);
      this.#takeUp(request).admitted = true;
      const poison = poisonOf(request);
      if (poison === null) this.#held.add(request, entry.decided);
      else this.#refuse(request.id, poison);
    }
    if (entries.length === 0) return;
    const tokens = entries.flatMap(({ decided }) => decided).reduce((sum, { length }) => sum + length, 0);
    this.#log.info({ requests: entries.length, tokens }, "requests of an earlier run are taken up again");
  }

  onOrphan(listener: OrphanListener): void {
    this.#orphans.listen(listener);
  }

  keepAnswer(id: RequestId, answer: string): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    this.#queue.ledger.keepAnswer(pending.request, answer);
  }

  async lookUp(name: string, tenant: string): Promise<RequestState | null> {
    const request = this.#find(name, tenant);
    if (request === null) {
      const answer = await this.#queue.ledger.answer(name, tenant);
      return answer === null ? null : { status: "ended", answer };
    }
    const { id, accepted } = request;
    const createdS = Math.floor((accepted?.atMs ?? 0) / 1_000);
    return { status: this.#waitingSinceMs.has(id) ? "queued" : "running", id, createdS };
  }

  /** The core's side. */
  emit(id: RequestId, event: RequestEvent): void {
    if (event.type === "started") this.#waitingSinceMs.delete(id);
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    if (event.type === "started" && pending.orphan) this.#queue.ledger.restate(begun(pending.request), true);
    if (event.type === "tokens" && pending.replays) {
      this.#queue.ledger.decided(id, event.choice, event.tokens);
    }
    pending.stream.push(event);
  }

  ended(id: RequestId): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#waitingSinceMs.delete(id);
    this.#deadlines.forget(id);
    pending.stream.end();
    // An orphan has ended when its answer is kept.
    if (pending.orphan) return;
    this.#pending.delete(id);
    if (!pending.isLine) this.#queue.ledger.ended(id);
  }

  stepFinished(rows: number): void {
    for (const listener of this.#stepListeners) listener(rows);
  }

  get numericsId(): string | null {
    return this.#facts.numericsId();
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
    this.#held.release();
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

  /** Ends what is left with an error. Nobody would hear it for an orphan: the next process finds it in the ledger. */
  close(error: RelayError): void {
    this.#sweep.cancel();
    for (const [id, { orphan }] of [...this.#pending]) if (!orphan) this.#giveUp(id, error);
  }

  #oldestWaitMs(): number {
    for (const sinceMs of this.#waitingSinceMs.values()) return this.#timers.nowMs() - sinceMs;
    return 0;
  }

  #giveUp(id: RequestId, error: RelayError): void {
    this.emit(id, { type: "error", error });
    this.#cancel(id);
  }

  #cancel(id: RequestId): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    if (pending.admitted && !this.#held.remove(id)) {
      this.#core().cancel(id);
      return;
    }
    this.ended(id);
    if (!pending.admitted) void this.#queue.remove(id);
  }

  /** Of those that have not ended. */
  #find(name: string, tenant: string): GenerationRequest | null {
    const pending = this.#pending.get(requestId(name));
    if (pending !== undefined) return pending.request;
    const called = Array.from(this.#pending.values(), ({ request }) => request);
    return called.findLast((request) => isCalled(request, name, tenant)) ?? null;
  }

  #acceptance(): Acceptance {
    const { term, numericsId } = this.#facts;
    const atMs = this.#timers.stampMs();
    return { term, atMs, numericsId: numericsId() ?? "", recoveries: 0, tokens: 0 };
  }

  #accept(
    request: GenerationRequest,
    stream: EventSink,
    { orphan = false, isLine = false }: Partial<Pick<Pending, "orphan" | "isLine">> = {},
  ): Pending {
    const pending = {
      request,
      admitted: false,
      accepted: this.#handOver.accept(),
      stream,
      orphan,
      replays: !isLine && canReplay(request),
      isLine,
    };
    this.#pending.set(request.id, pending);
    this.#waitingSinceMs.set(request.id, this.#timers.nowMs());
    if (request.deadlineMs !== undefined) this.#deadlines.watch(request.id, request.deadlineMs);
    return pending;
  }

  #takeUp(request: GenerationRequest): Pending {
    const { id } = request;
    const stream = new EventStream(this.#wakeUps);
    const pending = this.#accept(request, stream, { orphan: true });
    this.#orphans.add(request, { id, events: stream, cancel: () => this.#cancel(id) });
    return pending;
  }

  /** The core's turn has come. */
  #giveToCore(request: GenerationRequest, decided: readonly TokenIds[]): void {
    if (hasPassed(request.deadlineMs, this.#timers.timeOfDayMs())) {
      this.#refuse(request.id, deadlinePassed());
      return;
    }
    const { accepted } = request;
    const numericsId = this.#facts.numericsId() ?? "";
    const way = accepted === undefined ? "goOn" : continuation(accepted.numericsId, numericsId);
    if (way === "never") {
      const message = `the request was accepted for another model than ${this.model.id}, which is served now`;
      this.#refuse(request.id, new RelayError("model_not_found", message));
      return;
    }
    if (way === "goOn") {
      this.#core().admit(request, decided);
      return;
    }
    const anew = { ...request, accepted: { ...accepted!, numericsId, tokens: 0 } };
    const pending = this.#pending.get(request.id);
    if (pending !== undefined) pending.request = anew;
    this.#queue.ledger.restate(anew, false);
    this.#core().admit(anew);
  }

  #refuse(id: RequestId, error: RelayError): void {
    this.emit(id, { type: "error", error });
    this.ended(id);
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
    const overdue = this.#held.overdue(this.#facts.recoveryTimeoutMs);
    for (const id of overdue?.ids ?? []) this.#refuse(id, overdue!.error);
    this.#handOver.sweep();
    for (const [id, { admitted, accepted }] of this.#pending) {
      if (admitted || !this.#handOver.isLost(accepted)) continue;
      const message = `the queue did not hand the request on within ${handOverLimitS} s`;
      this.#giveUp(id, new RelayError("queue_unavailable", message, { retryAfterS: 1 }));
    }
  }
}

function shuttingDown(): RelayError {
  return new RelayError("draining", "the server is shutting down", { retryAfterS: 5 });
}
