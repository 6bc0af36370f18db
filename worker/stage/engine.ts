/**
 * What the worker asks of an engine. The native engine implements it over a checkpoint; tests hold a
 * stage in their hands instead.
 */
import type { OpenOptions } from "../../checkpoint/overrides.js";
import type {
  LoadProgress,
  StepInput,
  StepOutput,
  TensorRounding,
  WeightCacheReport,
} from "../../native/index.js";
import type { StagePlan } from "./plan.js";

export interface Engine {
  /** Kernel variant, for people. */
  readonly kernels: string;
  /** Backend family and canon version are part of the numerics id. */
  readonly backend: string;
  readonly canonVersion: number;
  /** @throws RelayError invalid_model. */
  openModel(directory: string, options?: OpenOptions): Promise<EngineModel>;
}

export interface EngineModel {
  /** Of the whole checkpoint. */
  readonly fingerprint: string;
  readonly layerCount: number;
  readonly hiddenSize: number;
  readonly tokenCount: number;
  /** KV slots in front of every sequence that a prefix encoder takes. */
  readonly prefixLength: number;
  /** Rows of the longest context that is read as a whole; 0 for causal attention. */
  readonly contextRows: number;
  /**
   * Reads the plan's weights and allocates its KV cache and workspace.
   * @param started Gets a function that tells at any time how far the reading is.
   */
  buildStage(
    plan: StagePlan,
    threads: number,
    started: (progress: () => LoadProgress) => void,
  ): Promise<EngineStage>;
}

export interface EngineStage {
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly workspaceBytes: number;
  /** Of every matrix that was rounded. */
  readonly roundings: readonly TensorRounding[];
  /** What its weight cache has done so far; null or absent without one. */
  readonly weightCache?: WeightCacheReport | null;
  /** Resolves when the cache has written what the load has made, or has given up doing so. */
  weightCacheWritten?(): Promise<void>;
  /** @throws Error; one of isDeviceLost ends every stage of this process. */
  step(input: StepInput): Promise<StepOutput>;
  /** Finished kernel tiles since the stage was built. */
  progress(): bigint;
  close(): Promise<void>;
}
