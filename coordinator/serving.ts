/**
 * What exists only while a pipeline is formed, once per pipeline: its schedule and its steps in flight, from
 * the first token that proves it to its end. A state machine without socket or clock.
 */
import type { Epoch, PipelineId, RequestId, SequenceId } from "../common/ids.js";
import { kvBlockSize } from "../common/limits.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import { type ActiveChoice, contextRequest, decodeRequests, rowRequests } from "./active-request.js";
import type { PipelineView, TimingView } from "./inference.js";
import { Pipeline, type SequenceOutcome } from "./pipeline/pipeline.js";
import type { RequestClass } from "./request-class.js";
import type { Candidate } from "./routing.js";
import type { ScheduledSlice } from "./scheduler/context-slices.js";
import type { ScheduledRows, ScheduledStep } from "./scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "./scheduler/scheduler.js";
import type { SequenceOptions } from "./scheduler/sequence.js";
import { TimingModel } from "./scheduler/timing/timing-model.js";
import { warmUpId, warmUpLimitMs } from "./warm-up.js";

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
  /** So is this slice of its context. */
  sliceDue(choice: ActiveChoice, slice: ScheduledSlice): void;
}

export type ServingView = Pick<PipelineView, "blocks" | "sequences" | "microBatchesInFlight" | "timing">;

export class Serving {
  readonly id: PipelineId;
  readonly epoch: Epoch;
  /** KV blocks that every stage has. */
  readonly blockCount: number;
  /** The request whose only token proves it. */
  readonly warmUp: RequestId;
  readonly #limits: ServingLimits;
  readonly #timing: TimingModel;
  readonly #scheduler: Scheduler;
  readonly #ports: ServingPorts;
  readonly #pipeline: Pipeline;
  /** When the first token is overdue; null once it has come back. */
  #warmUpUntilMs: number | null;
  /** Rows per step in flight. */
  readonly #rows = new Map<number, number>();
  /** The scheduler may have a step to send: something has happened since it had none. */
  #due = true;
  /** Sequences submitted since then. */
  #new = 0;
  #ended = false;

