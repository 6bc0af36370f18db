/** Why a model does not fit: which worker, what it offers, what it would need. Pure. */
import { RelayError } from "../../common/errors.js";
import type { StageCosts } from "./costs.js";
import { bestCut, type LayerRange, rangeName } from "./cut.js";
import type { PlacementWorker } from "./placement.js";

/** No cut fits: tells of a worker too small for a single layer, else of the cut that lacks the fewest bytes. */
export function doesNotFit(
  costs: StageCosts,
  workers: readonly PlacementWorker[],
  layerCount: number,
): RelayError {
  for (const [stage, worker] of workers.entries()) {
    const needed = leastNeeded(costs, stage, workers.length, layerCount);
    if (needed <= worker.memoryBytes) continue;
    return refused(
      `worker "${worker.id}" offers ${worker.memoryBytes} bytes, one layer on it needs ${needed}: ` +
        `${needed - worker.memoryBytes} more`,
    );
  }
  const { score: missing, ranges } = bestCut<number>(workers.length, layerCount, {
    none: 0,
    extend: (sum, stage, layers) => sum + costs.missingBytes(stage, layers),
    isBetter: (sum, than) => sum < than,
  })!;
  const lacks = ranges.map((layers, stage) => costs.missingBytes(stage, layers));
  const worst = lacks.indexOf(Math.max(...lacks));
  const { id, memoryBytes } = workers[worst]!;
  const offered = workers.reduce((sum, worker) => sum + worker.memoryBytes, 0);
  const needed = ranges.reduce((sum, layers, stage) => sum + costs.neededBytes(stage, layers), 0);
  return refused(
    `${workers.length} workers offer ${offered} bytes, the model with its KV cache needs ${needed}; ` +
      `the best cut lacks ${missing} more: ${describe(costs, worst, ranges[worst]!, id, memoryBytes)}`,
  );
}

/** A stage of a cut made by hand does not fit its worker. */
export function stageDoesNotFit(
  costs: StageCosts,
  stage: number,
  layers: LayerRange,
  { id, memoryBytes }: PlacementWorker,
): RelayError {
  return refused(describe(costs, stage, layers, id, memoryBytes));
}

function describe(costs: StageCosts, stage: number, layers: LayerRange, id: string, offered: number): string {
  return (
    `stage ${stage} with ${rangeName(layers)} needs ${costs.neededBytes(stage, layers)} bytes, ` +
    `worker "${id}" offers ${offered}: ${costs.missingBytes(stage, layers)} more`
  );
}

/** With the one layer that needs least, of those that leave a layer to every other stage. */
function leastNeeded(costs: StageCosts, stage: number, stageCount: number, layerCount: number): number {
  let least = Number.POSITIVE_INFINITY;
  for (let layerBegin = stage; layerBegin <= layerCount - stageCount + stage; layerBegin++) {
    least = Math.min(least, costs.neededBytes(stage, { layerBegin, layerEnd: layerBegin + 1 }));
  }
  return least;
}

function refused(why: string): RelayError {
  return new RelayError("invalid_configuration", `the model does not fit: ${why}`);
}
