/**
 * One plan's life on this worker: load the stage, open the links, work the steps off in order.
 *
 * States: `loading`; `loaded`, dialling the predecessor; `linked`, working; `failed`, reported to the
 * coordinator, which decides; `over`, ended by us. The last two are final: a plan is never revived, the
 * coordinator sends a newer one.
 */
import { RelayError, toRelayError } from "../../common/errors.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import { maxLoggedRequests } from "../../common/limits.js";
import type { Logger } from "../../common/log.js";
import type { WorkerTrust } from "../../common/tls.js";
import type { StepInput, StepOutput, TensorRounding } from "../../native/index.js";
import type { LinkFrame } from "../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { SequenceRows__Output } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StageState } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { StepHeader__Output } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import { Downstream, epochOver } from "../../proto/link/downstream.js";
import { type ReceivedStep, stepFrames } from "../../proto/link/frames.js";
import type { ServedPlan } from "../../proto/link/hello.js";
import { Upstream } from "../../proto/link/upstream.js";
import { decodeStep, nonFiniteSequences, resultFrame, stepFrame } from "../codec.js";
import { BlockTables } from "../kv-cache/block-tables.js";
import type { Phase, WorkerMetrics } from "../metrics.js";
import { SliceReader } from "../slices.js";
import { isLast, type StagePlan } from "./plan.js";
import type { LoadedStage, StageHost } from "./stage-host.js";

export interface PlanRunContext {
  host: StageHost;
  metrics: WorkerMetrics;
  trust: WorkerTrust;
  log: Logger;
  /** Weights were rounded on loading. */
  rounded(roundings: readonly TensorRounding[]): void;
  /** Tells the coordinator how far the plan is. */
  report(state: StageState): void;
  /** The links are open, or no longer. */
  linkedChanged(linked: boolean): void;
}

export class PlanRun implements ServedPlan {
  readonly epoch: Epoch;
  readonly pipeline: number;
  readonly stage: number;
  readonly downstream: Downstream;
  readonly #plan: StagePlan;
  readonly #context: PlanRunContext;
  readonly #upstream: Upstream<ReceivedStep>;
  #tables: BlockTables;
  #state: "loading" | "loaded" | "linked" | "failed" | "over" = "loading";
  #work: Promise<void> = Promise.resolve();
  /** The step being worked off. */
  #current: StepHeader__Output | null = null;

