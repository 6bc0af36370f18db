/**
 * What exists only while a pipeline is formed, once per pipeline: its schedule and its steps in flight, from
 * the first token that proves it to its end. A state machine without socket or clock.
 */
import type { Epoch, PipelineId, SequenceId } from "../common/ids.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import { type ActiveChoice, rowRequests } from "./active-request.js";
import type { TimingView } from "./inference.js";
import { Pipeline, type SequenceOutcome } from "./pipeline/pipeline.js";
import { type ScheduledRows, Scheduler, type SchedulerLimits } from "./scheduler/scheduler.js";
import { TimingModel } from "./scheduler/timing/timing-model.js";
import { warmUpLimitMs } from "./warm-up.js";

/** A step that is away this long while every worker reports idle was lost on the way. */
const stepLostMs = 5_000;

export interface ServingLimits extends SchedulerLimits {
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs: number;
}

export interface ServingPorts {
  sendStep(header: StepHeader): void;
  /** Rows of a finished step. */
  stepFinished(rows: number): void;
  /** Of a sequence with rows to be sent. */
  choiceOf(sequence: SequenceId): ActiveChoice;
  /** It gave its blocks to others; it may have ended since. */
  preempted(sequence: SequenceId): void;
  /** These rows of a choice are about to be sent. */
  rowsDue(choice: ActiveChoice, rows: ScheduledRows): void;
}

export class Serving {
  readonly id: PipelineId;
  readonly epoch: Epoch;
  /** KV blocks that every stage has. */
  readonly blockCount: number;
  readonly scheduler: Scheduler;
  readonly #limits: ServingLimits;
  readonly #timing: TimingModel;
  readonly #ports: ServingPorts;
  readonly #pipeline: Pipeline;
  /** When the first token is overdue; null once it has come back. */
  #warmUpUntilMs: number | null;
  /** Rows per step in flight. */
  readonly #rows = new Map<number, number>();
  #ended = false;

  constructor(id: PipelineId, epoch: Epoch, limits: ServingLimits, ports: ServingPorts, nowMs: number) {
    this.id = id;
    this.epoch = epoch;
    this.blockCount = limits.blockCount;
    this.#limits = limits;
    this.#timing = new TimingModel(limits);
    this.scheduler = new Scheduler(limits, this.#timing);
    this.#ports = ports;
    this.#pipeline = new Pipeline(epoch, id, (header) => ports.sendStep(header), limits.stageCount);
    this.#warmUpUntilMs = nowMs + warmUpLimitMs;
  }

  /** A token has travelled through all stages. */
  get ready(): boolean {
    return this.#warmUpUntilMs === null;
  }

  /** The first token has come back. */
  warmedUp(): void {
    this.#warmUpUntilMs = null;
  }

  /** Sequences with rows between the coordinator and the last stage. */
  sequencesInFlight(): Set<SequenceId> {
    return this.#pipeline.sequencesInFlight();
  }

  /** From its beginning: the tokens decided so far are rows like those of the prompt. */
  submit({ sequence, prompt, generated, scores, request }: ActiveChoice): void {
    const { tokens, context } = prompt;
    const left = request.request.sampling.maxTokens - generated.length;
    const all = generated.length === 0 ? tokens : Int32Array.from([...tokens, ...generated]);
    const { tenant, class: ofClass, cacheSalt: salt = "" } = request.request;
    const options = {
      tenant,
      class: ofClass,
      whole: context?.length ?? 0,
      salt,
      everyRow: scores !== null,
      rulesChangeAt: tokens.length + request.request.sampling.minTokens,
    };
    this.scheduler.submit(sequence, all, left, options);
  }

  /** The pipeline is gone: nothing is sent any more. */
  end(): void {
    this.#ended = true;
  }

  /** Sends steps until the scheduler has none to send now. */
  pump(nowMs: number): void {
    // Sending may find that the link broke, and then this is over.
    while (!this.#ended) {
      const step = this.scheduler.next();
      if (step === null) return;
      this.#rows.set(
        step.step,
        step.rows.reduce((total, { tokens }) => total + tokens.length, 0),
      );
      for (const sequence of step.preempted) this.#ports.preempted(sequence);
      for (const rows of step.rows) this.#ports.rowsDue(this.#ports.choiceOf(rows.sequence), rows);
      const requestsOf = (rows: ScheduledRows) => rowRequests(this.#ports.choiceOf(rows.sequence), rows);
      this.#pipeline.submit(step, requestsOf, nowMs);
    }
  }

  /**
   * An answer of the last stage.
   * @returns One outcome per sequence of the step, or null for a message of another epoch.
   * @throws RelayError corrupt_message when it is not what was asked for: the epoch cannot go on.
   */
  complete(result: StepResult__Output, nowMs: number): SequenceOutcome[] | null {
    const sentAtMs = this.#pipeline.oldestSentAtMs ?? nowMs;
    const outcomes = this.#pipeline.complete(result);
    if (outcomes === null) return null;
    const { step, stageUs } = result;
    this.scheduler.complete(step, { stageUs, roundtripUs: (nowMs - sentAtMs) * 1_000 });
    this.#ports.stepFinished(this.#rows.get(result.step) ?? 0);
    this.#rows.delete(result.step);
    return outcomes;
  }

  /** What finished steps say about the next ones. */
  timingView(): TimingView {
    const { microBatchTarget } = this.scheduler;
    const { times } = this.#timing;
    const rowBudget = this.#timing.rowBudget(Math.max(1, microBatchTarget));
    return {
      itlTargetMs: this.#limits.itlTargetMs,
      microBatchTarget,
      rowBudget: rowBudget === null ? null : Math.min(rowBudget, this.#limits.maxStepRows),
      hopMs: times === null ? null : times.hopUs / 1_000,
      stationMs: times === null ? null : times.stationUs / 1_000,
      stages: (times?.stages ?? []).map(({ baseUs, rowUs, keyUs }) => ({
        baseMs: baseUs / 1_000,
        rowMs: rowUs / 1_000,
        keyMs: keyUs / 1_000,
      })),
    };
  }

  /**
   * @param allIdleSince Whether all its workers have said, after this time, that they compute nothing.
   * @returns Why the pipeline must be given up; null when it need not.
   */
  overdue(nowMs: number, allIdleSince: (sinceMs: number) => boolean): string | null {
    const sentAtMs = this.#pipeline.oldestSentAtMs;
    if (sentAtMs !== null && nowMs - sentAtMs > stepLostMs && allIdleSince(sentAtMs + stepLostMs / 2)) {
      return "a step was lost between the workers";
    }
    if (this.#warmUpUntilMs !== null && nowMs > this.#warmUpUntilMs) {
      return "the first token did not come back in time";
    }
    return null;
  }
}
