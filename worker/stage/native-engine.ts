/** The native engine over a checkpoint on disk. */
import { contextRowsOf, openModel, stageTensors } from "../../checkpoint/index.js";
import { engineInfo, Stage } from "../../native/index.js";
import type { Engine } from "./engine.js";
import { isFirst, isLast } from "./plan.js";

/** Where packed weights are kept between two loads (docs/weights-cache.md). */
export interface WeightCacheDirectory {
  directory: string;
  /** Of all files in it. */
  maxBytes: number;
}

/** @param cpus The processor that each compute thread stays on; null: the system moves them. */
export function nativeEngine(
  weightCache: WeightCacheDirectory | null = null,
  cpus: readonly number[] | null = null,
): Engine {
  const { kernels, backend, canonVersion } = engineInfo();
  return {
    kernels,
    backend,
    canonVersion,
    async openModel(directory, options) {
      const model = await openModel(directory, options);
      const { shape, fingerprint } = model;
      return {
        fingerprint,
        layerCount: shape.layerCount,
        hiddenSize: shape.hiddenSize,
        tokenCount: shape.tokenCount,
        prefixLength: model.prefixLength,
        contextRows: contextRowsOf(model),
        buildStage(plan, threads, started) {
          const { layerBegin, layerEnd, blockCount, blockSize, maxRows } = plan;
          const { weights, headWeights, dtype, kvType } = plan;
          const part = { layerBegin, layerEnd, embed: isFirst(plan), head: isLast(plan) };
          const config = {
            shape,
            layerBegin,
            layerEnd,
            ...stageTensors(model, part),
            weights,
            headWeights,
            dtype,
            kvType,
            blockCount,
            blockSize,
            maxRows,
            contextRows: Math.min(contextRowsOf(model), maxRows),
            threads,
            cpus: cpus && Int32Array.from(cpus),
          };
          return Stage.create(config, started, weightCache && { ...weightCache, fingerprint });
        },
      };
    },
  };
}
