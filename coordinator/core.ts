/**
 * The coordinator's core: membership, scheduler, pipeline and output put together. A state machine
 * without socket, timer or await: the live coordinator and the simulator drive the same code.
 */
import type { Clock } from "../common/clock.js";
import { type ErrorCode, RelayError, toRelayError } from "../common/errors.js";
import { type Epoch, type PipelineId, type RequestId, type SequenceId, sequenceId } from "../common/ids.js";
import {
  kvBlockSize,
  maxContextRows,
  maxLoggedRequests,
  maxMicroBatchesInFlight,
  maxStepRows,
} from "../common/limits.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import { type ActiveChoice, type ActiveRequest, namesOf } from "./active-request.js";
import type {
  ClusterView,
  GenerationRequest,
  PromptContext,
  RequestEvent,
  TextParams,
  TimingView,
  TokenIds,
  TokenLogprob,
} from "./inference.js";
import { Membership } from "./membership/membership.js";
import type { MembershipConfig, MembershipPorts } from "./membership/ports.js";
import { ChoiceOutput } from "./output/choice-output.js";
import { ChoicePrompt, mostTokens } from "./output/choice-prompt.js";
import { PromptScores } from "./output/prompt-scores.js";
import { replay } from "./output/replay.js";
import { type SequenceOutcome, sequenceSampling } from "./pipeline/pipeline.js";
import type { Detokenizer } from "./prompt/service.js";
import { blocksFor, type ScheduledRows } from "./scheduler/scheduler.js";
import { defaultKneeRows } from "./scheduler/speculation.js";
import { Serving } from "./serving.js";
import { Suspects } from "./suspects.js";
import { warmUpId, warmUpRequest } from "./warm-up.js";

/** Sequences admitted and not finished; above it new requests get queue_full. */
export const queueLimit = 10_000;
/** What a reply is taken to need before any has ended, in tokens. */
const firstExpectedReply = 256;

