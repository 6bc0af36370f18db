/**
 * Cuts a model's layers into contiguous stages, one per worker, in proportion to the memory each
 * offers. Pure. All sizes in bytes.
 */
import { RelayError } from "../../common/errors.js";

/** What a stage's passes need beside weights and KV cache. */
export interface WorkspaceBytes {
  stage: number;
  perThread: number;
  /** More on the first stage. */
  first: number;
  /** More on the last stage: its logits and sampling. */
  last: number;
  lastPerThread: number;
}

export interface PlacementModel {
  /** Bytes of each layer in the engine's memory. */
  layerBytes: readonly number[];
  embeddingBytes: number;
  /** Final norm and head. */
  headBytes: number;
  /** KV bytes of one token in one layer. */
  layerKvBytesPerToken: number;
  workspace: WorkspaceBytes;
  /** The worker's process itself. */
  processBytes: number;
}

export interface PlacementWorker {
  id: string;
  /** For everything: weights, KV cache, workspace and the process. */
  memoryBytes: number;
  /** Compute threads. */
  threads: number;
}

export interface StagePlacement {
  worker: string;
  layerBegin: number;
  /** Exclusive. */
  layerEnd: number;
  weightBytes: number;
  workspaceBytes: number;
  kvBytes: number;
  processBytes: number;
}

export interface Placement {
  stages: StagePlacement[];
  /** KV blocks that every stage can hold. */
  blockCount: number;
}

export interface PlacementLimits {
  blockSize: number;
  /** Below this the plan is refused: not even one sequence of the context length would run. */
  minBlocks: number;
  /** More would never be used. */
  maxBlocks: number;
}

/**
 * @param workers In stage order.
 * @throws RelayError invalid_configuration when there are more workers than layers or a stage does
 *   not fit; the message names the worker and the missing bytes.
 */
export function place(
  model: PlacementModel,
  workers: readonly PlacementWorker[],
  limits: PlacementLimits,
): Placement {
  const layerCount = model.layerBytes.length;
  if (workers.length > layerCount) {
    throw new RelayError(
      "invalid_configuration",
      `${workers.length} stages asked for, but the model has ${layerCount} layers: expected 1 to ${layerCount} stages`,
    );
  }
  const fixed = workers.map((worker, stage) => fixedBytes(model, worker, stage, workers.length));
  const minKvBytes = limits.minBlocks * limits.blockSize * model.layerKvBytesPerToken;
  // Layers of one model are of one size but for rounding; the largest one makes the bound safe.
  const perLayer = Math.max(...model.layerBytes) + minKvBytes;
  const room = workers.map((worker, stage) => Math.max(0, worker.memoryBytes - fixed[stage]!));
  const caps = room.map((bytes) => Math.floor(bytes / perLayer));
  const short = caps.findIndex((cap) => cap < 1);
  if (short >= 0 || sum(caps) < layerCount) {
    throw doesNotFit(model, workers, fixed, perLayer, short);
  }
  const counts = proportionalCounts(layerCount, room, caps);

  const blockBytes = counts.map((count) => limits.blockSize * count * model.layerKvBytesPerToken);
  const stages: StagePlacement[] = [];
  let blockCount = limits.maxBlocks;
  let layerBegin = 0;
  for (const [stage, worker] of workers.entries()) {
    const layerEnd = layerBegin + counts[stage]!;
    const layers = sum(model.layerBytes.slice(layerBegin, layerEnd));
    blockCount = Math.min(blockCount, Math.floor((room[stage]! - layers) / blockBytes[stage]!));
    stages.push({
      worker: worker.id,
      layerBegin,
      layerEnd,
      weightBytes: layers + endBytes(model, stage, workers.length),
      workspaceBytes: workspaceOf(model, worker, stage, workers.length),
      kvBytes: 0,
      processBytes: model.processBytes,
    });
    layerBegin = layerEnd;
  }
  for (const [stage, placed] of stages.entries()) placed.kvBytes = blockCount * blockBytes[stage]!;
  return { stages, blockCount };
}

function workspaceOf(
  { workspace }: PlacementModel,
  { threads }: PlacementWorker,
  stage: number,
  stageCount: number,
): number {
  return (
    workspace.stage +
    threads * workspace.perThread +
    (stage === 0 ? workspace.first : 0) +
    (stage === stageCount - 1 ? workspace.last + threads * workspace.lastPerThread : 0)
  );
}

/** Embedding on the first stage, final norm and head on the last. */
function endBytes(model: PlacementModel, stage: number, stageCount: number): number {
  return (stage === 0 ? model.embeddingBytes : 0) + (stage === stageCount - 1 ? model.headBytes : 0);
}

/** What a stage needs beside its layers and KV cache. */
function fixedBytes(
  model: PlacementModel,
  worker: PlacementWorker,
  stage: number,
  stageCount: number,
): number {
  return (
    endBytes(model, stage, stageCount) + workspaceOf(model, worker, stage, stageCount) + model.processBytes
  );
}

/** Largest remainders, each count within [1, cap]. The caps' sum is at least the total. */
function proportionalCounts(total: number, room: readonly number[], caps: readonly number[]): number[] {
  const all = sum(room);
  const ideal = room.map((bytes) => (total * bytes) / all);
  const counts = ideal.map((share, stage) => Math.min(caps[stage]!, Math.max(1, Math.floor(share))));
  // Each round moves one layer, and at most `total` are out of place.
  while (sum(counts) !== total) {
    const grow = sum(counts) < total;
    let best = -1;
    for (const stage of counts.keys()) {
      if (grow ? counts[stage]! >= caps[stage]! : counts[stage]! <= 1) continue;
      const lack = (grow ? 1 : -1) * (ideal[stage]! - counts[stage]!);
      if (best < 0 || lack > (grow ? 1 : -1) * (ideal[best]! - counts[best]!)) best = stage;
    }
    counts[best]! += grow ? 1 : -1;
  }
  return counts;
}

function doesNotFit(
  model: PlacementModel,
  workers: readonly PlacementWorker[],
  fixed: readonly number[],
  perLayer: number,
  short: number,
): RelayError {
  const needed = sum(fixed) + perLayer * model.layerBytes.length;
  const offered = sum(workers.map((worker) => worker.memoryBytes));
  const where =
    short >= 0
      ? `worker "${workers[short]!.id}" offers ${workers[short]!.memoryBytes} bytes, one layer on it needs ${fixed[short]! + perLayer}`
      : `${workers.length} workers offer ${offered} bytes, the model with its KV cache needs ${needed}: ${Math.max(0, needed - offered)} more`;
  return new RelayError("invalid_configuration", `the model does not fit: ${where}`);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
