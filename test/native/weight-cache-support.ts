/** Stages of a random model, built with a weight cache and without. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { packageRoot } from "../../common/package.js";
import { plainForm } from "../../models/shape.js";
import {
  type ModelShape,
  Stage,
  type StageConfig,
  type WeightCacheOptions,
  type WeightCacheReport,
} from "../../native/index.js";
import {
  INT4,
  INT8,
  randomModel,
  rows,
  type StageOptions,
  stageConfig,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

export const folder = temporaryFolder();

/** Sizes that fill neither the last strip nor the last tile. */
export const RANDOM: ModelShape = {
  hiddenSize: 96,
  layerCount: 3,
  headCount: 4,
  kvHeadCount: 2,
  headDim: 24,
  ffnSize: 136,
  vocabSize: 70,
  tokenCount: 67,
  ropeDim: 8,
  ropeBase: 10_000,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 64,
  form: plainForm,
  experts: null,
};
export const tensors = writeTensors(
  join(folder.path, "random.bin"),
  randomModel(RANDOM, "bfloat16", 3),
  true,
);
export const ids = [3, 41, 5, 66, 0, 12, 12, 30];

let directories = 0;
export const addonFile = process.env.GLM_RELAY_ADDON ?? join(packageRoot, "build/native/glm_relay.node");
export const newDirectory = () => join(folder.path, `cache-${directories++}`);
export const cacheIn = (directory: string, more: Partial<WeightCacheOptions> = {}): WeightCacheOptions => ({
  directory,
  maxBytes: 2 ** 30,
  fingerprint: "abc",
  ...more,
});

export interface Run {
  /** Log probability of every token behind every row. */
  logprobs: number[];
  weightBytes: number[];
  roundings: unknown[];
  report: WeightCacheReport;
}

/** Builds the stages, computes a step and waits for the cache. */
export async function run(
  configs: StageConfig[],
  cache: WeightCacheOptions | null,
  prompt = ids,
): Promise<Run> {
  const stages: Stage[] = [];
  for (const config of configs) stages.push(await Stage.create(config, undefined, cache));
  const { shape, prefix, blockSize } = configs[0]!;
  const slots = (prefix?.length ?? 0) + prompt.length;
  const table = Array.from({ length: Math.ceil(slots / blockSize) }, (_, block) => block);
  const input = tokenStep([rows(0, prompt.length, table)], prompt);
  input.scores = prompt.flatMap((_, row) =>
    Array.from({ length: shape.tokenCount }, (_, token) => ({ row, token, topLogprobs: 0 })),
  );
  const { scores } = await new TestPipeline(stages).step(input);
  await Promise.all(stages.map((stage) => stage.weightCacheWritten()));
  const reports = stages.map((stage) => stage.weightCache);
  await Promise.all(stages.map((stage) => stage.close()));
  return {
    logprobs: scores.map(({ logprob }) => logprob),
    weightBytes: stages.map(({ weightBytes }) => weightBytes),
    roundings: stages.flatMap(({ roundings }) => roundings),
    report: reports.reduce<WeightCacheReport>(
      (sum, report) => ({
        hits: sum.hits + (report?.hits ?? 0),
        misses: sum.misses + (report?.misses ?? 0),
        mappedBytes: sum.mappedBytes + (report?.mappedBytes ?? 0),
        filesWritten: sum.filesWritten + (report?.filesWritten ?? 0),
        writtenBytes: sum.writtenBytes + (report?.writtenBytes ?? 0),
        warnings: [...sum.warnings, ...(report?.warnings ?? [])],
      }),
      { hits: 0, misses: 0, mappedBytes: 0, filesWritten: 0, writtenBytes: 0, warnings: [] },
    ),
  };
}

export function configs(options: StageOptions, cuts: number[] = []): StageConfig[] {
  const borders = [0, ...cuts, RANDOM.layerCount];
  return cuts.concat(0).map((_, i) => stageConfig(tensors, RANDOM, borders[i]!, borders[i + 1]!, options));
}

export const int4 = { weights: INT4, headWeights: INT8 };
export const filesIn = (directory: string) => (existsSync(directory) ? readdirSync(directory).sort() : []);
export const weightsIn = (directory: string) =>
  filesIn(directory).filter((name) => name.endsWith(".weights"));

export function expectSame(found: Run, expected: Run): void {
  expect(found.logprobs.length).toBe(expected.logprobs.length);
  expect(found.logprobs.every((value, i) => value === expected.logprobs[i])).toBe(true);
  expect(found.roundings).toEqual(expected.roundings);
}
