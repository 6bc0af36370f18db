/**
 * The coordinator's core: membership, scheduler, pipeline and output put together. A state machine
 * without socket, timer or await: the live coordinator and the simulator drive the same code.
 */
import type { Clock } from "../common/clock.js";
import { type ErrorCode, RelayError, toRelayError } from "../common/errors.js";
import {
  type Epoch,
  pipelineId,
  type RequestId,
  requestId,
  type SequenceId,
  sequenceId,
} from "../common/ids.js";
import { kvBlockSize, maxLoggedRequests, maxMicroBatchesInFlight, maxStepRows } from "../common/limits.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import type {
  ClusterView,
  GenerationRequest,
  PromptContext,
  RequestEvent,
  TextParams,
  TokenIds,
  TokenLogprob,
} from "./inference.js";
import { Membership, type MembershipConfig, type MembershipPorts } from "./membership/membership.js";
import { ChoiceOutput } from "./output/choice-output.js";
import { Pipeline, type RowRequests, type SequenceOutcome } from "./pipeline/pipeline.js";
import { nextBlank } from "./prompt/prefix-boundary.js";
import type { Detokenizer } from "./prompt/service.js";
import { type ScheduledRows, Scheduler } from "./scheduler/scheduler.js";

/** Sequences admitted and not finished; above it new requests get queue_full. */
export const queueLimit = 10_000;
/** The first token through a new pipeline. */
const warmUpLimitMs = 60_000;
/** A step that is away this long while every worker reports idle was lost on the way. */
const stepLostMs = 5_000;

const warmUpId = requestId("warm-up");

export interface CoreConfig {
  membership: MembershipConfig;
  /** Micro-batches in flight; null: min(stages, sequences). */
  microBatches: number | null;
  prefillChunk: number;
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

interface ActiveChoice {
  request: ActiveRequest;
  index: number;
  sequence: SequenceId;
  output: ChoiceOutput;
  promptTokens: TokenIds;
  context: PromptContext | null;
  /** Blanks filled so far, and the tokens of the one that is being filled. */
  blanks: number;
  filling: number[];
  /** Tokens of the blanks filled so far. */
  completionTokens: number;
  seed: bigint;
  /** Logprobs of the prompt so far, when asked for; null once given out. */
  scores: (TokenLogprob | null)[] | null;
}

type FinishEvent = Extract<RequestEvent, { type: "finish" }>;

interface ActiveRequest {
  request: GenerationRequest;
  /** Choices not finished yet. */
  open: Map<SequenceId, ActiveChoice>;
  /** Rows of it have been sent. */
  started: boolean;
}

/** What exists only while a pipeline is formed. */
interface Serving {
  scheduler: Scheduler;
  pipeline: Pipeline;
  nextSequence: number;
  warmUpUntilMs: number | null;
  /** Rows per step in flight, for the step_tokens metric. */
  rows: Map<number, number>;
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
  /** Since when and why a pipeline that was ready is gone; null while none is missed. */
  #loss: { reason: ErrorCode; sinceMs: number } | null = null;

  constructor(config: CoreConfig, ports: CorePorts, clock: Clock) {
    this.#config = config;
    this.#ports = ports;
    this.#clock = clock;
    this.membership = new Membership(
      config.membership,
      {
        ...ports,
        formed: (epoch, blockCount) => this.#formed(epoch, blockCount),
        dissolved: (error) => this.#dissolved(error),
      },
      clock,
    );
  }

