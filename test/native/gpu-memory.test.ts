/**
 * What placement counts for a worker on a GPU is what the CUDA backend (emulated) takes of the GPU's memory, whose
 * pages the emulation gives out as CUDA does.
 */
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeRandomCheckpoint } from "../../bench/random-checkpoint.js";
import { openModel } from "../../checkpoint/index.js";
import { packageRoot } from "../../common/package.js";
import { mostPartialBytes } from "../../coordinator/placement/gpu.js";
import { freeGpuBytes, type ModelShape } from "../../native/index.js";
import { nativeEngine } from "../../worker/stage/native-engine.js";
import { emulated, testGpu } from "../support/test-gpu.js";
import { models, plannedStages, precisions } from "./planned-stages.js";
import { rows, temporaryFolder, tokenStep } from "./support.js";

const gpu = testGpu();
const engine = nativeEngine(null, null, gpu);
/** Of processBytes, what CUDA itself takes: nothing in the emulation. */
const cudaBytes = 256 * 2 ** 20;

const folder = temporaryFolder();
afterAll(folder.remove);
beforeAll(async () => {
  // Matrices of more than a page of memory, and of parts of one; sizes that are no multiples of anything.
  const shape = { layerCount: 3, hiddenSize: 768, headCount: 6, kvHeadCount: 2, headDim: 128 };
  await writeRandomCheckpoint({
    directory: folder.path,
    shape: { ...shape, ffnSize: 1_888, vocabSize: 5_000, contextLength: 2_048 },
  });
});

/** Of attention over a cache of so many tokens: sums of parts of 256, for 512 rows. */
function partialBytes({ headCount, headDim }: ModelShape, tokens: number): number {
  // Parts of 256 tokens, up to a power of two.
  const parts = 2 ** Math.ceil(Math.log2(Math.ceil(tokens / 256)));
  return Math.min(mostPartialBytes, 512 * headCount * (headDim + 2) * parts * 4);
}

const cases = [...models, [folder.path] as [string]].map(
  ([directory, prefixEncoder = null]) => [directory, prefixEncoder] as const,
);

for (const [directory, prefixEncoder] of cases) {
  test.each(precisions)(`a GPU's memory is planned for ${directory}: %s`, async (_, precision) => {
    const path = directory === folder.path ? directory : join(packageRoot, directory);
    const model = await openModel(path, { prefixEncoder });
    const engineModel = await engine.openModel(model.directory, { prefixEncoder });
    for (const [maxRows, stageCount] of [
      [2_560, 1],
      [600, 2],
      [10, 3],
    ] as const) {
      const memoryBytes = 2 ** 30;
      const options = { threads: 2, maxRows, stageCount, prefixEncoder, memoryBytes, gpu: true };
      for (const { placed, plan } of plannedStages(model, precision, options)) {
        const { weightBytes, kvBytes, workspaceBytes, processBytes } = placed;
        const freeBefore = freeGpuBytes(gpu);
        const stage = await engineModel.buildStage(plan, 2, () => {});
        const taken = freeBefore - freeGpuBytes(gpu);
        const built = { weightBytes: stage.weightBytes, kvBytes: stage.kvBytes };
        expect(built, `stage ${plan.stage} of ${stageCount}`).toEqual({ weightBytes, kvBytes });
        // The plan does not know how many tokens the cache will hold.
        const unusedBytes = mostPartialBytes - partialBytes(model.shape, plan.blockCount * plan.blockSize);
        // Stages with layers of one kind alone may have narrower matrices than the widest of the model.
        if (stageCount === 1) expect(stage.workspaceBytes).toBe(workspaceBytes - unusedBytes);
        else expect(stage.workspaceBytes).toBeLessThanOrEqual(workspaceBytes - unusedBytes);
        expect(stage.workspaceBytes).toBeGreaterThan(0.8 * (workspaceBytes - unusedBytes));
        const counted = weightBytes + kvBytes + workspaceBytes + processBytes;
        if (emulated) {
          expect(taken).toBeLessThanOrEqual(counted - cudaBytes);
          // Pages that are not full, and rounding.
          expect(taken + unusedBytes).toBeGreaterThan(0.6 * (counted - cudaBytes));
        } else {
          // With a step, for which CUDA loads kernels.
          if (stageCount === 1) await stage.step(tokenStep([rows(0, 3, [0, 1])], [3, 1, 4]));
          const own = freeBefore - freeGpuBytes(gpu) - (counted - cudaBytes);
          process.stderr.write(`CUDA takes ${(own / 1e6).toFixed(1)} MB beyond what is counted\n`);
          expect(own).toBeLessThanOrEqual(cudaBytes);
        }
        await stage.close();
      }
    }
  });
}
