/**
 * Cuts a model's layers into contiguous stages, one per worker, such that the slowest stage is as fast as
 * it can be within the memory of each. Pure. All sizes in bytes.
 */
import { RelayError } from "../../common/errors.js";
import { StageCosts } from "./costs.js";
import { bestCut, type LayerRange } from "./cut.js";
import { doesNotFit, stageDoesNotFit } from "./refusal.js";

/** What a stage's passes need beside weights and KV cache. */
export interface WorkspaceBytes {
  stage: number;
  perThread: number;
  /** More on the first stage. */
  first: number;
  /** More on the last stage: its logits and sampling. */
  last: number;
  lastPerThread: number;
  /** For each KV block; absent: nothing. */
  perBlock?: number;
}

/** What a stage takes of the memory that its worker offers. */
export interface StageBytes {
  /** Bytes of each layer in the engine's memory. */
  layerBytes: readonly number[];
  /** What the allocations of each layer take beyond them; absent: nothing. */
  layerRoundingBytes?: readonly number[];
  embeddingBytes: number;
  /** Final norm and head. */
  headBytes: number;
  workspace: WorkspaceBytes;
  /** The worker's process itself; on a GPU what CUDA takes. */
  processBytes: number;
}

export interface PlacementModel extends StageBytes {
  /** Of each layer's bytes, what a decode step of one sequence reads: not every expert. Absent: all. */
  layerReadBytes?: readonly number[];
  /** KV bytes of one token in one layer. */
  layerKvBytesPerToken: number;
  /** On workers that compute on a GPU; absent: the same there. */
  gpu?: StageBytes;
}

export interface PlacementWorker {
  id: string;
  /** For everything: weights, KV cache, workspace and the process. Of a worker on a GPU the GPU's. */
  memoryBytes: number;
  gpu?: boolean;
  /** Compute threads, 1 or more. */
  threads: number;
}

export interface StagePlacement extends LayerRange {
  worker: string;
  weightBytes: number;
  workspaceBytes: number;
  kvBytes: number;
  /** Of the process, or of CUDA, and what allocations are rounded up by. */
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
 * A pipeline is as fast as its slowest stage: lambda = max over i of (n_i * tau_i + e_i) is made as small as
 * the memory of the workers allows. Of the cuts with this lambda the one is taken whose stages hold KV
 * cache for the most tokens: a surplus layer is given back by the stage with the fewest.
 * @param workers In stage order.
 * @param cut Layers of each stage, made by hand: one range per worker, which together are all layers.
 * @throws RelayError invalid_configuration when there are more workers than layers or a stage does
 *   not fit; the message names the worker, what it offers and the missing bytes.
 * @see reference/pipeline-theory.md, 2.2.
 */
export function place(
  model: PlacementModel,
  workers: readonly PlacementWorker[],
  limits: PlacementLimits,
  cut?: readonly LayerRange[],
): Placement {
  const layerCount = model.layerBytes.length;
  if (workers.length > layerCount) {
    throw new RelayError(
      "invalid_configuration",
      `${workers.length} stages asked for, but the model has ${layerCount} layers: expected 1 to ${layerCount} stages`,
    );
  }
  const costs = new StageCosts(model, workers, limits);
  const ranges = cut ?? roomiestCut(costs, workers.length, layerCount);
  if (ranges === null) throw doesNotFit(costs, workers, layerCount);
  for (const [stage, layers] of ranges.entries()) {
    if (!fits(costs, stage, layers)) throw stageDoesNotFit(costs, stage, layers, workers[stage]!);
  }

  const blockBytes = ranges.map(
    ({ layerBegin, layerEnd }) => limits.blockSize * (layerEnd - layerBegin) * model.layerKvBytesPerToken,
  );
  const blocks = ranges.map((layers, stage) =>
    Math.floor(costs.kvRoom(stage, layers) / (blockBytes[stage]! + costs.blockTableBytes(stage))),
  );
  const blockCount = Math.min(limits.maxBlocks, ...blocks);
  const stages = ranges.map(({ layerBegin, layerEnd }, stage) => ({
    worker: workers[stage]!.id,
    layerBegin,
    layerEnd,
    weightBytes: costs.weightBytes(stage, { layerBegin, layerEnd }),
    workspaceBytes: costs.workspaceBytes(stage) + blockCount * costs.blockTableBytes(stage),
    kvBytes: blockCount * blockBytes[stage]!,
    processBytes: costs.processBytes(stage, { layerBegin, layerEnd }),
  }));
  return { stages, blockCount };
}

/** Of the fastest cuts the one with room for the most KV tokens; null when none fits. */
function roomiestCut(costs: StageCosts, stageCount: number, layerCount: number): LayerRange[] | null {
  const fastest = bestCut<number>(stageCount, layerCount, {
    none: 0,
    extend: (lambda, stage, layers) =>
      fits(costs, stage, layers) ? Math.max(lambda, costs.time(stage, layers)) : null,
    isBetter: (lambda, than) => lambda < than,
  });
  if (fastest === null) return null;
  // Scores are the stages' KV bytes per layer, which is tokens but for a factor, fewest first. The fewest
  // decide how many blocks there are; beyond that the next fewest count, so that no stage is left full
  // while a layer of it would have room elsewhere.
  const roomiest = bestCut<readonly number[]>(stageCount, layerCount, {
    none: [],
    extend: (rooms, stage, layers) =>
      fits(costs, stage, layers) && costs.time(stage, layers) <= fastest.score
        ? inserted(rooms, costs.kvRoom(stage, layers) / (layers.layerEnd - layers.layerBegin))
        : null,
    isBetter: (rooms, than) => {
      const first = rooms.findIndex((room, index) => room !== than[index]);
      return first >= 0 && rooms[first]! > than[first]!;
    },
  });
  return roomiest!.ranges;
}

function fits(costs: StageCosts, stage: number, layers: LayerRange): boolean {
  return costs.missingBytes(stage, layers) === 0;
}

/** A copy of ascending values with one more. */
function inserted(values: readonly number[], value: number): number[] {
  const before = values.filter((other) => other <= value);
  return [...before, value, ...values.slice(before.length)];
}
