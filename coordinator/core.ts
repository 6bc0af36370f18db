/**
 * The coordinator's core: membership, scheduler, pipeline and output put together. A state machine
 * without socket, timer or await: the live coordinator and the simulator drive the same code.
 */
import type { Clock } from "../common/clock.js";
import { RelayError, toRelayError } from "../common/errors.js";
import type { Epoch, PipelineId, RequestId, SequenceId } from "../common/ids.js";
import { maxLoggedRequests, maxMicroBatchesInFlight, maxStepRows } from "../common/limits.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import { type ActiveChoice, type ActiveRequest, namesOf } from "./active-request.js";
import { ActiveRequests } from "./active-requests.js";
import { allTogether, classCounts, noTokenYet, pipelineView } from "./cluster-view.js";
import type { CoreConfig, CorePorts } from "./core-ports.js";
import type { ClusterView, GenerationRequest, RequestEvent, TokenIds, TokenLogprob } from "./inference.js";
import { Intake } from "./intake.js";
import { Membership } from "./membership/membership.js";
import { ChoiceOutput } from "./output/choice-output.js";
import { PromptScores } from "./output/prompt-scores.js";
import { replay } from "./output/replay.js";
import type { SequenceOutcome } from "./pipeline/pipeline.js";
import { Pipelines } from "./pipelines.js";
import type { LayerRange } from "./placement/cut.js";
import { blocksFor } from "./scheduler/block-pool.js";
import type { ScheduledSlice } from "./scheduler/context-slices.js";
import type { ScheduledRows } from "./scheduler/scheduled-step.js";
import { Serving } from "./serving.js";
import { warmUpId, warmUpRequest } from "./warm-up.js";

/** What CoreConfig.queueLimit is when the coordinator runs. */
export const queueLimit = 10_000;
/** Sequences that a lost pipeline leaves may be thousands; the next ones follow when something happens again. */
const placedPerTurn = 256;
/** What a reply is taken to need before any has ended, in tokens. */
const firstExpectedReply = 256;

/** What the service around the core adds to the view. */
type ServiceFacts =
  | "model"
  | "numericsId"
  | "redisUp"
  | "dtype"
  | "kvType"
  | "quantization"
  | "oldestWaitMs"
  | "probeAddress"
  | "grpcAddress";

