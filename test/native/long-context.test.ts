/**
 * 131,072 positions, the longest context that a GLM is published with: rows at its end see all of them. What they see
 * is one block of keys and values many times over, so that it need not be computed first.
 */
import { join } from "node:path";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { engineInfo, type ModelShape, type StepInput } from "../../native/index.js";
import {
  ODD,
  randomModel,
  rows,
  type StageOptions,
  scoresOf,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const POSITIONS = 131_072;
const BLOCK = 16;
/** At the end; more would take long. */
const ROWS = 3;
const shape: ModelShape = { ...ODD, layerCount: 2, maxPositions: POSITIONS };
const last = POSITIONS - BLOCK;
/** Block 1 is the sequence's end, and everything before it is block 0. */
const table = [...Array.from({ length: last / BLOCK }, () => 0), 1];
const ids = Array.from({ length: BLOCK }, (_, i) => (i * 5 + 1) % shape.tokenCount);

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

function step(begin: number, count: number): StepInput {
  const at = begin % BLOCK;
  const input = tokenStep([rows(begin, count, table)], ids.slice(at, at + count));
  input.scores = Array.from({ length: count }, (_, row) => ({ row, token: 2, topLogprobs: 2 }));
  return input;
}

const kinds: [string, StageOptions][] = [
  ["float32", { dtype: "float32" }],
  ["float16, int8 KV", { dtype: "float16", kvType: "int8" }],
];

test.each(kinds)(
  "%s: rows at the end are the same in all variants, alone and together",
  async (name, kind) => {
    const tensors = writeTensors(join(folder.path, `${name}.bin`), randomModel(shape, kind.dtype!, 7), true);
    const answers = async (kernels: string, threads: number) => {
      vi.stubEnv("GLM_RELAY_KERNELS", kernels);
      expect(engineInfo().kernels).toBe(kernels);
      const options = { ...kind, threads, maxRows: BLOCK, blockCount: 2 };
      const pipeline = await TestPipeline.create(tensors, shape, [1], options);
      await pipeline.step(step(0, BLOCK));
      const together = scoresOf(await pipeline.step(step(last, ROWS)));
      const alone: typeof together = [];
      for (let row = 0; row < ROWS; row++) alone.push(...scoresOf(await pipeline.step(step(last + row, 1))));
      // The same rows one block earlier have other angles. They are written over block 0, so this comes last.
      const earlier = scoresOf(await pipeline.step(step(last - BLOCK, 1)));
      await pipeline.close();
      return { together, alone, earlier };
    };
    const wanted = await answers("scalar", 1);
    expect(wanted.together.every(([, , finite]) => finite === true)).toBe(true);
    expect(wanted.alone).toEqual(wanted.together);
    expect(wanted.earlier[0]).not.toEqual(wanted.together[0]);
    for (const kernels of engineInfo().available) {
      const got = await answers(kernels, 2);
      expect(got.together).toEqual(wanted.together);
      expect(got.alone).toEqual(wanted.together);
    }
  },
);