  /** A token has travelled through all stages of this pipeline. */
  get ready(): boolean {
    return this.#serving !== null && this.#serving.warmUpUntilMs === null;
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

  /** Puts a request into the waiting set. Failures are told as its error event. */
  admit(request: GenerationRequest): void {
    try {
      this.#start(request);
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
      const outcomes = serving.pipeline.complete(result);
      if (outcomes === null) return;
      serving.scheduler.complete(result.step);
      this.#stepCount++;
      this.#ports.stepFinished(serving.rows.get(result.step) ?? 0);
      serving.rows.delete(result.step);
      for (const outcome of outcomes) this.#deliver(outcome);
    } catch (error) {
      this.membership.linkBroken(serving.pipeline.epoch, toRelayError(error), -1);
      return;
    }
    this.#pump();
  }

  /** Call every tickMs (membership/leases.ts). */
  tick(): void {
    this.membership.tick();
    const serving = this.#serving;
    if (serving === null) return;
    const now = this.#clock.nowMs();
    const sentAtMs = serving.pipeline.oldestSentAtMs;
    const lost =
      sentAtMs !== null &&
      now - sentAtMs > stepLostMs &&
      this.membership.allIdleSince(sentAtMs + stepLostMs / 2);
    const warmUpOver = serving.warmUpUntilMs !== null && now > serving.warmUpUntilMs;
    if (!lost && !warmUpOver) return;
    const what = lost ? "a step was lost between the workers" : "the first token did not come back in time";
    this.membership.linkBroken(serving.pipeline.epoch, new RelayError("worker_lost", what), null);
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
      blocks: { size: kvBlockSize, total, used: scheduler?.blocksUsed ?? 0 },
      sequences: { running: scheduler?.runningCount ?? 0, waiting: scheduler?.waitingCount ?? 0 },
      microBatchesInFlight: scheduler?.stepsInFlight ?? 0,
      counters: {
        ...this.membership.counters,
        staleMessages: this.membership.staleMessages(),
        steps: this.#stepCount,
      },
    };
  }

  #formed(epoch: Epoch, blockCount: number): void {
    this.#blockCount = blockCount;
    const pipeline = new Pipeline(epoch, pipelineId(0), (header) => this.#ports.sendStep(header));
    const { membership, microBatches, prefillChunk, prefixLength } = this.#config;
    const scheduler = new Scheduler({
      blockCount,
      stageCount: membership.stageCount,
      microBatches: microBatches === null ? null : Math.min(microBatches, maxMicroBatchesInFlight),
      maxStepRows,
      prefixLength,
      prefillChunk,
    });
    this.#serving = {
      scheduler,
      pipeline,
      nextSequence: 1,
      warmUpUntilMs: this.#clock.nowMs() + warmUpLimitMs,
      rows: new Map(),
    };
    this.#start(warmUpRequest());
    this.#pump();
  }

  #dissolved(error: RelayError): void {
    if (this.ready) this.#loss ??= { reason: error.code, sinceMs: this.#clock.nowMs() };
    this.#serving = null;
    this.#ports.readyChanged(false);
    this.#logInterrupted(error);
    // Whatever broke it, for a client it is the same: the work so far is lost and a new try can succeed.
    const lost = new RelayError("worker_lost", error.message, { cause: error, retryAfterS: 1 });
    for (const active of [...this.#requests.values()]) this.#fail(active, lost);
  }

  #start(request: GenerationRequest): void {
    const serving = this.#serving;
    const notReady = request.id === warmUpId ? null : this.notReady();
    if (notReady !== null) throw notReady;
    if (serving === null) throw new Error("Core.start without a pipeline");
    if (this.#choices.size + request.choices.length > queueLimit) {
      throw new RelayError("queue_full", `${queueLimit} sequences are waiting or running`, {
        retryAfterS: 5,
      });
    }
    for (const { promptTokens, context } of request.choices) {
      const blanks = 1 + (context?.remainingMasks.length ?? 0);
      if (!serving.scheduler.fits(promptTokens.length, blanks * request.sampling.maxTokens)) {
        throw new RelayError(
          "context_length_exceeded",
          `${promptTokens.length} prompt tokens and up to ${request.sampling.maxTokens} new ones need more KV blocks ` +
            `than the cluster has (${this.#blockCount})`,
          { extra: { n_prompt_tokens: promptTokens.length } },
        );
      }
    }
    const active: ActiveRequest = { request, open: new Map(), started: false };
    this.#requests.set(request.id, active);
    for (const [index, { promptTokens, context = null, seed }] of request.choices.entries()) {
      const sequence = sequenceId(serving.nextSequence++);
      const choice: ActiveChoice = {
        request: active,
        index,
        sequence,
        output: this.#newOutput(request, index),
        promptTokens,
        context,
        blanks: 0,
        filling: [],
        completionTokens: 0,
        seed: BigInt(seed),
        scores: request.sampling.promptLogprobs ? unscored(context) : null,
      };
      active.open.set(sequence, choice);
      this.#choices.set(sequence, choice);
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
      else {
        const { sequence, promptTokens, context } = choice;
        serving.scheduler.submit(sequence, promptTokens, request.sampling.maxTokens, context?.length ?? 0);
      }
    }
  }