  constructor(plan: StagePlan, context: PlanRunContext) {
    this.epoch = plan.epoch;
    this.pipeline = plan.pipeline;
    this.stage = plan.stage;
    this.#plan = plan;
    this.#context = context;
    this.downstream = new Downstream(plan.epoch);
    this.#tables = new BlockTables(plan.blockCount, plan.blockSize);
    this.#upstream = new Upstream(
      {
        insecureWorkers: context.trust.insecureWorkers,
        predecessor: plan.predecessor,
        epoch: plan.epoch,
        pipeline: plan.pipeline,
        stage: plan.stage,
        credits: plan.credits,
        onStale: () => context.metrics.stale("step"),
        onReceived: (bytes) => context.metrics.received(plan.stage, bytes),
        onLost: (error) => this.#lost(error),
      },
      stepFrames,
    );
  }

  start(): void {
    this.#work = this.#run().catch((error: unknown) => this.#lost(toRelayError(error)));
  }

  /** Ends the plan: links are closed quietly, a running step's result is dropped, nothing is reported. */
  end(): void {
    if (!this.#active()) return;
    this.#close("over", epochOver(this.epoch, this.stage));
  }

  /** Takes no further step, and resolves when the running one has finished and its result has been sent. */
  async drain(): Promise<void> {
    this.#upstream.close();
    await this.#work;
  }

  /** Ends the plan because the process goes away. */
  leave(reason: string): void {
    if (!this.#active()) return;
    this.#close("over", new RelayError("worker_lost", `stage ${this.stage} is leaving: ${reason}`));
  }

  async #run(): Promise<void> {
    const { host, report } = this.#context;
    report({ epoch: this.epoch, phase: "LOADING" });
    const loaded = await host.load(this.#plan, () => this.#active());
    if (loaded === null || !this.#active()) return;
    this.#state = "loaded";
    const { blockCount, blockSize } = this.#plan;
    this.#tables = new BlockTables(blockCount, blockSize, loaded.prefixLength);
    const { weightBytes, kvBytes, workspaceBytes, roundings } = loaded.stage;
    if (roundings.length > 0) this.#context.rounded(roundings);
    const bytes = { weightBytes, kvBytes, workspaceBytes };
    const { weightsFingerprint } = this.#plan;
    report({ epoch: this.epoch, phase: "LOADED", ...bytes, weightsFingerprint });
    if (!(await this.#upstream.open()) || !this.#active()) return;
    this.#state = "linked";
    report({ epoch: this.epoch, phase: "LINKED", ...bytes, weightsFingerprint });
    this.#context.linkedChanged(true);
    this.#context.metrics.linkedStage(this.stage);
    this.#context.log.info({ epoch: formatEpoch(this.epoch), stage: this.stage }, "linked");
    await this.#serve(loaded);
  }

  async #serve(loaded: LoadedStage): Promise<void> {
    const slices = new SliceReader(loaded.slices);
    for (let step = await this.#upstream.next(); step !== null; step = await this.#upstream.next()) {
      this.#current = step.header;
      await this.#step(loaded, slices, step);
      this.#current = null;
      this.#upstream.consumed();
    }
  }

  async #step(loaded: LoadedStage, slices: SliceReader, received: ReceivedStep): Promise<void> {
    const { header, activations, sliceActivations } = received;
    const slice = slices.read(header, sliceActivations);
    const input = decodeStep(header, activations, this.#tables, loaded.format, slice);
    this.#logFirstRows(header);
    const phase = phaseOf(header);
    const output = await this.#compute(loaded, input, phase);
    if (isLast(this.#plan)) {
      const frame = resultFrame(header, output);
      this.#logNonFinite(nonFiniteSequences(frame.result.sequences));
      await this.#send(frame, phase);
    } else if (output.activations !== null || input.sequences.length === 0) {
      const { activations: rows, computeUs, sliceActivations } = output;
      await this.#send(stepFrame(header, rows ?? noRows, computeUs, sliceActivations), phase);
    } else {
      throw new RelayError("stage_failed", `the engine gave no activations for step ${header.step}`);
    }
  }

  /** A step with nothing but a slice of other stages only passes through. */
  async #compute(loaded: LoadedStage, input: StepInput, phase: Phase): Promise<StepOutput> {
    const { host, metrics } = this.#context;
    if (input.sequences.length === 0 && input.slice === undefined) return nothing;
    metrics.stepBegins();
    const output = await host.step(loaded, input);
    metrics.step(this.stage, phase, output.computeUs);
    return output;
  }

  #send(frame: LinkFrame, phase: Phase): Promise<void> {
    const { metrics } = this.#context;
    const readyMs = performance.now();
    return this.downstream.send(frame, () => metrics.sent(this.stage, phase, performance.now() - readyMs));
  }

  /** Once per sequence, and not at the usual level: this is the hot path. */
  #logFirstRows(header: StepHeader__Output): void {
    const { log } = this.#context;
    if (!log.isLevelEnabled("debug")) return;
    const { step } = header;
    for (const { requestId, sequence, rowCount } of allRows(header)) {
      if (requestId === "") continue;
      log.debug({ requestId, sequence, step, rows: rowCount, stage: this.stage }, "first rows of a sequence");
    }
  }

  #logNonFinite(sequences: readonly number[]): void {
    for (const sequence of sequences.slice(0, maxLoggedRequests)) {
      this.#context.log.warn(
        { requestId: this.#tables.requestIdOf(sequence), sequence, stage: this.stage },
        "a value is not finite (NaN or infinity)",
      );
    }
  }

  /** Of the step being worked off, which a failure interrupts. */
  #interruptedRequests(): string[] {
    const rows = this.#current === null ? [] : allRows(this.#current);
    const ids = rows.map(({ sequence, requestId }) => requestId || this.#tables.requestIdOf(sequence));
    return [...new Set(ids)].filter((id) => id !== "").slice(0, maxLoggedRequests);
  }

  /** A predecessor that says the epoch is over has it from the coordinator, who will tell us too. */
  #lost(error: RelayError): void {
    if (error.code === "stale_epoch") this.end();
    else this.#fail(error);
  }

  #fail(error: RelayError): void {
    if (!this.#active()) return;
    this.#context.log.error(
      {
        epoch: formatEpoch(this.epoch),
        stage: this.stage,
        requestIds: this.#interruptedRequests(),
        err: error,
      },
      "stage failed",
    );
    this.#context.report({
      epoch: this.epoch,
      phase: "FAILED",
      detail: error.message,
      errorCode: error.code,
    });
    this.#close("failed", error);
  }

  #close(state: "failed" | "over", reason: RelayError): void {
    this.#state = state;
    this.#context.linkedChanged(false);
    this.#context.metrics.linkedStage(null);
    this.#upstream.close();
    this.downstream.close(reason);
  }

  #active(): boolean {
    return this.#state !== "failed" && this.#state !== "over";
  }
}

/** A step that nothing was computed for. */
const nothing: StepOutput = { activations: null, samples: [], scores: [], computeUs: 0 };
const noRows = new Uint8Array(0);

/** Of all sequences, the one whose context is read in slices first. */
function allRows({ slice, sequences }: StepHeader__Output): SequenceRows__Output[] {
  return slice?.rows == null ? sequences : [slice.rows, ...sequences];
}

function phaseOf(header: StepHeader__Output): Phase {
  return allRows(header).every(({ rowCount, draftRows }) => rowCount - draftRows === 1)
    ? "decode"
    : "prefill";
}
