/**
 * Holds the one stage that this process has built, and lets one thing at a time happen to it: loads
 * and steps run first in, first out. A stage outlives its plan, so that a new epoch with the same
 * layers starts without loading.
 */
import { RelayError } from "../../common/errors.js";
import {
  isDeviceLost,
  isOutOfMemory,
  type LoadProgress,
  type StepInput,
  type StepOutput,
} from "../../native/index.js";
import type { StepFormat } from "../codec.js";
import type { SliceFormat } from "../slices.js";
import type { Engine, EngineModel, EngineStage } from "./engine.js";
import { isFirst, isLast, type StagePlan, stageKey } from "./plan.js";

export interface LoadedStage {
  readonly key: string;
  readonly stage: EngineStage;
  readonly format: StepFormat;
  readonly slices: SliceFormat;
  /** KV slots in front of every sequence. */
  readonly prefixLength: number;
}

const elementBytes = { float32: 4, float16: 2, bfloat16: 2 } as const;

export class StageHost {
  readonly #engine: Engine;
  readonly #threads: number;
  readonly #built: (stage: EngineStage) => void;
  #loaded: LoadedStage | null = null;
  #tail: Promise<unknown> = Promise.resolve();
  #pending = 0;
  /** Progress of stages that are gone: the reported counter never goes back. */
  #pastProgress = 0n;
  #steps = 0;
  #busyUs = 0;
  #loading: (() => LoadProgress) | null = null;
  #deviceLost: RelayError | null = null;

  /** @param built Hears of every stage that was loaded, once. */
  constructor(engine: Engine, threads: number, built: (stage: EngineStage) => void = () => {}) {
    this.#engine = engine;
    this.#threads = threads;
    this.#built = built;
  }

  /** A step or a load is running or waiting for its turn. */
  get busy(): boolean {
    return this.#pending > 0;
  }

  /** Steps since the stage was built. */
  get steps(): number {
    return this.#steps;
  }

  /** Time inside the engine since the stage was built. */
  get busyUs(): number {
    return this.#busyUs;
  }

  /** How far the reading of weights is; null when none is being done. */
  get loading(): LoadProgress | null {
    return this.#loading?.() ?? null;
  }

  /** Why no stage can compute in this process any more (isDeviceLost); null while one can. */
  get deviceLost(): RelayError | null {
    return this.#deviceLost;
  }

  get progress(): number {
    return Number(this.#pastProgress + (this.#loaded?.stage.progress() ?? 0n));
  }

  /**
   * Builds the plan's stage, or takes the one at hand when it fits.
   * @param wanted asked when the turn comes: false skips a plan that was replaced meanwhile.
   * @returns null when skipped.
   * @throws RelayError numerics_mismatch, invalid_model, invalid_configuration, stage_failed.
   */
  load(plan: StagePlan, wanted: () => boolean): Promise<LoadedStage | null> {
    return this.#inTurn(async () => {
      if (!wanted()) return null;
      const key = stageKey(plan);
      if (this.#loaded?.key === key) return this.#loaded;
      // First: the old stage and the new one may not fit into memory together.
      await this.#drop();
      const model = await this.#engine.openModel(plan.modelDirectory, plan);
      checkModel(model, plan);
      const stage = await model
        .buildStage(plan, this.#threads, (progress) => {
          this.#loading = progress;
        })
        .catch((error: unknown) => {
          throw this.#failure(withPlannedBytes(error, plan));
        })
        .finally(() => {
          this.#loading = null;
        });
      this.#steps = 0;
      this.#busyUs = 0;
      this.#built(stage);
      const { prefixLength } = model;
      this.#loaded = { key, stage, ...formatsOf(model, plan), prefixLength };
      return this.#loaded;
    });
  }

  /** @throws RelayError stage_failed; the stage is given up then, as its memory may be in any state. */
  step(loaded: LoadedStage, input: StepInput): Promise<StepOutput> {
    return this.#inTurn(async () => {
      if (this.#loaded !== loaded) throw new RelayError("stage_failed", "the stage was replaced");
      try {
        const output = await loaded.stage.step(input);
        this.#steps += 1;
        this.#busyUs += output.computeUs;
        return output;
      } catch (error) {
        const failure = this.#failure(error);
        await this.#drop();
        throw failure;
      }
    });
  }

  /** Frees the stage once whatever runs has finished. */
  close(): Promise<void> {
    return this.#inTurn(() => this.#drop());
  }

  #failure(error: unknown): RelayError {
    const failure = asStageFailure(error);
    if (isDeviceLost(error)) this.#deviceLost = failure;
    return failure;
  }

  async #drop(): Promise<void> {
    const loaded = this.#loaded;
    if (loaded === null) return;
    this.#pastProgress += loaded.stage.progress();
    this.#loaded = null;
    await loaded.stage.close();
  }

  /** The queue is as long as its callers: one step per plan, and one load per plan that still waits. */
  #inTurn<T>(task: () => Promise<T>): Promise<T> {
    this.#pending += 1;
    const run = this.#tail.then(task).finally(() => {
      this.#pending -= 1;
    });
    this.#tail = run.catch(() => undefined);
    return run;
  }
}

/** Where the memory is not enough: what the plan had counted, and what can be done. */
function withPlannedBytes(error: unknown, { planned = null, blockCount }: StagePlan): unknown {
  if (planned === null || !isOutOfMemory(error)) return error;
  const { weightBytes, kvBytes, workspaceBytes, processBytes, memoryBytes } = planned;
  const MB = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
  return new Error(
    `${error.message}; the plan counts ${MB(weightBytes)} for weights, ${MB(kvBytes)} for ${blockCount} KV blocks, ` +
      `${MB(workspaceBytes)} of workspace and ${MB(processBytes)} of reserve, of ${MB(memoryBytes)} that this ` +
      "worker offers: give the worker a smaller --memory, which leaves fewer KV blocks, use more stages, or end " +
      "what else takes this memory",
    { cause: error },
  );
}

function checkModel(model: EngineModel, plan: StagePlan): void {
  if (model.fingerprint !== plan.weightsFingerprint) {
    throw new RelayError(
      "numerics_mismatch",
      `weights in ${plan.modelDirectory} have fingerprint ${model.fingerprint}: the plan is for ${plan.weightsFingerprint}`,
    );
  }
  if (plan.layerEnd > model.layerCount) {
    throw new RelayError(
      "invalid_configuration",
      `plan's layers end at ${plan.layerEnd}: the model has ${model.layerCount}`,
    );
  }
}

function formatsOf(model: EngineModel, plan: StagePlan): { format: StepFormat; slices: SliceFormat } {
  const { layerBegin, layerEnd, maxRows } = plan;
  const { layerCount, tokenCount } = model;
  const rowBytes = model.hiddenSize * elementBytes[plan.dtype];
  const contextRows = Math.min(model.contextRows, maxRows);
  return {
    format: { first: isFirst(plan), last: isLast(plan), stage: plan.stage, rowBytes, tokenCount, maxRows },
    slices: { layerBegin, layerEnd, layerCount, rowBytes, tokenCount, contextRows },
  };
}

function asStageFailure(error: unknown): RelayError {
  if (error instanceof RelayError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new RelayError("stage_failed", message, { cause: error });
}
