/** Stages as placement plans them, for tests that hold a plan's bytes against those of the engine. */
import { join } from "node:path";
import type { Model } from "../../checkpoint/index.js";
import { kvBlockSize, linkCredits } from "../../common/limits.js";
import { packageRoot } from "../../common/package.js";
import { placementModel } from "../../coordinator/placement/model.js";
import { place, type StagePlacement } from "../../coordinator/placement/placement.js";
import type { Precision, WeightFormat } from "../../models/quantization.js";
import type { StagePlan } from "../../worker/stage/plan.js";

const fixtures = "test/golden/fixtures";
/** Of every family, some with a prefix encoder. */
export const models: [directory: string, prefixEncoder?: string][] = [
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
export const precisions: [string, Precision][] = [
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

export interface PlannedStage {
  placed: StagePlacement;
  plan: StagePlan;
}

/** @param memoryBytes What each worker offers. */
export function plannedStages(
  model: Model,
  precision: Precision,
  {
    threads,
    maxRows,
    stageCount,
    prefixEncoder = null,
    ...worker
  }: {
    threads: number;
    maxRows: number;
    stageCount: number;
    prefixEncoder?: string | null;
    memoryBytes: number;
    gpu?: boolean;
  },
): PlannedStage[] {
  const workers = Array.from({ length: stageCount }, (_, i) => ({ id: `w${i}`, threads, ...worker }));
  const limits = { blockSize: kvBlockSize, minBlocks: 1, maxBlocks: 40 };
  const { stages, blockCount } = place(placementModel(model, precision, maxRows), workers, limits);
  return stages.map((placed, stage) => ({
    placed,
    plan: {
      epoch: { term: 1, plan: 1 },
      pipeline: 0,
      stage,
      stageCount,
      layerBegin: placed.layerBegin,
      layerEnd: placed.layerEnd,
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
    },
  }));
}