export class Core {
  readonly membership: Membership;
  readonly #config: CoreConfig;
  readonly #ports: CorePorts;
  readonly #clock: Clock;
  readonly #active = new ActiveRequests();
  readonly #pipelines: Pipelines;
  /** Choices that wait for a pipeline may find one now. */
  #mayPlace = false;
  readonly #intake: Intake;
  readonly #counters = {
    steps: 0,
    contextSlices: 0,
    preemptions: 0,
    prefixCacheQueries: 0,
    prefixCacheHits: 0,
    draftedTokens: 0,
    acceptedTokens: 0,
  };

  constructor(config: CoreConfig, ports: CorePorts, clock: Clock) {
    this.#config = config;
    this.#intake = new Intake(config.queueLimit);
    this.#ports = ports;
    this.#clock = clock;
    this.#pipelines = new Pipelines(config.membership.pipelineCount, config.prefixLength, (pipeline) =>
      this.membership.canGrow(pipeline),
    );
    this.membership = new Membership(
      // What the first token needs.
      { ...config.membership, minBlocks: blocksFor(config.prefixLength + 1) },
      {
        ...ports,
        formed: (pipeline, epoch, blockCount, stages) => this.#formed(pipeline, epoch, blockCount, stages),
        dissolved: (pipeline, error) => this.#dissolved(pipeline, error),
      },
      clock,
    );
  }

  /** A token has travelled through all stages of a pipeline. */
  get ready(): boolean {
    return this.#pipelines.ready;
  }

  /** Tokens that the KV cache of a pipeline holds; no bound while none was formed yet. */
  get sequenceTokens(): number {
    return this.#pipelines.sequenceTokens;
  }

  get requestCount(): number {
    return this.#active.size;
  }

  /** Null when a new request would be taken; else the error it gets. */
  notReady(): RelayError | null {
    if (this.ready) return null;
    const reason = this.membership.notFormedReason || noTokenYet;
    return new RelayError("model_loading", `the model is not being served: ${reason}`, { retryAfterS: 1 });
  }

  /**
   * Puts a request into the waiting set. Failures are told as its error event.
   * @param decided Tokens of each choice that an earlier coordinator had decided; the request goes on behind them.
   */
  admit(request: GenerationRequest, decided: readonly TokenIds[] = []): void {
    this.#admit(request, decided, true);
  }

  /** The same for a line of a batch: whoever submits it bounds how many there are, so it takes nobody's place. */
  admitLine(request: GenerationRequest): void {
    this.#admit(request, [], false);
  }

  /** @param counted Whether it takes a place of those that intake gives out. */
  #admit(request: GenerationRequest, decided: readonly TokenIds[], counted: boolean): void {
    try {
      this.#start(request, decided, counted);
    } catch (error) {
      this.#ports.emit(request.id, { type: "error", error: toRelayError(error) });
      this.#ports.ended(request.id);
    }
    this.#pump();
  }

  /** Its sequences leave at once if they wait, else when the step they are in has come back. */
  cancel(id: RequestId): void {
    const active = this.#active.get(id);
    if (active === undefined) return;
    this.#ports.log("debug", "request cancelled", namesOf(active.request));
    this.#close(active);
    this.#pump();
  }

  /** An answer of the last stage. */
  stepResult(result: StepResult__Output): void {
    const serving = this.#pipelines.of(result.pipeline);
    if (serving === null) return;
    try {
      const outcomes = serving.complete(result, this.#clock.nowMs());
      if (outcomes === null) return;
      for (const outcome of outcomes) this.#decide(outcome);
      // The next step leaves first: its tokens are known, and the stages work while text is made of them.
      this.#pump();
      for (const outcome of outcomes) this.#deliver(outcome);
    } catch (error) {
      this.membership.linkBroken(serving.epoch, toRelayError(error), -1);
      return;
    }
    this.#pump();
  }

  /** Call every tickMs (membership/leases.ts). */
  tick(): void {
    this.membership.tick();
    this.#giveUpInterrupted();
    for (const serving of this.#pipelines.formed) {
      const isIdle = () => !this.#active.choices().some((choice) => choice.serving === serving);
      if (this.membership.canGrow(serving.id) && isIdle()) this.membership.grow(serving.id);
      const overdue = serving.overdue(this.#clock.nowMs(), (sinceMs) =>
        this.membership.allIdleSince(serving.id, sinceMs),
      );
      if (overdue === null) continue;
      this.membership.linkBroken(serving.epoch, new RelayError("worker_lost", overdue), null);
    }
    this.#pump();
  }

  view(): Omit<ClusterView, ServiceFacts> {
    const { itlTargetMs, membership } = this.#config;
    const wanted = { stageCount: membership.stageCount, itlTargetMs };
    const pipelines = this.membership
      .planViews()
      .map((plan) => pipelineView(plan, this.#pipelines.of(plan.pipeline), wanted));
    const unplaced = this.#active.unplaced();
    return {
      state: this.ready ? "ready" : this.membership.phase === "waiting" ? "waiting" : "loading",
      reason: this.notReady()?.message ?? "",
      epoch: this.membership.epoch,
      workers: this.membership.workerViews(),
      ...allTogether(pipelines, unplaced.length),
      classes: classCounts(this.#pipelines.formed, unplaced),
      counters: {
        ...this.membership.counters,
        staleMessages: this.membership.staleMessages(),
        ...this.#counters,
      },
    };
  }

  #formed(pipeline: PipelineId, epoch: Epoch, blockCount: number, stages: readonly LayerRange[]): void {
    const { microBatches, prefillChunk, prefixLength, speculation, itlTargetMs } = this.#config;
    const limits = {
      blockCount,
      stageCount: stages.length,
      stages,
      microBatches: microBatches === null ? null : Math.min(microBatches, maxMicroBatchesInFlight),
      maxStepRows,
      prefixLength,
      prefillChunk,
      firstExpectedReply,
      speculation,
      itlTargetMs,
    };
    const ports = {
      sendStep: (header: StepHeader) => this.#ports.sendStep(header),
      stepFinished: (rows: number) => {
        this.#counters.steps++;
        this.#ports.stepFinished(rows);
      },
      choiceOf: (sequence: SequenceId) => this.#active.choiceOf(sequence)!,
      preempted: (sequence: SequenceId) => this.#notePreempted(sequence),
      rowsDue: (choice: ActiveChoice, rows: ScheduledRows) => this.#rowsDue(choice, rows),
      sliceDue: (choice: ActiveChoice, slice: ScheduledSlice) => this.#sliceDue(choice, slice),
    };
    const serving = new Serving(pipeline, epoch, limits, ports, this.#clock.nowMs());
    this.#pipelines.add(serving);
    this.#begin(warmUpRequest(pipeline), [], (choice) => {
      choice.serving = serving;
      serving.submit(choice);
    });
    this.#pump();
  }

  /** What the pipeline had goes on in another one that serves, or waits until there is one. */
  #dissolved(pipeline: PipelineId, error: RelayError): void {
    const warmUp = this.#active.get(warmUpId(pipeline));
    if (warmUp !== undefined) this.#close(warmUp);
    const { interrupted, poisonous } = this.#pipelines.lost(
      pipeline,
      error.code,
      this.#active.choices(),
      this.#clock.nowMs(),
    );
    this.#ports.readyChanged(this.ready);
    this.#logInterrupted(interrupted, error);
    for (const choice of interrupted) this.#startOver(choice);
    for (const { request: active, deaths } of poisonous) {
      if (!this.#active.has(active)) continue;
      const message =
        `${deaths} pipelines in a row were lost while they computed this request, ` +
        `the last one because of: ${error.message}`;
      this.#fail(active, new RelayError("request_poisoned", message, { cause: error }));
    }
    this.#mayPlace = true;
    this.#pump();
  }

  /** Interrupted requests wait for the next pipeline, but not for ever. */
  #giveUpInterrupted(): void {
    const { recoveryTimeoutMs } = this.#config;
    const away = this.#pipelines.awayFor(recoveryTimeoutMs, this.#clock.nowMs());
    if (away === null) return;
    const message =
      `a worker was lost (${away.loss.reason}) and the model was not served again ` +
      `within ${recoveryTimeoutMs / 1_000} s: ${this.membership.planViews()[away.pipeline]!.reason}`;
    const lost = new RelayError("worker_lost", message, { retryAfterS: 1 });
    for (const choice of this.#active.unplaced()) {
      // The request of one before it may have failed.
      if (this.#active.has(choice.request) && !this.#pipelines.hasRoomFor(choice)) {
        this.#fail(choice.request, lost);
      }
    }
  }

  /** What waits for a pipeline is built there from its tokens, and goes on; of a crowd, the first ones. */
  #placeWaiting(): void {
    this.#mayPlace = false;
    if (!this.ready) return;
    let placed = 0;
    for (const choice of this.#pipelines.inOrder(this.#active.unplaced())) {
      // The request of one before it may have failed.
      if (this.#active.has(choice.request)) this.#place(choice);
      if (choice.serving !== null) placed++;
      if (placed < placedPerTurn) continue;
      this.#mayPlace = true;
      return;
    }
  }

  #place(choice: ActiveChoice): void {
    try {
      this.#pipelines.place(choice);
    } catch (error) {
      this.#fail(choice.request, toRelayError(error));
    }
  }

  #start(request: GenerationRequest, decided: readonly TokenIds[], counted: boolean): void {
    // What was accepted before a loss waits with those that it interrupted.
    const notReady = this.#pipelines.missed ? null : this.notReady();
    if (notReady !== null) throw notReady;
    if (counted) this.#intake.require(request.class, request.choices.length, this.#clock.nowMs());
    const place = (choice: ActiveChoice) => {
      if (this.ready) this.#place(choice);
    };
    this.#begin(request, decided, place, counted);
  }

  /** @param place Gives a choice to a pipeline, or lets it wait. */
  #begin(
    request: GenerationRequest,
    decided: readonly TokenIds[],
    place: (choice: ActiveChoice) => void,
    counted = true,
  ): void {
    const { maxTokens } = request.sampling;
    if (this.ready) {
      for (const { promptTokens: prompt, context = null } of request.choices) {
        this.#pipelines.requireRoom({ prompt, context, maxTokens });
      }
    }
    const active = this.#active.add(request, (index) => this.#newOutput(request, index), counted);
    if (counted) this.#intake.opened(request.class, active.open.size, this.#clock.nowMs());
    const [firstSequence = 0] = active.open.keys();
    this.#ports.log("debug", "request admitted", {
      ...namesOf(request),
      firstSequence,
      choices: request.choices.length,
    });
    for (const choice of [...active.open.values()]) {
      if (!this.#active.has(active)) return;
      // Neither tokens nor scores are wanted: there is nothing to compute.
      if (request.sampling.maxTokens === 0 && choice.scores === null)
        this.#emit(choice, choice.output.finishEmpty());
      else if (this.#goOnBehind(choice, decided[choice.index] ?? [])) place(choice);
    }
  }

  /** @returns Whether the choice has tokens left to decide. */
  #goOnBehind(choice: ActiveChoice, decided: TokenIds): boolean {
    const { events, generated } = replay(choice.output, choice.prompt, decided);
    choice.generated = generated;
    for (const event of events) this.#emit(choice, event);
    return events.at(-1)?.type !== "finish";
  }

  #newOutput({ sampling, text }: GenerationRequest, index: number): ChoiceOutput {
    const { modelStopTokens } = this.#config;
    return new ChoiceOutput(index, { sampling, modelStopTokens }, this.#config.createDetokenizer(text));
  }

  /** The end of everything that happens: gives out what waits, and sends what may be sent. */
  #pump(): void {
    if (this.#mayPlace) this.#placeWaiting();
    for (const serving of this.#pipelines.formed) serving.pump(this.#clock.nowMs());
  }

  /** It is computed again from its beginning, so all scores of its prompt come again. */
  #notePreempted(sequence: SequenceId): void {
    this.#counters.preemptions++;
    const choice = this.#active.choiceOf(sequence);
    // It may have ended since.
    if (choice !== undefined) this.#startOver(choice);
  }

  #startOver(choice: ActiveChoice): void {
    const { tokens, context } = choice.prompt;
    if (choice.scores !== null) choice.scores = new PromptScores(tokens, context);
    choice.again = true;
  }

  #sliceDue(choice: ActiveChoice, slice: ScheduledSlice): void {
    this.#counters.contextSlices++;
    this.#rowsDue(choice, { ...slice, reused: 0, draftRows: 0 });
  }

  #rowsDue(
    choice: ActiveChoice,
    rows: Pick<ScheduledRows, "first" | "reused" | "tokens" | "draftRows">,
  ): void {
    const { first, reused, tokens, draftRows } = rows;
    this.#counters.draftedTokens += draftRows;
    const active = choice.request;
    // What is rebuilt after a loss was counted before it.
    if (choice.generated.length === 0 && !choice.again) {
      choice.reused += reused;
      this.#counters.prefixCacheQueries += reused + tokens.length;
      this.#counters.prefixCacheHits += reused;
    }
    if (!first || active.started) return;
    active.started = true;
    this.#ports.emit(active.request.id, { type: "started" });
  }

  /**
   * What the ids alone decide: whether the sequence goes on, and with which tokens. A stop string shows only in
   * the text; then one more row has been sent, whose outcome finds no choice.
   */
  #decide({ sequence, drawn, scores, finite }: SequenceOutcome): void {
    this.#counters.acceptedTokens += Math.max(0, drawn.length - 1);
    const choice = this.#active.choiceOf(sequence);
    if (choice === undefined || (!finite && drawn.length === 0)) return;
    const scored = choice.scores?.take(scores) ?? null;
    if (scored !== null) {
      choice.scores = null;
      choice.scored = scored;
    }
    if (drawn.length > 0 || scored !== null) this.#gotOn(choice);
    const serving = choice.serving!;
    for (const { token } of drawn) {
      choice.generated.push(token);
      if (choice.output.endsWith(token, choice.generated.length)) {
        // What a draft brought behind it was never drawn.
        serving.remove(sequence);
        return;
      }
      if (finite) serving.append(sequence, token);
    }
  }

  /** Text and events of what was decided. */
  #deliver({ sequence, drawn, finite }: SequenceOutcome): void {
    const choice = this.#active.choiceOf(sequence);
    if (choice === undefined) return;
    if (choice.scored !== null) {
      this.#emit(choice, { type: "prompt", choice: choice.index, scores: choice.scored });
      choice.scored = null;
      const { maxTokens } = choice.request.request.sampling;
      if (maxTokens === 0) this.#emit(choice, choice.output.finishEmpty());
    }
    for (const token of drawn) if (this.#active.choiceOf(sequence) === choice) this.#write(choice, token);
    if (!finite && this.#active.choiceOf(sequence) === choice) this.#afterNonFinite(choice);
  }

  /** Other workers try it once, where there are some that serve: one of these may be broken. */
  #afterNonFinite(choice: ActiveChoice): void {
    const { sequence, request: active, serving } = choice;
    const message = "the model computed a value that is not finite (NaN or infinity) for this request";
    const pipeline = serving?.id ?? 0;
    this.#ports.log("warn", message, { ...namesOf(active.request), sequence, pipeline });
    if (choice.distrusted === null && serving !== null) {
      serving.remove(sequence);
      choice.serving = null;
      choice.distrusted = serving.id;
      this.#startOver(choice);
      this.#place(choice);
      // It may have been placed, or have failed for another reason.
      if (choice.serving !== null || !this.#active.has(active)) return;
    }
    this.#fail(active, new RelayError("numeric_error", message));
  }

  /** Text and events of the choice's next token. */
  #write(choice: ActiveChoice, token: TokenLogprob): void {
    for (const event of choice.output.push(token)) {
      for (const told of choice.prompt.events(event)) this.#emit(choice, told);
      if (event.type === "finish" && choice.prompt.next(choice.output.tokensBehindEnd)) this.#goOn(choice);
    }
  }

  /** The next blank is filled by a sequence of its own, under the same rules. */
  #goOn(choice: ActiveChoice): void {
    choice.serving?.remove(choice.sequence);
    this.#active.renew(choice, this.#newOutput(choice.request.request, choice.index));
    // When the pipeline was lost meanwhile, another one builds it.
    choice.serving?.submit(choice);
  }

  #emit(choice: ActiveChoice, event: RequestEvent): void {
    const { request } = choice.request;
    if (event.type !== "finish") {
      this.#ports.emit(request.id, event);
      return;
    }
    this.#ports.emit(request.id, { ...event, cachedTokens: choice.reused });
    this.#drop(choice, request.id !== choice.serving?.warmUp);
    if (choice.request.open.size > 0) return;
    this.#active.delete(choice.request);
    this.#ports.log("debug", "request finished", namesOf(request));
    this.#ports.ended(request.id);
    if (request.id === choice.serving?.warmUp) this.#warmedUp(choice.serving);
  }

  #warmedUp(serving: Serving): void {
    const loss = this.#pipelines.warmedUp(serving);
    this.membership.proven(serving.id);
    this.#ports.readyChanged(true);
    // Some may wait for this one though others serve.
    this.#mayPlace = true;
    if (loss !== null) this.#ports.recovered(loss.reason, this.#clock.nowMs() - loss.sinceMs);
  }

  #fail(active: ActiveRequest, error: RelayError): void {
    this.#ports.emit(active.request.id, { type: "error", error });
    this.#ports.log("debug", "request failed", { ...namesOf(active.request), code: error.code });
    this.#close(active);
  }

  /** One line for a loss, however many requests it hits; each has its own line where it is answered. */
  #logInterrupted(interrupted: readonly ActiveChoice[], error: RelayError): void {
    if (interrupted.length === 0) return;
    const requests = [...new Set(interrupted.map(({ request }) => request))];
    this.#ports.log("warn", "requests were interrupted", {
      code: error.code,
      count: requests.length,
      requestIds: requests.slice(0, maxLoggedRequests).map(({ request }) => request.logId),
    });
  }

  #close(active: ActiveRequest): void {
    for (const choice of [...active.open.values()]) this.#drop(choice);
    this.#active.delete(active);
    this.#ports.ended(active.request.id);
  }

  /** Further than where pipelines were lost, or to its end. */
  #gotOn(choice: ActiveChoice): void {
    if (this.#pipelines.cleared(choice)) this.#mayPlace = true;
  }

  /** @param finished Whether it was answered. */
  #drop(choice: ActiveChoice, finished = false): void {
    this.#active.drop(choice);
    const { request, counted } = choice.request;
    if (counted) this.#intake.closed(request.class, finished, this.#clock.nowMs());
    choice.serving?.remove(choice.sequence);
    this.#gotOn(choice);
  }
}
