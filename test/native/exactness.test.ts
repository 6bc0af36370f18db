/**
 * Promise 1 at the level of the engine: what a sequence computes depends on nothing but its tokens.
 * Not on the cut into stages, the chunks of the prompt, its neighbours in a step, the threads, the
 * blocks it happened to get, or the kernel variant. Everything is compared with ==.
 */

import { join } from "node:path";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import {
  type DType,
  engineInfo,
  type ModelShape,
  type StepOutput,
  type TokenResult,
} from "../../native/index.js";
import {
  greedy,
  INT4,
  INT8,
  ODD,
  randomModel,
  rows,
  type StageOptions,
  seededRandom,
  type Tensors,
  TestPipeline,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const DTYPES: DType[] = ["float32", "float16", "bfloat16"];
const TOP = 5;
const DECODE_STEPS = 6;

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

function model(shape: ModelShape, dtype: DType): Tensors {
  const file = join(folder.path, `${shape.hiddenSize}-${dtype}.bin`);
  return writeTensors(file, randomModel(shape, dtype, 7), true);
}

function prompt(shape: ModelShape, length: number, seed: number): number[] {
  const random = seededRandom(seed);
  return Array.from({ length }, () => Math.floor(random() * shape.tokenCount));
}

/** What is compared: every number a client could see. */
function visible(result: TokenResult) {
  const { token, logprob, rank, finite } = result;
  return { token, logprob, rank, finite, top: [...result.topTokens], logprobs: [...result.topLogprobs] };
}

/** Prefills in chunks, scoring every prompt token, then decodes greedily. */
async function generate(pipeline: TestPipeline, ids: number[], chunk: number, blocks: number[]) {
  const results: ReturnType<typeof visible>[] = [];
  let last: StepOutput | null = null;
  for (let start = 0; start < ids.length; start += chunk) {
    const part = ids.slice(start, start + chunk);
    const input = tokenStep([rows(start, part.length, blocks)], part);
    part.forEach((_, i) => {
      const next = ids[start + i + 1];
      if (next !== undefined) input.scores.push({ row: i, token: next, topLogprobs: TOP });
    });
    input.samples = [greedy(part.length - 1, start + part.length, TOP)];
    last = await pipeline.step(input);
    results.push(...last.scores.map(visible));
  }
  let sample = last!.samples[0]!;
  results.push(visible(sample));
  for (let position = ids.length; position < ids.length + DECODE_STEPS; position++) {
    const input = tokenStep([rows(position, 1, blocks)], [sample.token]);
    input.samples = [greedy(0, position + 1, TOP)];
    sample = (await pipeline.step(input)).samples[0]!;
    results.push(visible(sample));
  }
  expect(results.every((result) => result.finite)).toBe(true);
  return results;
}

async function generateAlone(
  tensors: Tensors,
  shape: ModelShape,
  cuts: number[],
  options: StageOptions,
  chunk = 1000,
  blocks = [2, 9, 4, 0],
) {
  const pipeline = await TestPipeline.create(tensors, shape, cuts, options);
  const results = await generate(pipeline, prompt(shape, 41, 3), chunk, blocks);
  await pipeline.close();
  return results;
}

for (const dtype of DTYPES) {
  for (const [name, shape] of [
    ["odd", ODD],
    ["tiny", TINY],
  ] as [string, ModelShape][]) {
    test(`${name} ${dtype}: every cut into stages gives the same bits`, async () => {
      const tensors = model(shape, dtype);
      const whole = await generateAlone(tensors, shape, [], { dtype });
      for (const cuts of [[1], [2], [3], [1, 2], [1, 2, 3]]) {
        expect(await generateAlone(tensors, shape, cuts, { dtype }), `cuts ${cuts}`).toEqual(whole);
      }
    });

    test(`${name} ${dtype}: chunks, blocks and threads change no bit`, async () => {
      const tensors = model(shape, dtype);
      const whole = await generateAlone(tensors, shape, [], { dtype });
      for (const chunk of [1, 7, 16]) {
        const chunked = await generateAlone(tensors, shape, [2], { dtype }, chunk, [5, 1, 15, 8]);
        expect(chunked, `chunks of ${chunk}`).toEqual(whole);
      }
      for (const threads of [2, 3]) {
        expect(await generateAlone(tensors, shape, [], { dtype, threads }), `${threads} threads`).toEqual(
          whole,
        );
      }
      const wideBlocks = { dtype, blockSize: 32, blockCount: 8 };
      expect(await generateAlone(tensors, shape, [], wideBlocks, 1000, [7, 3]), "blocks of 32").toEqual(
        whole,
      );
    });

    test(`${name} ${dtype}: scalar and the best kernels give the same bits`, async () => {
      const tensors = model(shape, dtype);
      const results = [];
      for (const variant of engineInfo().available) {
        vi.stubEnv("GLM_RELAY_KERNELS", variant);
        results.push(await generateAlone(tensors, shape, [2], { dtype }));
      }
      for (const result of results) expect(result).toEqual(results[0]);
    });
  }

  test(`${dtype}: a sequence computes the same alone and among others`, async () => {
    const tensors = model(ODD, dtype);
    const alone = await generateAlone(tensors, ODD, [], { dtype });
    const ids = prompt(ODD, 41, 3);
    const pipeline = await TestPipeline.create(tensors, ODD, [1, 3], { dtype, threads: 2, maxRows: 200 });

    // Neighbours of all kinds: before and behind it, prefilling and decoding, of several lengths.
    const others = [prompt(ODD, 5, 11), prompt(ODD, 33, 12), prompt(ODD, 1, 13)];
    const tables = [[1], [3, 6, 7], [5]];
    const results: ReturnType<typeof visible>[] = [];
    const drawn: number[] = [];
    for (let step = 0; step <= DECODE_STEPS; step++) {
      const own = step === 0 ? ids : [drawn.at(-1)!];
      const start = step === 0 ? 0 : ids.length + step - 1;
      const before = others[step % 3]!;
      const behind = others[(step + 1) % 3]!;
      const firstRow = before.length;
      const input = tokenStep(
        [
          rows(0, before.length, tables[step % 3]!),
          rows(start, own.length, [2, 9, 4, 0]),
          rows(0, behind.length, tables[(step + 1) % 3]!),
        ],
        [...before, ...own, ...behind],
      );
      own.forEach((_, i) => {
        const next = ids[start + i + 1];
        if (next !== undefined) input.scores.push({ row: firstRow + i, token: next, topLogprobs: TOP });
      });
      const lastRow = firstRow + own.length - 1;
      input.samples = [greedy(0, 1, 0), greedy(lastRow, start + own.length, TOP), greedy(lastRow + 1, 1, 3)];
      const output = await pipeline.step(input);
      results.push(...output.scores.map(visible), visible(output.samples[1]!));
      drawn.push(output.samples[1]!.token);
    }
    await pipeline.close();
    expect(results).toEqual(alone);
  });
}

/** int4 and int8 weights, with and without an INT8 cache, over types, group sizes and threads: pairwise. */
const ROUNDED: [string, StageOptions][] = [
  ["int4 g32", { dtype: "float16", weights: INT4, headWeights: INT8 }],
  [
    "int4 g64, int8 KV",
    { dtype: "float32", weights: { ...INT4, groupSize: 64 }, headWeights: INT8, kvType: "int8" },
  ],
  [
    "int4 g128 absmax",
    { dtype: "bfloat16", weights: { ...INT4, groupSize: 128, scales: "absmax" }, headWeights: INT4 },
  ],
  ["int4 rows, int8 KV", { dtype: "float16", weights: { ...INT4, groupSize: 0 }, kvType: "int8" }],
  ["int8 g32, int8 KV", { dtype: "bfloat16", weights: INT8, headWeights: INT8, kvType: "int8" }],
  [
    "int8 rows absmax",
    { dtype: "float32", weights: { ...INT8, groupSize: 0, scales: "absmax" }, headWeights: INT8 },
  ],
  ["int8 KV alone", { dtype: "float16", kvType: "int8" }],
];

for (const [name, options] of ROUNDED) {
  for (const [shapeName, shape] of [
    ["odd", ODD],
    ["tiny", TINY],
  ] as [string, ModelShape][]) {
    test(`${shapeName} ${name}: cuts, chunks, blocks, threads and kernels change no bit`, async () => {
      const tensors = model(shape, options.dtype!);
      const whole = await generateAlone(tensors, shape, [], options);
      for (const cuts of [[1], [1, 2], [1, 2, 3]]) {
        expect(await generateAlone(tensors, shape, cuts, options), `cuts ${cuts}`).toEqual(whole);
      }
      for (const [chunk, threads] of [
        [1, 4],
        [7, 3],
        [16, 2],
      ] as const) {
        const chunked = await generateAlone(
          tensors,
          shape,
          [2],
          { ...options, threads },
          chunk,
          [5, 1, 15, 8],
        );
        expect(chunked, `chunks of ${chunk}, ${threads} threads`).toEqual(whole);
      }
      for (const variant of engineInfo().available) {
        vi.stubEnv("GLM_RELAY_KERNELS", variant);
        expect(await generateAlone(tensors, shape, [2], options), variant).toEqual(whole);
      }
    });
  }

  test(`${name}: a sequence computes the same alone and in a full step`, async () => {
    const tensors = model(ODD, options.dtype!);
    const ids = prompt(ODD, 41, 3);
    const pipeline = await TestPipeline.create(tensors, ODD, [1, 3], {
      ...options,
      threads: 2,
      maxRows: 200,
    });
    const alone = await generate(pipeline, ids, 1000, [2, 9, 4, 0]);
    const others = [prompt(ODD, 33, 12), prompt(ODD, 40, 13), prompt(ODD, 1, 14)];
    const input = tokenStep(
      [rows(0, 33, [1, 3, 5]), rows(0, 41, [2, 9, 4, 0]), rows(0, 40, [6, 7, 8]), rows(0, 1, [10])],
      [...others[0]!, ...ids, ...others[1]!, ...others[2]!],
    );
    input.samples = [greedy(33 + 40, 41, TOP)];
    const output = await pipeline.step(input);
    await pipeline.close();
    // 40 scored prompt tokens come before the first one drawn.
    expect(visible(output.samples[0]!)).toEqual(alone[40]);
  });
}

test("a prompt longer than a row tile gives the same bits as its chunks", async () => {
  const shape = { ...ODD, maxPositions: 320 };
  const tensors = model(shape, "float16");
  const ids = prompt(shape, 300, 21);
  const blocks = Array.from({ length: 20 }, (_, i) => 19 - i);
  const run = async (chunk: number, threads: number) => {
    const options: StageOptions = { dtype: "float16", maxRows: 300, blockCount: 20, threads };
    const pipeline = await TestPipeline.create(tensors, shape, [1], options);
    const results = await generate(pipeline, ids, chunk, blocks);
    await pipeline.close();
    return results;
  };
  const whole = await run(300, 1);
  expect(await run(300, 3)).toEqual(whole);
  expect(await run(97, 1)).toEqual(whole);
});

test("a shared prefix of blocks is as good as an own one", async () => {
  const tensors = model(ODD, "bfloat16");
  const ids = prompt(ODD, 41, 3);
  const pipeline = await TestPipeline.create(tensors, ODD, [2], { dtype: "bfloat16" });
  const own = await generate(pipeline, ids, 1000, [0, 1, 2, 3]);

  // The first two blocks are read from the sequence above, the rest is computed again elsewhere.
  const input = tokenStep([rows(32, 9, [0, 1, 8, 9])], ids.slice(32));
  input.samples = [greedy(8, 41, TOP)];
  const output = await pipeline.step(input);
  await pipeline.close();
  expect(visible(output.samples[0]!)).toEqual(own[40]);
});

test.each<[string, StageOptions]>([
  ["float32", { dtype: "float32" }],
  ["bfloat16", { dtype: "bfloat16" }],
  ["int8 KV", { dtype: "float32", kvType: "int8" }],
])("a sequence goes on behind a copied block as if it had computed it, %s", async (_, options) => {
  const tensors = model(ODD, options.dtype!);
  const ids = prompt(ODD, 41, 3);
  const whole = await generateAlone(tensors, ODD, [], options);
  const pipeline = await TestPipeline.create(tensors, ODD, [1, 3], options);
  await pipeline.step(tokenStep([rows(0, 40, [2, 9, 4])], ids.slice(0, 40)));
  // Two behind the same prompt, in one step with what another sequence puts behind it in its own block.
  const other = (ids[40]! + 1) % ODD.tokenCount;
  const [first, second] = [
    [2, 9, 7],
    [2, 9, 5],
  ];
  const step = tokenStep(
    [rows(40, 1, [2, 9, 4]), rows(40, 1, first!), rows(40, 1, second!)],
    [other, ids[40]!, ids[40]!],
  );
  step.copies = [
    { from: 4, to: 7 },
    { from: 4, to: 5 },
  ];
  step.samples = [greedy(1, 41, TOP), greedy(2, 41, TOP)];
  const drawn = (await pipeline.step(step)).samples;
  for (const [index, table] of [first!, second!].entries()) {
    let sample = drawn[index]!;
    const results = [visible(sample)];
    for (let position = 41; position < 41 + DECODE_STEPS; position++) {
      const input = tokenStep([rows(position, 1, table)], [sample.token]);
      input.samples = [greedy(0, position + 1, TOP)];
      sample = (await pipeline.step(input)).samples[0]!;
      results.push(visible(sample));
    }
    expect(results).toEqual(whole.slice(-results.length));
  }
  await pipeline.close();
});
