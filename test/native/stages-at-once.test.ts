/**
 * Stages of one process that load, compute and close at the same time, with 1 to 4 threads each and one weight
 * cache for all: each gives what it gives alone. The thread sanitizer watches these, too (test/long).
 */
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openModel, stageTensors } from "../../checkpoint/index.js";
import { packageRoot } from "../../common/package.js";
import {
  type ModelShape,
  Stage,
  type StageConfig,
  type WeightCacheOptions,
  type WeightFormat,
} from "../../native/index.js";
import { greedy, INT4, INT8, rows, TestPipeline, temporaryFolder, tokenStep } from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);

const threadCounts = [1, 2, 3, 4];
/** Prompts of several lengths around tiles of rows and keys, then rows of all of them together. */
const promptLengths = [1, 17, 40];
const decodeSteps = 5;
const lookMs = 2;

async function readModel(fixture: string) {
  const model = await openModel(join(packageRoot, "test/golden/fixtures", fixture));
  const { shape } = model;
  const configs = (weights: WeightFormat | null, threads: number): StageConfig[] =>
    [
      [0, 1],
      [1, shape.layerCount],
    ].map(([layerBegin, layerEnd]) => ({
      shape,
      layerBegin: layerBegin!,
      layerEnd: layerEnd!,
      ...stageTensors(model, {
        layerBegin: layerBegin!,
        layerEnd: layerEnd!,
        embed: layerBegin === 0,
        head: layerEnd === shape.layerCount,
      }),
      weights,
      headWeights: weights && INT8,
      dtype: "float16",
      kvType: weights === null ? "float16" : "int8",
      blockCount: 16,
      blockSize: 16,
      maxRows: 128,
      contextRows: 0,
      threads,
    }));
  return { shape, configs };
}

/** Every number a client could see of three sequences. */
async function generate(pipeline: TestPipeline, shape: ModelShape): Promise<unknown[]> {
  const tables = promptLengths.map((_, i) => [4 * i, 4 * i + 1, 4 * i + 2]);
  const prompts = promptLengths.map((length, i) =>
    Array.from({ length }, (_, token) => (7 * token + 11 * i) % shape.tokenCount),
  );
  const results: unknown[] = [];
  let positions = promptLengths;
  let step = tokenStep(
    prompts.map((prompt, i) => rows(0, prompt.length, tables[i]!)),
    prompts.flat(),
  );
  let lastRow = -1;
  step.samples = positions.map((length) => {
    lastRow += length;
    return greedy(lastRow, length, 3);
  });
  for (let count = 0; ; count++) {
    const { samples } = await pipeline.step(step);
    results.push(samples);
    if (count === decodeSteps) return results;
    step = tokenStep(
      positions.map((position, i) => rows(position, 1, tables[i]!)),
      samples.map(({ token }) => token),
    );
    positions = positions.map((position) => position + 1);
    step.samples = positions.map((position, row) => greedy(row, position, 3));
  }
}

async function load(configs: StageConfig[], cache: WeightCacheOptions | null): Promise<TestPipeline> {
  return new TestPipeline(await Promise.all(configs.map((config) => Stage.create(config, undefined, cache))));
}

test.each<[string, string, WeightFormat | null]>([
  ["dense, as stored", "chatglm3-tiny", null],
  ["dense, int4 through the cache", "chatglm3-tiny", INT4],
  ["experts, as stored", "glm45-tiny", null],
  ["experts, int8 through the cache", "glm45-tiny", INT8],
])("%s", async (name, fixture, weights) => {
  const { shape, configs } = await readModel(fixture);
  const alone = await load(configs(weights, 1), null);
  const expected = await generate(alone, shape);
  await alone.close();

  const cache = { directory: join(folder.path, name), maxBytes: 2 ** 30, fingerprint: "abc" };
  const running: Stage[] = [];
  // As the worker's timer does for its heartbeats, while other threads compute.
  const looks = setInterval(() => running.map((stage) => [stage.progress(), stage.weightCache]), lookMs);
  // Those of the second round find some of the files, or what is becoming one.
  for (let round = 0; round < 2; round++) {
    await Promise.all(
      threadCounts.map(async (threads) => {
        const pipeline = await load(configs(weights, threads), cache);
        running.push(...pipeline.stages);
        expect(await generate(pipeline, shape), `${threads} threads, round ${round}`).toEqual(expected);
        await pipeline.close();
      }),
    );
  }
  clearInterval(looks);
  const reports = running.map((stage) => stage.weightCache!);
  expect(reports.flatMap(({ warnings }) => warnings)).toEqual([]);
  expect(reports.some(({ hits }) => hits > 0)).toBe(weights !== null);
});