  #newOutput({ sampling, text }: GenerationRequest, index: number): ChoiceOutput {
    const { modelStopTokens } = this.#config;
    return new ChoiceOutput(index, { sampling, modelStopTokens }, this.#config.createDetokenizer(text));
  }

  /** Sends steps until the scheduler has none to send now. */
  #pump(): void {
    const serving = this.#serving;
    if (serving === null) return;
    for (let step = serving.scheduler.next(); step !== null; step = serving.scheduler.next()) {
      serving.rows.set(
        step.step,
        step.rows.reduce((total, { tokens }) => total + tokens.length, 0),
      );
      const rowsOf = new Map(step.rows.map((rows) => [rows.sequence, rows]));
      for (const [sequence, { start }] of rowsOf) if (start === 0) this.#noteStart(sequence);
      serving.pipeline.submit(step, (id) => this.#rowRequests(rowsOf.get(id)!), this.#clock.nowMs());
    }
  }

  #noteStart(sequence: SequenceId): void {
    const active = this.#choices.get(sequence)!.request;
    if (active.started) return;
    active.started = true;
    this.#ports.emit(active.request.id, { type: "started" });
  }

  /** What the header says of a sequence's rows beside their tokens. */
  #rowRequests({ sequence, start, tokens }: ScheduledRows): RowRequests {
    const choice = this.#choices.get(sequence)!;
    const { context } = choice;
    const { sampling, logId } = choice.request.request;
    return {
      requestId: start === 0 ? logId : "",
      context,
      sampling: {
        temperature: sampling.temperature,
        topK: sampling.topK,
        topP: sampling.topP,
        minP: sampling.minP,
        seed: choice.seed,
        topLogprobs: sampling.topLogprobs,
      },
      bannedTokens: choice.output.bannedTokens(),
      // The row of prompt token i scores token i + 1; rows of generated tokens score nothing.
      scoreTargets: choice.scores === null ? [] : scoreTargets(choice, start, tokens.length),
    };
  }

  #deliver(outcome: SequenceOutcome): void {
    const choice = this.#choices.get(outcome.sequence);
    if (choice === undefined) return;
    const { request } = choice.request;
    if (!outcome.finite) {
      const message = "the model computed a value that is not finite (NaN or infinity) for this request";
      this.#ports.log("warn", message, { ...namesOf(request), sequence: choice.sequence });
      this.#fail(choice.request, new RelayError("numeric_error", message));
      return;
    }
    if (choice.scores !== null) {
      choice.scores.push(...outcome.scores);
      if (choice.scores.length === choice.promptTokens.length) {
        this.#emit(choice, { type: "prompt", choice: choice.index, scores: choice.scores });
        choice.scores = null;
        if (request.sampling.maxTokens === 0) this.#emit(choice, choice.output.finishEmpty());
      }
    }
    if (outcome.sampled === null) return;
    this.#serving!.scheduler.append(choice.sequence, outcome.sampled.token);
    for (const event of choice.output.push(outcome.sampled)) {
      if (event.type === "tokens") choice.filling.push(...event.tokens);
      if (event.type === "finish" && choice.context !== null && choice.context.mask >= 0) {
        this.#fillBlank(choice, choice.context, event);
      } else {
        this.#emit(choice, event);
      }
    }
  }

  /** A blank is filled: the sequence ends, and the next blank's begins, or the choice is finished. */
  #fillBlank(choice: ActiveChoice, context: PromptContext, end: FinishEvent): void {
    const { request } = choice.request;
    const { text, reason } = end;
    const mask = choice.promptTokens[context.mask]!;
    this.#emit(choice, { type: "blank", choice: choice.index, blank: choice.blanks, mask, text, reason });
    choice.completionTokens += end.completionTokens;
    if (context.remainingMasks.length === 0) {
      this.#emit(choice, { ...end, text: "", completionTokens: choice.completionTokens });
      return;
    }
    const { scheduler } = this.#serving!;
    scheduler.remove(choice.sequence);
    choice.request.open.delete(choice.sequence);
    this.#choices.delete(choice.sequence);
    Object.assign(choice, nextBlank(choice.promptTokens, context, choice.filling), {
      sequence: sequenceId(this.#serving!.nextSequence++),
      output: this.#newOutput(request, choice.index),
      blanks: choice.blanks + 1,
      filling: [],
    } satisfies Partial<ActiveChoice>);
    choice.request.open.set(choice.sequence, choice);
    this.#choices.set(choice.sequence, choice);
    const { sequence, promptTokens } = choice;
    scheduler.submit(sequence, promptTokens, request.sampling.maxTokens, choice.context!.length);
  }

  #emit(choice: ActiveChoice, event: RequestEvent): void {
    const { request } = choice.request;
    this.#ports.emit(request.id, event);
    if (event.type !== "finish") return;
    this.#drop(choice);
    if (choice.request.open.size > 0) return;
    this.#requests.delete(request.id);
    this.#ports.log("debug", "request finished", namesOf(request));
    this.#ports.ended(request.id);
    if (request.id === warmUpId) this.#warmedUp();
  }

  #warmedUp(): void {
    this.#serving!.warmUpUntilMs = null;
    this.membership.proven();
    this.#ports.readyChanged(true);
    const loss = this.#loss;
    this.#loss = null;
    if (loss !== null) this.#ports.recovered(loss.reason, this.#clock.nowMs() - loss.sinceMs);
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
  }

  #drop(choice: ActiveChoice): void {
    choice.request.open.delete(choice.sequence);
    this.#choices.delete(choice.sequence);
    this.#serving?.scheduler.remove(choice.sequence);
  }
}

