/** One plan's life on a simulated worker: load, link, work steps off in order (worker/stage/run.ts). */
import { int32FromBytes } from "../../common/bytes.js";
import type { RelayError } from "../../common/errors.js";
import { RelayError as RelayFault } from "../../common/errors.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import { linkCredits } from "../../common/limits.js";
import type { Assign } from "../../proto/generated/glm/relay/internal/v1/Assign.js";
import type { LinkFrame } from "../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { StageState__Output } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { StepHeader__Output } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import { Downstream, epochOver } from "../../proto/link/downstream.js";
import type { ServedPlan } from "../../proto/link/hello.js";
import { Receiver } from "./links.js";
import type { Network } from "./network.js";
import type { Process } from "./process.js";
import { BadHeader, type SimStep, Stage } from "./stage.js";
import type { World } from "./world.js";

export interface PlanContext {
  world: World;
  network: Network;
  process: Process;
  prefixLength: number;
  /** Until the stage is there. */
  loadMs: number;
  /** A step of this plan was computed. */
  computed(epoch: Epoch): void;
  /** Of a step with so many rows. */
  computeMs(rows: number): number;
  report(state: Pick<StageState__Output, "phase" | "detail" | "errorCode">): void;
}

const noBytes = Buffer.alloc(0);
const tokenResult = (token: number) => ({
  token,
  logprob: 0,
  rank: 1,
  topTokens: noBytes,
  topLogprobs: noBytes,
  finite: true,
});

export class PlanRun implements ServedPlan {
  readonly epoch: Epoch;
  readonly pipeline: number;
  readonly stage: number;
  readonly downstream: Downstream;
  readonly #assign: Assign;
  readonly #context: PlanContext;
  readonly #receiver: Receiver<SimStep>;
  readonly #stage: Stage;
  #active = true;
  #loading = true;
  /** Bounded by the link's credits. */
  readonly #queue: SimStep[] = [];
  #computing = false;
  steps = 0;

  constructor(assign: Assign, context: PlanContext) {
    const { epoch, pipeline = 0, stage = 0 } = assign;
    this.epoch = { term: Number(epoch!.term), plan: epoch!.plan! };
    this.pipeline = pipeline;
    this.stage = stage;
    this.#assign = assign;
    this.#context = context;
    this.downstream = new Downstream(this.epoch);
    this.#stage = new Stage({
      layerBegin: assign.layerBegin!,
      layerEnd: assign.layerEnd!,
      blockCount: assign.blockCount!,
      prefixLength: context.prefixLength,
      maxRows: assign.maxRows!,
    });
    this.#receiver = new Receiver<SimStep>(
      context.process,
      context.network,
      {
        predecessor: assign.predecessor!,
        epoch: this.epoch,
        pipeline,
        stage,
        onOpen: () => this.#report("LINKED"),
        onFrame: (step) => this.#arrived(step),
        onLost: (error) => (error.code === "stale_epoch" ? this.end() : this.#fail(error)),
      },
      ({ header }) => ({ epoch: header.epoch!, pipeline: header.pipeline, step: header.step }),
    );
  }

  get busy(): boolean {
    return this.#active && (this.#loading || this.#computing);
  }

  start(): void {
    const { process, loadMs } = this.#context;
    this.#report("LOADING");
    process.timers.after(loadMs, () => {
      if (!this.#active) return;
      this.#loading = false;
      this.#report("LOADED");
      this.#receiver.dial();
    });
  }

  end(): void {
    if (this.#active) this.#close(epochOver(this.epoch, this.stage));
  }

  #arrived(step: SimStep): void {
    this.#queue.push(step);
    if (this.#queue.length > linkCredits) {
      this.#context.world.violate("credits hold", `${this.#queue.length} steps wait at stage ${this.stage}`);
    }
    this.#next();
  }

  #next(): void {
    const step = this.#queue.shift();
    if (step === undefined || this.#computing || !this.#active) {
      if (step !== undefined) this.#queue.unshift(step);
      return;
    }
    this.#computing = true;
    const rows = step.header.sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
    const slice = step.header.slice?.rows?.rowCount ?? 0;
    const ms = this.#context.computeMs(rows + slice / 4);
    this.#context.process.timers.after(ms, () => {
      this.#computing = false;
      if (!this.#active) return;
      this.#finish(step, ms);
      this.#receiver.consumed();
      this.#next();
    });
  }

  #finish(step: SimStep, ms: number): void {
    const { world, process } = this.#context;
    this.steps++;
    this.#context.computed(this.epoch);
    try {
      const computed = this.#stage.compute(step);
      const header = { ...step.header, stageUs: [...step.header.stageUs, Math.round(ms * 1_000)] };
      const isLast = this.stage === this.#assign.stageCount! - 1;
      const frame = isLast ? this.#result(header, computed.rows) : { ...computed, header };
      void this.downstream.send(frame as unknown as LinkFrame);
    } catch (error) {
      if (!(error instanceof BadHeader)) throw error;
      const message = `${process.name}, step ${step.header.step} of ${formatEpoch(this.epoch)}: ${error.message}`;
      world.violate("headers fit the workers' tables", message);
      this.#fail(new RelayFault("corrupt_message", error.message));
    }
  }

  #result(header: StepHeader__Output, rows: readonly number[][]): StepResult__Output {
    const { epoch, pipeline, step, stageUs } = header;
    return {
      epoch,
      pipeline,
      step,
      stageUs,
      sequences: header.sequences.map((sequence, index) => {
        const { sampling, validLength, rowCount, draftRows, scoreTargets } = sequence;
        const drawn = sampling === null ? [] : this.#stage.drawn(sequence, rows[index]!);
        const targets = [...int32FromBytes(scoreTargets)].filter((target) => target >= 0);
        return {
          sequence: sequence.sequence,
          drawn: drawn.map(tokenResult),
          drawnPosition: sampling === null ? 0 : validLength + rowCount - draftRows,
          scores: targets.map(tokenResult),
        };
      }),
    };
  }

  #report(phase: "LOADING" | "LOADED" | "LINKED"): void {
    this.#context.report({ phase, detail: "", errorCode: "" });
  }

  #fail(error: RelayError): void {
    if (!this.#active) return;
    if (error.code === "corrupt_message") {
      this.#context.world.violate("credits hold", `${this.#context.process.name}: ${error.message}`);
    }
    this.#context.report({ phase: "FAILED", detail: error.message, errorCode: error.code });
    this.#close(error);
  }

  #close(reason: RelayError): void {
    this.#active = false;
    this.#receiver.close();
    this.downstream.close(reason);
  }
}
