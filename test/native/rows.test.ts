/**
 * A row's result does not depend on how many rows share its step, nor on the threads: steps of 1 to 70 rows
 * (every remainder of every tile of rows) and of 512, by 1 to 4 threads, against single rows by scalar.
 */
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { engineInfo, type ModelShape, type StepInput } from "../../native/index.js";
import {
  INT4,
  INT8,
  ODD,
  randomModel,
  rows,
  type StageOptions,
  scoresOf,
  seededRandom,
  type Tensors,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const LONGEST = 512;
const shape: ModelShape = { ...ODD, layerCount: 2, maxPositions: LONGEST };
const blocks = Array.from({ length: LONGEST / 16 }, (_, i) => (i * 7 + 3) % (LONGEST / 16));
const random = seededRandom(41);
const ids = Array.from({ length: LONGEST }, () => Math.floor(random() * shape.tokenCount));

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

/** Rows [begin, end) of the sequence, each asked how likely it finds the token 5, and for its best three. */
function step(begin: number, end: number): StepInput {
  const input = tokenStep([rows(begin, end - begin, blocks)], ids.slice(begin, end));
  input.scores = Array.from({ length: end - begin }, (_, row) => ({ row, token: 5, topLogprobs: 3 }));
  return input;
}

const kinds: [string, StageOptions][] = [
  ["float32", { dtype: "float32" }],
  ["float16", { dtype: "float16" }],
  ["bfloat16", { dtype: "bfloat16" }],
  ["int4, int8 KV", { dtype: "float16", weights: INT4, headWeights: INT8, kvType: "int8" }],
  ["int8 in whole rows", { dtype: "float32", weights: { ...INT8, groupSize: 0 }, headWeights: INT8 }],
];

describe.each(kinds)("%s", (name, kind) => {
  let tensors: Tensors;
  let single: ReturnType<typeof scoresOf>;

  const pipeline = (threads: number) =>
    TestPipeline.create(tensors, shape, [1], {
      ...kind,
      threads,
      maxRows: LONGEST,
      blockCount: blocks.length,
    });

  beforeAll(async () => {
    tensors = writeTensors(join(folder.path, `${name}.bin`), randomModel(shape, kind.dtype!, 7), true);
    vi.stubEnv("GLM_RELAY_KERNELS", "scalar");
    const scalar = await pipeline(1);
    single = [];
    for (let row = 0; row < LONGEST; row++) single.push(...scoresOf(await scalar.step(step(row, row + 1))));
    await scalar.close();
    vi.unstubAllEnvs();
    expect(single.every(([, , finite]) => finite)).toBe(true);
  });

  test.each(engineInfo().available)(
    "%s gives the bits of single rows, whatever the rows and threads",
    async (variant) => {
      vi.stubEnv("GLM_RELAY_KERNELS", variant);
      for (const threads of [1, 2, 3, 4]) {
        const together = await pipeline(threads);
        expect(together.stages.map(({ kernels }) => kernels)).toEqual([variant, variant]);
        for (const count of [...Array.from({ length: 70 }, (_, i) => i + 1), LONGEST]) {
          const got = scoresOf(await together.step(step(0, count)));
          expect(got, `${count} rows, ${threads} threads`).toEqual(single.slice(0, count));
        }
        await together.close();
      }
    },
    120_000,
  );
});