/** Under which a request is found in the logs of all processes, and in the client's answer. */
function namesOf({ id, logId }: GenerationRequest): { requestId: string; completionId: string } {
  return { requestId: logId, completionId: id };
}

/** Rows of a context see the tokens that they would score. */
function scoreTargets(
  { promptTokens, context }: Pick<ActiveChoice, "promptTokens" | "context">,
  start: number,
  count: number,
): number[] {
  const first = context?.length ?? 0;
  return Array.from({ length: count }, (_, index) => {
    const row = start + index;
    return row < first ? -1 : (promptTokens[row + 1] ?? -1);
  });
}

/** The tokens of a prompt that no row scores: the first one, of a context all and the one behind it. */
function unscored(context: PromptContext | null): null[] {
  return Array.from({ length: (context?.length ?? 0) + 1 }, () => null);
}

/** One greedy token after token 0: proves that every stage answers. */
function warmUpRequest(): GenerationRequest {
  return {
    id: warmUpId,
    logId: warmUpId,
    endpoint: "completions",
    choices: [{ promptTokens: [0], seed: "0" }],
    sampling: {
      temperature: 0,
      topP: 1,
      topK: 0,
      minP: 0,
      maxTokens: 1,
      minTokens: 0,
      ignoreEos: true,
      stop: [],
      stopTokenIds: [],
      includeStopInOutput: false,
      topLogprobs: -1,
      promptLogprobs: false,
    },
    text: { skipSpecialTokens: true, chatReply: false },
  };
}