  constructor(id: PipelineId, epoch: Epoch, limits: ServingLimits, ports: ServingPorts, nowMs: number) {
    this.id = id;
    this.epoch = epoch;
    this.blockCount = limits.blockCount;
    this.warmUp = warmUpId(id);
    this.#limits = limits;
    this.#timing = new TimingModel(limits);
    this.#scheduler = new Scheduler(limits, this.#timing);
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

  /** As the sequence of this choice would find it. @param byPrefix Whether it matters what it holds of the prompt. */
  candidate(choice: ActiveChoice, byPrefix: boolean): Candidate & { serving: Serving } {
    const { runningCount, blocksUsed, blocksKept } = this.#scheduler;
    // Those that came since the last step could be formed will run, as far as is known.
    const running = runningCount + this.#new;
    const waiting = Math.max(0, this.#scheduler.waitingBefore(choice.request.request.class) - this.#new);
    return {
      serving: this,
      held: byPrefix ? this.#heldOf(choice) : 0,
      running,
      waiting,
      startsAtOnce: waiting === 0 && this.#scheduler.hasRoomFor(choice.prompt.tokens.length),
      unused: this.blockCount - blocksUsed - blocksKept,
    };
  }

  /** From its beginning: the tokens decided so far are rows like those of the prompt. */
  submit(choice: ActiveChoice): void {
    const { sequence, prompt, generated, request } = choice;
    const { tokens } = prompt;
    const left = request.request.sampling.maxTokens - generated.length;
    const all = generated.length === 0 ? tokens : Int32Array.from([...tokens, ...generated]);
    this.#scheduler.submit(sequence, all, left, optionsOf(choice));
    this.#new++;
    this.#due = true;
  }

  append(sequence: SequenceId, token: number): void {
    this.#scheduler.append(sequence, token);
    this.#due = true;
  }

  remove(sequence: SequenceId): void {
    this.#scheduler.remove(sequence);
    this.#due = true;
  }

  /** The pipeline is gone: nothing is sent any more. */
  end(): void {
    this.#ended = true;
  }

  /** Sends steps until the scheduler has none to send now. */
  pump(nowMs: number): void {
    if (!this.#due) return;
    this.#due = false;
    this.#new = 0;
    // Sending may find that the link broke, and then this is over.
    while (!this.#ended) {
      const step = this.#scheduler.next();
      if (step === null) return;
      this.#rows.set(step.step, rowCountOf(step));
      for (const sequence of step.preempted) this.#ports.preempted(sequence);
      const { slice } = step;
      if (slice !== null) this.#ports.sliceDue(this.#ports.choiceOf(slice.sequence), slice);
      for (const rows of step.rows) this.#ports.rowsDue(this.#ports.choiceOf(rows.sequence), rows);
      const requests = {
        rows: (rows: ScheduledRows) => rowRequests(this.#ports.choiceOf(rows.sequence), rows),
        decodes: (sequence: SequenceId) => decodeRequests(this.#ports.choiceOf(sequence)),
        slice: (part: ScheduledSlice) => contextRequest(this.#ports.choiceOf(part.sequence), part),
      };
      this.#pipeline.submit(step, requests, nowMs);
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
    this.#scheduler.complete(step, { stageUs, roundtripUs: (nowMs - sentAtMs) * 1_000 });
    this.#due = true;
    this.#ports.stepFinished(this.#rows.get(result.step) ?? 0);
    this.#rows.delete(result.step);
    return outcomes;
  }

  countsOf(of: RequestClass): { running: number; waiting: number } {
    return this.#scheduler.countsOf(of);
  }

  view(): ServingView {
    const { blocksUsed: used, blocksKept: kept, runningCount, waitingCount, stepsInFlight } = this.#scheduler;
    return {
      blocks: { size: kvBlockSize, total: this.blockCount, used, kept },
      sequences: { running: runningCount, waiting: waitingCount },
      microBatchesInFlight: stepsInFlight,
      timing: this.#timingView(),
    };
  }

  /** What finished steps say about the next ones. */
  #timingView(): TimingView {
    const { microBatchTarget } = this.#scheduler;
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
   * @param allIdleSince Whether all its workers have said, ever since this time, that they compute nothing.
   * @returns Why the pipeline must be given up; null when it need not.
   */
  overdue(nowMs: number, allIdleSince: (sinceMs: number) => boolean): string | null {
    const sentAtMs = this.#pipeline.oldestSentAtMs;
    if (sentAtMs !== null && nowMs - sentAtMs > stepLostMs && allIdleSince(nowMs - stepLostMs / 2)) {
      return "a step was lost between the workers";
    }
    if (this.#warmUpUntilMs !== null && nowMs > this.#warmUpUntilMs) {
      return "the first token did not come back in time";
    }
    return null;
  }

  /** Tokens of its prompt that it would not compute: others have, or another choice of the request is about to. */
  #heldOf(choice: ActiveChoice): number {
    const { tokens } = choice.prompt;
    const { open, sharedPrompts } = choice.request;
    if (sharedPrompts.has(tokens)) {
      for (const other of open.values()) {
        if (other !== choice && other.serving === this && other.prompt.tokens === tokens)
          return tokens.length;
      }
    }
    return this.#scheduler.heldTokens(tokens, optionsOf(choice));
  }
}

function optionsOf({ prompt, scores, request }: ActiveChoice): SequenceOptions {
  const { tenant, class: ofClass, cacheSalt: salt = "", sampling } = request.request;
  return {
    tenant,
    class: ofClass,
    whole: prompt.context?.length ?? 0,
    salt,
    everyRow: scores !== null,
    prompt: request.sharedPrompts.has(prompt.tokens) ? prompt.tokens : null,
    rulesChangeAt: prompt.tokens.length + sampling.minTokens,
  };
}

/** Rows that a step computes; those of a context that is read in slices count with the last one. */
function rowCountOf({ rows, slice }: ScheduledStep): number {
  const context = slice?.last ? slice.rowCount : 0;
  return rows.reduce((total, { tokens }) => total + tokens.length, context);
}
