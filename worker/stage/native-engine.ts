/** The native engine over a checkpoint on disk. */
import { openModel, stageTensors } from "../../checkpoint/index.js";
import { engineInfo, Stage } from "../../native/index.js";
import type { Engine } from "./engine.js";
import { isFirst, isLast } from "./plan.js";

export function nativeEngine(): Engine {
  const { kernels, backend, canonVersion } = engineInfo();
  return {
    kernels,
    backend,
    canonVersion,
    async openModel(directory) {
      const model = await openModel(directory);
      const { shape, fingerprint } = model;
      return {
        fingerprint,
        layerCount: shape.layerCount,
        hiddenSize: shape.hiddenSize,
        tokenCount: shape.tokenCount,
        buildStage(plan, threads) {
          const { layerBegin, layerEnd, dtype, blockCount, blockSize, maxRows } = plan;
          const part = { layerBegin, layerEnd, embed: isFirst(plan), head: isLast(plan) };
          return Stage.create({
            shape,
            layerBegin,
            layerEnd,
            ...stageTensors(model, part),
            dtype,
            blockCount,
            blockSize,
            maxRows,
            threads,
          });
        },
      };
    },
  };
}
