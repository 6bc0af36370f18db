/** What layers cost on a stage: bytes that must fit, and time per step. Pure. */
import type { LayerRange } from "./cut.js";
import type { PlacementLimits, PlacementModel, PlacementWorker, StageBytes } from "./placement.js";

export class StageCosts {
  readonly #model: PlacementModel;
  readonly #workers: readonly PlacementWorker[];
  readonly #minKvBytes: number;
  readonly #minBlocks: number;
  readonly #readBytes: readonly number[];
  readonly #host: DeviceSums;
  readonly #gpu: DeviceSums;

  /** @param workers In stage order. */
  constructor(model: PlacementModel, workers: readonly PlacementWorker[], limits: PlacementLimits) {
    this.#model = model;
    this.#workers = workers;
    this.#minBlocks = limits.minBlocks;
    this.#minKvBytes = limits.minBlocks * limits.blockSize * model.layerKvBytesPerToken;
    this.#readBytes = runningSums(model.layerReadBytes ?? model.layerBytes);
    this.#host = sumsOf(model);
    this.#gpu = model.gpu === undefined ? this.#host : sumsOf(model.gpu);
  }

  /**
   * Time of a stage in a decode step, n_i * tau_i + e_i, in bytes per thread. Decoding reads every weight
   * once per step, so bytes are time. Until stages are profiled, all workers count as of one speed per
   * thread, and all GPUs as of one speed. The head is read like a layer; of the embedding one row per token, which
   * counts as nothing.
   */
  time(stage: number, layers: LayerRange): number {
    const head = stage === this.#workers.length - 1 ? this.#model.headBytes : 0;
    const { gpu, threads } = this.#workers[stage]!;
    return (within(this.#readBytes, layers) + head) / (gpu ? 1 : threads);
  }

  /** Without KV cache. */
  weightBytes(stage: number, layers: LayerRange): number {
    return within(this.#on(stage).layers, layers) + this.#endBytes(stage);
  }

  /** Without what each KV block needs of it. */
  workspaceBytes(stage: number): number {
    const { workspace } = this.#on(stage).bytes;
    const { threads } = this.#workers[stage]!;
    return (
      workspace.stage +
      threads * workspace.perThread +
      (stage === 0 ? workspace.first : 0) +
      (stage === this.#workers.length - 1 ? workspace.last + threads * workspace.lastPerThread : 0)
    );
  }

  /** Workspace that every KV block needs. */
  blockTableBytes(stage: number): number {
    return this.#on(stage).bytes.workspace.perBlock ?? 0;
  }

  processBytes(stage: number, layers: LayerRange): number {
    const { bytes, rounding } = this.#on(stage);
    return bytes.processBytes + within(rounding, layers);
  }

  /** What is left for the KV cache and what its blocks need; may be below 0. */
  kvRoom(stage: number, layers: LayerRange): number {
    const used =
      this.weightBytes(stage, layers) + this.workspaceBytes(stage) + this.processBytes(stage, layers);
    return this.#workers[stage]!.memoryBytes - used;
  }

  /** Bytes without which the stage cannot be: with the least KV cache. */
  neededBytes(stage: number, layers: LayerRange): number {
    const kv = (layers.layerEnd - layers.layerBegin) * this.#minKvBytes;
    const tables = this.#minBlocks * this.blockTableBytes(stage);
    return this.#workers[stage]!.memoryBytes - this.kvRoom(stage, layers) + kv + tables;
  }

  /** Of the needed bytes, what the worker does not offer. */
  missingBytes(stage: number, layers: LayerRange): number {
    return Math.max(0, this.neededBytes(stage, layers) - this.#workers[stage]!.memoryBytes);
  }

  /** Embedding on the first stage, final norm and head on the last. */
  #endBytes(stage: number): number {
    const { embeddingBytes, headBytes } = this.#on(stage).bytes;
    return (stage === 0 ? embeddingBytes : 0) + (stage === this.#workers.length - 1 ? headBytes : 0);
  }

  #on(stage: number): DeviceSums {
    return this.#workers[stage]!.gpu ? this.#gpu : this.#host;
  }
}

/** What workers on one kind of device take: before each layer, and behind the last, the sum of the layers so far. */
interface DeviceSums {
  bytes: StageBytes;
  layers: readonly number[];
  rounding: readonly number[];
}

function sumsOf(bytes: StageBytes): DeviceSums {
  const { layerBytes, layerRoundingBytes = layerBytes.map(() => 0) } = bytes;
  return { bytes, layers: runningSums(layerBytes), rounding: runningSums(layerRoundingBytes) };
}

function runningSums(values: readonly number[]): number[] {
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1)! + value);
  return sums;
}

function within(sums: readonly number[], { layerBegin, layerEnd }: LayerRange): number {
  return sums[layerEnd]! - sums[layerBegin]!;
}