export interface CoreConfig {
  membership: Omit<MembershipConfig, "minBlocks">;
  /** Micro-batches in flight; null: by what is measured. */
  microBatches: number | null;
  prefillChunk: number;
  /** Decodes may carry drafts where they pay. */
  speculation: boolean;
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs: number;
  /** How long interrupted requests wait for the next pipeline. */
  recoveryTimeoutMs: number;
  /** KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  prefixLength: number;
  modelStopTokens: ReadonlySet<number>;
  createDetokenizer(text: TextParams): Detokenizer;
}

export interface CorePorts extends Omit<MembershipPorts, "formed" | "dissolved"> {
  sendStep(header: StepHeader): void;
  /** What happened to a request; after `ended` nothing follows. */
  emit(request: RequestId, event: RequestEvent): void;
  ended(request: RequestId): void;
  /** Rows of a finished step. */
  stepFinished(rows: number): void;
  /** The pipeline answered its first token, or is gone. */
  readyChanged(ready: boolean): void;
  /** The first token after a ready pipeline was lost: why it was, and how long ago. */
  recovered(reason: ErrorCode, afterMs: number): void;
}

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
  readonly #requests = new Map<RequestId, ActiveRequest>();
  readonly #choices = new Map<SequenceId, ActiveChoice>();
  #serving: Serving | null = null;
  /** KV blocks of the pipeline that is or was formed last. */
  #blockCount = 0;
  #stepCount = 0;
  #preemptions = 0;
  /** Of prompts: those whose rows were due, and those of them that were computed before. */
  readonly #promptTokens = { looked: 0, reused: 0 };
  /** Tokens guessed at, and those of them that were drawn. */
  readonly #draftTokens = { drafted: 0, accepted: 0 };
  /** Over all epochs: a sequence keeps its number when it is rebuilt. */
  #nextSequence = 1;
  readonly #suspects = new Suspects<ActiveRequest>();
  /** Since when and why a pipeline that was ready is gone; null while none is missed. */
  #loss: { reason: ErrorCode; sinceMs: number } | null = null;

  constructor(config: CoreConfig, ports: CorePorts, clock: Clock) {
    this.#config = config;
    this.#ports = ports;
    this.#clock = clock;
    this.membership = new Membership(
      // What the first token needs.
      { ...config.membership, minBlocks: blocksFor(config.prefixLength + 1) },
      {
        ...ports,
        formed: (pipeline, epoch, blockCount, stageCount) =>
          this.#formed(pipeline, epoch, blockCount, stageCount),
        dissolved: (_pipeline, error) => this.#dissolved(error),
      },
      clock,
    );
  }

  /** A token has travelled through all stages of this pipeline. */
  get ready(): boolean {
    return this.#serving?.ready ?? false;
  }

  /** Tokens that the KV cache of the pipeline holds; no bound while none was formed yet. */
  get sequenceTokens(): number {
    return this.#blockCount === 0
      ? Number.POSITIVE_INFINITY
      : this.#blockCount * kvBlockSize - this.#config.prefixLength;
  }

  get requestCount(): number {
    return this.#requests.size;
  }

  /** Null when a new request would be taken; else the error it gets. */
  notReady(): RelayError | null {
    if (this.ready) return null;
    const reason = this.membership.notFormedReason || "the first token has not come back yet";
    return new RelayError("model_loading", `the model is not being served: ${reason}`, { retryAfterS: 1 });
  }

  /**
   * Puts a request into the waiting set. Failures are told as its error event.
   * @param decided Tokens of each choice that an earlier coordinator had decided; the request goes on behind them.
   */
  admit(request: GenerationRequest, decided: readonly TokenIds[] = []): void {
    try {
      this.#start(request, decided);
    } catch (error) {
      this.#ports.emit(request.id, { type: "error", error: toRelayError(error) });
      this.#ports.ended(request.id);
    }
    this.#pump();
  }

  /** Its sequences leave at once if they wait, else when the step they are in has come back. */
  cancel(id: RequestId): void {
    const active = this.#requests.get(id);
    if (active === undefined) return;
    this.#ports.log("debug", "request cancelled", namesOf(active.request));
    this.#close(active);
    this.#pump();
  }

  /** An answer of the last stage. */
  stepResult(result: StepResult__Output): void {
    const serving = this.#serving;
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
    if (this.membership.canGrow && this.#requests.size === 0) this.membership.grow();
    const serving = this.#serving;
    if (serving === null) return;
    const overdue = serving.overdue(this.#clock.nowMs(), (sinceMs) =>
      this.membership.allIdleSince(serving.id, sinceMs),
    );
    if (overdue === null) return;
    this.membership.linkBroken(serving.epoch, new RelayError("worker_lost", overdue), null);
  }

  view(): Omit<ClusterView, ServiceFacts> {
    const scheduler = this.#serving?.scheduler;
    const total = this.#serving === null ? 0 : this.#blockCount;
    return {
      state: this.ready ? "ready" : this.membership.phase === "waiting" ? "waiting" : "loading",
      reason: this.notReady()?.message ?? "",
      epoch: this.membership.epoch,
      stageCount: this.#config.membership.stageCount,
      stages: this.membership.stageViews(),
      workers: this.membership.workerViews(),
      blocks: {
        size: kvBlockSize,
        total,
        used: scheduler?.blocksUsed ?? 0,
        kept: scheduler?.blocksKept ?? 0,
      },
      sequences: { running: scheduler?.runningCount ?? 0, waiting: scheduler?.waitingCount ?? 0 },
      microBatchesInFlight: scheduler?.stepsInFlight ?? 0,
      timing: this.#serving?.timingView() ?? notServing(this.#config.itlTargetMs),
      counters: {
        ...this.membership.counters,
        staleMessages: this.membership.staleMessages(),
        steps: this.#stepCount,
        preemptions: this.#preemptions,
        prefixCacheQueries: this.#promptTokens.looked,
        prefixCacheHits: this.#promptTokens.reused,
        draftedTokens: this.#draftTokens.drafted,
        acceptedTokens: this.#draftTokens.accepted,
      },
    };
  }

  #formed(pipeline: PipelineId, epoch: Epoch, blockCount: number, stageCount: number): void {
    this.#blockCount = blockCount;
    const { microBatches, prefillChunk, prefixLength, speculation, itlTargetMs } = this.#config;
    const limits = {
      blockCount,
      stageCount,
      microBatches: microBatches === null ? null : Math.min(microBatches, maxMicroBatchesInFlight),
      maxStepRows,
      prefixLength,
      prefillChunk,
      firstExpectedReply,
      speculation: speculation ? { kneeRows: defaultKneeRows } : undefined,
      itlTargetMs,
    };
    const ports = {
      sendStep: (header: StepHeader) => this.#ports.sendStep(header),
      stepFinished: (rows: number) => {
        this.#stepCount++;
        this.#ports.stepFinished(rows);
      },
      choiceOf: (sequence: SequenceId) => this.#choices.get(sequence)!,
      preempted: (sequence: SequenceId) => this.#notePreempted(sequence),
      rowsDue: (choice: ActiveChoice, rows: ScheduledRows) => this.#rowsDue(choice, rows),
    };
    this.#serving = new Serving(pipeline, epoch, limits, ports, this.#clock.nowMs());
    this.#begin(warmUpRequest());
    this.#pump();
  }

  #dissolved(error: RelayError): void {
    if (this.ready) this.#loss ??= { reason: error.code, sinceMs: this.#clock.nowMs() };
    const travelling = this.#serving?.sequencesInFlight() ?? new Set();
    this.#serving?.end();
    this.#serving = null;
    const warmUp = this.#requests.get(warmUpId);
    if (warmUp !== undefined) this.#close(warmUp);
    this.#ports.readyChanged(false);
    this.#logInterrupted(error);
    const poisonous = this.#suspects.pipelineLost([...this.#requests.values()], ({ open }) =>
      [...open.keys()].some((sequence) => travelling.has(sequence)),
    );
    for (const active of poisonous) {
      const message =
        `${active.deaths} pipelines in a row were lost while they computed this request, ` +
        `the last one because of: ${error.message}`;
      this.#fail(active, new RelayError("request_poisoned", message, { cause: error }));
    }
  }

  /** Interrupted requests wait for the next pipeline, but not for ever. */
  #giveUpInterrupted(): void {
    if (this.#loss === null || this.#requests.size === 0) return;
    const { recoveryTimeoutMs } = this.#config;
    if (this.#clock.nowMs() - this.#loss.sinceMs <= recoveryTimeoutMs) return;
    const message =
      `a worker was lost (${this.#loss.reason}) and the model was not served again ` +
      `within ${recoveryTimeoutMs / 1_000} s: ${this.membership.notFormedReason}`;
    const lost = new RelayError("worker_lost", message, { retryAfterS: 1 });
    for (const active of [...this.#requests.values()]) {
      if (active.request.id !== warmUpId) this.#fail(active, lost);
    }
  }

  /** A new pipeline holds nothing yet: what waits for it is built from its tokens and goes on. */
  #resume(): void {
    if (!this.ready) return;
    for (const active of this.#suspects.depart([...this.#requests.values()])) this.#rebuild(active);
  }

  #rebuild(active: ActiveRequest): void {
    try {
      for (const { prompt } of active.open.values()) {
        this.#checkLength(active.request, prompt.tokens, prompt.context ?? undefined);
      }
    } catch (error) {
      this.#fail(active, toRelayError(error));
      return;
    }
    for (const choice of active.open.values()) {
      this.#startOver(choice);
      this.#serving!.submit(choice);
    }
  }

  #start(request: GenerationRequest, decided: readonly TokenIds[]): void {
    // What was accepted before a loss waits with those that it interrupted.
    const notReady = this.#loss === null ? this.notReady() : null;
    if (notReady !== null) throw notReady;
    this.#begin(request, decided);
  }

  #begin(request: GenerationRequest, decided: readonly TokenIds[] = []): void {
    const travels = (this.ready && !this.#suspects.trial) || request.id === warmUpId;
    if (this.#choices.size + request.choices.length > queueLimit) {
      throw new RelayError("queue_full", `${queueLimit} sequences are waiting or running`, {
        retryAfterS: 5,
      });
    }
    if (travels) {
      for (const { promptTokens, context } of request.choices) {
        this.#checkLength(request, promptTokens, context);
      }
    }
    const active: ActiveRequest = { request, open: new Map(), started: false, deaths: 0, travels };
    this.#requests.set(request.id, active);
    for (const [index, { promptTokens, context = null, seed }] of request.choices.entries()) {
      const sequence = sequenceId(this.#nextSequence++);
      const choice: ActiveChoice = {
        request: active,
        index,
        sequence,
        output: this.#newOutput(request, index),
        prompt: new ChoicePrompt(index, promptTokens, context),
        generated: [],
        reused: 0,
        again: false,
        sampling: sequenceSampling(request.sampling, BigInt(seed)),
        scores: request.sampling.promptLogprobs ? new PromptScores(promptTokens, context) : null,
        scored: null,
      };
      this.#open(choice);
    }
    const [firstSequence = 0] = active.open.keys();
    this.#ports.log("debug", "request admitted", {
      ...namesOf(request),
      firstSequence,
      choices: request.choices.length,
    });
    for (const choice of [...active.open.values()]) {
      // Neither tokens nor scores are wanted: there is nothing to compute.
      if (request.sampling.maxTokens === 0 && choice.scores === null)
        this.#emit(choice, choice.output.finishEmpty());
      else if (this.#goOnBehind(choice, decided[choice.index] ?? []) && travels)
        this.#serving!.submit(choice);
    }
  }

  /** @returns Whether the choice has tokens left to decide. */
  #goOnBehind(choice: ActiveChoice, decided: TokenIds): boolean {
    const { events, generated } = replay(choice.output, choice.prompt, decided);
    choice.generated = generated;
    for (const event of events) this.#emit(choice, event);
    return events.at(-1)?.type !== "finish";
  }

  /** @throws RelayError context_length_exceeded for what the pipeline could never run. */
  #checkLength({ sampling }: GenerationRequest, prompt: TokenIds, context?: PromptContext): void {
    const { maxTokens } = sampling;
    const most = mostTokens(prompt, context ?? null, maxTokens);
    const extra = { n_prompt_tokens: prompt.length };
    if (!this.#serving!.scheduler.fits(prompt.length, most.reply)) {
      const message =
        `${prompt.length} prompt tokens and up to ${most.reply} new ones need more KV blocks ` +
        `than the cluster has (${this.#blockCount})`;
      throw new RelayError("context_length_exceeded", message, { extra });
    }
    if (most.context > maxContextRows) {
      const message =
        `a context of ${most.context} tokens, the blanks filled before included, is longer than ` +
        `the ${maxContextRows} that one step reads`;
      throw new RelayError("context_length_exceeded", message, { extra });
    }
  }

  #newOutput({ sampling, text }: GenerationRequest, index: number): ChoiceOutput {
    const { modelStopTokens } = this.#config;
    return new ChoiceOutput(index, { sampling, modelStopTokens }, this.#config.createDetokenizer(text));
  }

  #pump(): void {
    this.#serving?.pump(this.#clock.nowMs());
  }

  /** It is computed again from its beginning, so all scores of its prompt come again. */
  #notePreempted(sequence: SequenceId): void {
    this.#preemptions++;
    const choice = this.#choices.get(sequence);
    // It may have ended since.
    if (choice !== undefined) this.#startOver(choice);
  }

  #startOver(choice: ActiveChoice): void {
    const { tokens, context } = choice.prompt;
    if (choice.scores !== null) choice.scores = new PromptScores(tokens, context);
    choice.again = true;
  }

  #rowsDue(choice: ActiveChoice, { first, reused, tokens, draftRows }: ScheduledRows): void {
    this.#draftTokens.drafted += draftRows;
    const active = choice.request;
    // What is rebuilt after a loss was counted before it.
    if (choice.generated.length === 0 && !choice.again) {
      choice.reused += reused;
      this.#promptTokens.looked += reused + tokens.length;
      this.#promptTokens.reused += reused;
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
    this.#draftTokens.accepted += Math.max(0, drawn.length - 1);
    const choice = this.#choices.get(sequence);
    if (choice === undefined || (!finite && drawn.length === 0)) return;
    const scored = choice.scores?.take(scores) ?? null;
    if (scored !== null) {
      choice.scores = null;
      choice.scored = scored;
    }
    if (drawn.length > 0 || scored !== null) this.#gotOn(choice.request);
    const { scheduler } = this.#serving!;
    for (const { token } of drawn) {
      choice.generated.push(token);
      if (choice.output.endsWith(token, choice.generated.length)) {
        // What a draft brought behind it was never drawn.
        scheduler.remove(sequence);
        return;
      }
      if (finite) scheduler.append(sequence, token);
    }
  }

  /** Text and events of what was decided. */
  #deliver({ sequence, drawn, finite }: SequenceOutcome): void {
    const choice = this.#choices.get(sequence);
    if (choice === undefined) return;
    if (choice.scored !== null) {
      this.#emit(choice, { type: "prompt", choice: choice.index, scores: choice.scored });
      choice.scored = null;
      const { maxTokens } = choice.request.request.sampling;
      if (maxTokens === 0) this.#emit(choice, choice.output.finishEmpty());
    }
    for (const token of drawn) if (this.#choices.get(sequence) === choice) this.#write(choice, token);
    if (!finite && this.#choices.get(sequence) === choice) this.#failNonFinite(choice);
  }

  #failNonFinite({ sequence, request: active }: ActiveChoice): void {
    const message = "the model computed a value that is not finite (NaN or infinity) for this request";
    this.#ports.log("warn", message, { ...namesOf(active.request), sequence });
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
    this.#drop(choice);
    choice.sequence = sequenceId(this.#nextSequence++);
    choice.generated = [];
    choice.output = this.#newOutput(choice.request.request, choice.index);
    this.#open(choice);
    // When the pipeline was lost meanwhile, the next one builds it.
    if (choice.request.travels) this.#serving!.submit(choice);
  }

  #emit(choice: ActiveChoice, event: RequestEvent): void {
    const { request } = choice.request;
    if (event.type !== "finish") {
      this.#ports.emit(request.id, event);
      return;
    }
    this.#ports.emit(request.id, { ...event, cachedTokens: choice.reused });
    this.#drop(choice);
    if (choice.request.open.size > 0) return;
    this.#requests.delete(request.id);
    this.#ports.log("debug", "request finished", namesOf(request));
    this.#ports.ended(request.id);
    if (request.id === warmUpId) this.#warmedUp();
  }

  #warmedUp(): void {
    const serving = this.#serving!;
    serving.warmedUp();
    this.membership.proven(serving.id);
    this.#ports.readyChanged(true);
    const loss = this.#loss;
    this.#loss = null;
    if (loss === null) return;
    this.#resume();
    this.#ports.recovered(loss.reason, this.#clock.nowMs() - loss.sinceMs);
  }

  #fail(active: ActiveRequest, error: RelayError): void {
    this.#ports.emit(active.request.id, { type: "error", error });
    this.#ports.log("debug", "request failed", { ...namesOf(active.request), code: error.code });
    this.#close(active);
  }

  /** One line for a loss, however many requests it hits; each has its own line where it is answered. */
  #logInterrupted(error: RelayError): void {
    if (this.#requests.size === 0) return;
    const named = [...this.#requests.values()].slice(0, maxLoggedRequests);
    this.#ports.log("warn", "requests were interrupted", {
      code: error.code,
      count: this.#requests.size,
      requestIds: named.map(({ request }) => request.logId),
    });
  }

  #close(active: ActiveRequest): void {
    for (const choice of [...active.open.values()]) this.#drop(choice);
    this.#requests.delete(active.request.id);
    this.#ports.ended(active.request.id);
    this.#gotOn(active);
  }

  /** Further than where pipelines were lost, or to its end. */
  #gotOn(active: ActiveRequest): void {
    if (this.#suspects.cleared(active)) this.#resume();
  }

  #open(choice: ActiveChoice): void {
    choice.request.open.set(choice.sequence, choice);
    this.#choices.set(choice.sequence, choice);
  }

  #drop(choice: ActiveChoice): void {
    choice.request.open.delete(choice.sequence);
    this.#choices.delete(choice.sequence);
    this.#serving?.scheduler.remove(choice.sequence);
  }
}

/** What is known of times while no pipeline is formed. */
const notServing = (itlTargetMs: number): TimingView => ({
  itlTargetMs,
  microBatchTarget: 0,
  rowBudget: null,
  hopMs: null,
  stationMs: null,
  stages: [],
});
