/** The plan's bytes are the engine's bytes: placement counts what the engine then allocates, to the byte. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { maxStepRows } from "../../common/limits.js";
import { packageRoot } from "../../common/package.js";
import { nativeEngine } from "../../worker/stage/native-engine.js";
import { models, plannedStages, precisions } from "./planned-stages.js";

/** Built twice: what comes out of the cache is as large as what was put into it. */
const weightCache = mkdtempSync(join(tmpdir(), "glm-relay-cache-"));
afterAll(() => rmSync(weightCache, { recursive: true, force: true }));
const engines = [nativeEngine(), nativeEngine({ directory: weightCache, maxBytes: 2 ** 30 })];

for (const [directory, prefixEncoder = null] of models) {
  test.each(precisions)(`the plan of ${directory} is what the engine allocates: %s`, async (_, precision) => {
    const options = { prefixEncoder };
    const model = await openModel(join(packageRoot, directory), options);
    const [plainModel, cachingModel] = await Promise.all(
      engines.map((engine) => engine.openModel(model.directory, options)),
    );
    for (const [threads, maxRows, stageCount] of [
      [1, maxStepRows, 1],
      [3, 64, 2],
      [2, 10, 3],
    ] as const) {
      const stages = plannedStages(model, precision, {
        ...{ threads, maxRows, stageCount, prefixEncoder },
        memoryBytes: 2 ** 30,
      });
      expect(stages).toHaveLength(stageCount);
      let misses = 0;
      for (const [stage, { placed, plan }] of stages.entries()) {
        const { weightBytes, kvBytes, workspaceBytes } = placed;
        for (const engineModel of [plainModel!, cachingModel!, cachingModel!]) {
          const built = await engineModel.buildStage(plan, threads, () => {});
          expect(
            { weightBytes: built.weightBytes, kvBytes: built.kvBytes, workspaceBytes: built.workspaceBytes },
            `stage ${stage} of ${stageCount}`,
          ).toEqual({ weightBytes, kvBytes, workspaceBytes });
          await built.weightCacheWritten?.();
          misses = built.weightCache?.misses ?? 0;
          await built.close();
        }
        expect(misses).toBe(0);
      }
    }
  });
}
