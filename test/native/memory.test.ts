/** The plan's bytes are the engine's bytes: placement counts what the engine then allocates, to the byte. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { kvBlockSize, linkCredits, maxStepRows } from "../../common/limits.js";
import { packageRoot } from "../../common/package.js";
import { placementModel } from "../../coordinator/placement/model.js";
import { place } from "../../coordinator/placement/placement.js";
import type { Precision, WeightFormat } from "../../models/quantization.js";
import { nativeEngine } from "../../worker/stage/native-engine.js";
import type { StagePlan } from "../../worker/stage/plan.js";

const fixtures = "test/golden/fixtures";
const models: [directory: string, prefixEncoder?: string][] = [
  ["models/demo"],
  [`${fixtures}/chatglm3-tiny`],
  [`${fixtures}/chatglm-6b-tiny`, join(packageRoot, fixtures, "chatglm-6b-tiny-ptuning-projection")],
  [`${fixtures}/glm-130b-tiny-shards`],
  [`${fixtures}/glm-10b-tiny`],
  [`${fixtures}/glm4-tiny`],
  [`${fixtures}/glm45-tiny`],
];
const format = (type: "int4" | "int8", groupSize: number): WeightFormat => ({
  type,
  groupSize,
  scales: "absmax",
});
const precisions: [string, Precision][] = [
  ["as stored", { dtype: "float16", kvType: "float16", weights: null, head: null }],
  ["float32", { dtype: "float32", kvType: "float32", weights: null, head: null }],
  ["int8 head only", { dtype: "bfloat16", kvType: "int8", weights: null, head: format("int8", 32) }],
  ["int4", { dtype: "float16", kvType: "int8", weights: format("int4", 32), head: format("int8", 32) }],
  [
    "int4, groups of 128",
    { dtype: "float16", kvType: "float16", weights: format("int4", 128), head: format("int8", 64) },
  ],
  [
    "int8, whole rows",
    { dtype: "float32", kvType: "float32", weights: format("int8", 0), head: format("int4", 0) },
  ],
];

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
      const workers = Array.from({ length: stageCount }, (_, i) => ({
        id: `w${i}`,
        memoryBytes: 2 ** 30,
        threads,
      }));
      const limits = { blockSize: kvBlockSize, minBlocks: 1, maxBlocks: 40 };
      const { stages, blockCount } = place(placementModel(model, precision, maxRows), workers, limits);
      expect(stages).toHaveLength(stageCount);
      let misses = 0;
      for (const [stage, planned] of stages.entries()) {
        const plan: StagePlan = {
          epoch: { term: 1, plan: 1 },
          pipeline: 0,
          stage,
          stageCount,
          layerBegin: planned.layerBegin,
          layerEnd: planned.layerEnd,
          modelDirectory: model.directory,
          overrides: {},
          prefixEncoder,
          weightsFingerprint: model.fingerprint,
          dtype: precision.dtype,
          kvType: precision.kvType,
          weights: precision.weights,
          headWeights: precision.head,
          blockCount,
          blockSize: kvBlockSize,
          maxRows,
          predecessor: "127.0.0.1:1",
          credits: linkCredits,
        };
        const { weightBytes, kvBytes, workspaceBytes } = planned;
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
