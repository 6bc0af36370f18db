/**
 * On a GPU (emulated) a row's numbers do not depend on how many rows share its step, on chunks, or on the cut into
 * stages: compared with == to single rows in one stage.
 */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ModelShape, Stage, type StepInput } from "../../native/index.js";
import { testGpu } from "../support/test-gpu.js";
import {
  INT4,
  INT8,
  ODD,
  randomModel,
  rows,
  type StageOptions,
  scoresOf,
  seededRandom,
  stageConfig,
  type Tensors,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const LONGEST = 40;
const shape: ModelShape = { ...ODD, layerCount: 2, maxPositions: LONGEST };
const blocks = [2, 0, 4];
const random = seededRandom(41);
const ids = Array.from({ length: LONGEST }, () => Math.floor(random() * shape.tokenCount));

const folder = temporaryFolder();
afterAll(folder.remove);

/** Rows [begin, end) of the sequence, each asked how likely it finds the token 5, and for its best three. */
function step(begin: number, end: number): StepInput {
  const input = tokenStep([rows(begin, end - begin, blocks)], ids.slice(begin, end));
  input.scores = Array.from({ length: end - begin }, (_, row) => ({ row, token: 5, topLogprobs: 3 }));
  return input;
}

const kinds: [string, "" | "turing", StageOptions][] = [
  ["bfloat16", "", { dtype: "bfloat16" }],
  ["int4, int8 KV", "", { dtype: "float16", weights: INT4, headWeights: INT8, kvType: "int8" }],
  ["int8 in whole rows, sm_75", "turing", { dtype: "float16", weights: { ...INT8, groupSize: 0 } }],
];

describe.each(kinds)("%s", (name, path, kind) => {
  let tensors: Tensors;
  let single: ReturnType<typeof scoresOf>;

  /** The pipeline on the GPU. */
  async function pipeline(cuts: number[]): Promise<TestPipeline> {
    const borders = [0, ...cuts, shape.layerCount];
    const stages = borders.slice(1).map((end, i) => {
      const options = { ...kind, maxRows: LONGEST + 2, blockCount: 8 };
      return Stage.create(
        stageConfig(tensors, shape, borders[i]!, end, options),
        undefined,
        null,
        testGpu(path),
      );
    });
    return new TestPipeline(await Promise.all(stages));
  }

  beforeAll(async () => {
    tensors = writeTensors(join(folder.path, `${name}.bin`), randomModel(shape, kind.dtype!, 7), true);
    const alone = await pipeline([]);
    single = [];
    for (let row = 0; row < LONGEST; row++) single.push(...scoresOf(await alone.step(step(row, row + 1))));
    await alone.close();
    expect(single.every(([, , finite]) => finite)).toBe(true);
  });

  test("steps of 2 to 40 rows, in two stages, give the bits of single rows", async () => {
    const together = await pipeline([1]);
    expect(together.stages.every(({ kernels }) => kernels.startsWith("cuda-sm_"))).toBe(true);
    for (const count of [2, 15, 17, 33, LONGEST]) {
      expect(scoresOf(await together.step(step(0, count))), `${count} rows`).toEqual(single.slice(0, count));
    }
    await together.close();
  });

  test("a row gives the same bits beside another sequence, behind any chunk", async () => {
    const company = await pipeline([1]);
    const chunks = [0, 7, 23, LONGEST];
    for (const [i, begin] of chunks.slice(0, -1).entries()) {
      const end = chunks[i + 1]!;
      const beside = rows(0, 2, [7]);
      const input = tokenStep([beside, rows(begin, end - begin, blocks)], [1, 2, ...ids.slice(begin, end)]);
      input.scores = step(begin, end).scores.map((score) => ({ ...score, row: score.row + 2 }));
      expect(scoresOf(await company.step(input)), `rows ${begin} to ${end}`).toEqual(
        single.slice(begin, end),
      );
    }
    await company.close();
  });
});
