/** What layers cost on a stage: bytes that must fit, and time per step. Pure. */
import type { LayerRange } from "./cut.js";
import type { PlacementLimits, PlacementModel, PlacementWorker } from "./placement.js";

export class StageCosts {
  readonly #model: PlacementModel;
  readonly #workers: readonly PlacementWorker[];
  readonly #minKvBytes: number;
  /** Before each layer, and behind the last: the sum of the layers so far. */
  readonly #layerBytes: number[];
  readonly #readBytes: number[];

  /** @param workers In stage order. */
  constructor(model: PlacementModel, workers: readonly PlacementWorker[], limits: PlacementLimits) {
    this.#model = model;
    this.#workers = workers;
    this.#minKvBytes = limits.minBlocks * limits.blockSize * model.layerKvBytesPerToken;
    this.#layerBytes = runningSums(model.layerBytes);
    this.#readBytes = runningSums(model.layerReadBytes ?? model.layerBytes);
  }

  /**
   * Time of a stage in a decode step, n_i * tau_i + e_i, in bytes per thread. Decoding reads every weight
   * once per step, so bytes are time. Until stages are profiled, all workers count as of one speed per
   * thread. The head is read like a layer; of the embedding one row per token, which counts as nothing.
   */
  time(stage: number, layers: LayerRange): number {
    const head = stage === this.#workers.length - 1 ? this.#model.headBytes : 0;
    return (within(this.#readBytes, layers) + head) / this.#workers[stage]!.threads;
  }

  /** Without KV cache. */
  weightBytes(stage: number, layers: LayerRange): number {
    return within(this.#layerBytes, layers) + this.#endBytes(stage);
  }

  workspaceBytes(stage: number): number {
    const { workspace } = this.#model;
    const { threads } = this.#workers[stage]!;
    return (
      workspace.stage +
      threads * workspace.perThread +
      (stage === 0 ? workspace.first : 0) +
      (stage === this.#workers.length - 1 ? workspace.last + threads * workspace.lastPerThread : 0)
    );
  }

  /** What is left for the KV cache; may be below 0. */
  kvRoom(stage: number, layers: LayerRange): number {
    const used = this.weightBytes(stage, layers) + this.workspaceBytes(stage) + this.#model.processBytes;
    return this.#workers[stage]!.memoryBytes - used;
  }

  /** Bytes without which the stage cannot be: with the least KV cache. */
  neededBytes(stage: number, layers: LayerRange): number {
    const kv = (layers.layerEnd - layers.layerBegin) * this.#minKvBytes;
    return this.#workers[stage]!.memoryBytes - this.kvRoom(stage, layers) + kv;
  }

  /** Of the needed bytes, what the worker does not offer. */
  missingBytes(stage: number, layers: LayerRange): number {
    return Math.max(0, this.neededBytes(stage, layers) - this.#workers[stage]!.memoryBytes);
  }

  /** Embedding on the first stage, final norm and head on the last. */
  #endBytes(stage: number): number {
    const { embeddingBytes, headBytes } = this.#model;
    return (stage === 0 ? embeddingBytes : 0) + (stage === this.#workers.length - 1 ? headBytes : 0);
  }
}

function runningSums(values: readonly number[]): number[] {
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1)! + value);
  return sums;
}

function within(sums: readonly number[], { layerBegin, layerEnd }: LayerRange): number {
  return sums[layerEnd]! - sums[layerBegin]!;
}
