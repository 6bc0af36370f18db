/**
 * Whole tiny models of every dense family through the engine on an emulated GPU, against the same references as
 * on the CPU; and a row's numbers whatever the cut, the chunk and the company.
 */
import { describe, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import type { TokenResult } from "../../native/index.js";
import { INT4, INT8, rows, tokenStep } from "../native/support.js";
import { testGpu } from "../support/test-gpu.js";
import { fixtureFolder, pipelineOf, readExpected, runCases } from "./support.js";

interface Fixture {
  name: string;
  /** Also cut into three stages. */
  cut?: boolean;
  /** A prefix encoder's directory over it. */
  prefix?: string;
}

const fixtures: Fixture[] = [
  { name: "chatglm3-tiny", cut: true },
  { name: "glm-tiny" },
  { name: "glm4-tiny" },
  { name: "chatglm-6b-tiny" },
  { name: "glm-130b-tiny", cut: true },
  { name: "glm-10b-tiny" },
  { name: "glm45-tiny", cut: true },
  { name: "glm45-air-tiny" },
  { name: "chatglm3-tiny", prefix: "chatglm3-tiny-ptuning-projection" },
];

const open = ({ name, prefix }: Fixture) =>
  openModel(fixtureFolder(name), prefix === undefined ? {} : { prefixEncoder: fixtureFolder(prefix) });

describe.each(fixtures)("$name $prefix", (fixture) => {
  const expected = readExpected(fixture.prefix ?? fixture.name);
  const expectedTokens = expected.cases.map((example) => example.tokens);

  test("logprobs are within 2e-3 of the reference (relative L2), and the same in every cut", async () => {
    const model = await open(fixture);
    const device = testGpu();
    const whole = await runCases(await pipelineOf(model, expected.tokenCount, [], { device }), expected);
    expect(whole.distance).toBeLessThan(2e-3);
    // The float32 weights of these noisy models are rounded to FP16, and so are the inputs of products.
    expect(whole.worst).toBeLessThan(0.05);
    expect(whole.tokens).toEqual(expectedTokens);
    // A result as near as the CPU's would mean that the CPU computed it.
    expect(whole.worst).toBeGreaterThan(1e-3);
    if (fixture.cut !== true) return;
    const stages = await pipelineOf(model, expected.tokenCount, [1, 2], { device });
    expect(await runCases(stages, expected)).toEqual(whole);
  });
});

test.each([
  ["sm_80's instructions, weights as stored", "", {}],
  ["sm_75's instructions, int4 weights", "turing", { weights: INT4 }],
] as const)("experts, %s: a row gives the same bits alone and beside others", async (_, path, precision) => {
  const model = await openModel(fixtureFolder("glm45-tiny"));
  const { tokenCount, cases } = readExpected("glm45-tiny");
  const longest = 70;
  const prompts = cases.flatMap(({ prompt }) => prompt);
  const ids = Array.from({ length: longest }, (_, i) => prompts[(i * 5) % prompts.length]!);
  const step = (begin: number, end: number) => {
    const input = tokenStep([rows(begin, end - begin, [3, 0, 7, 5, 1])], ids.slice(begin, end));
    input.scores = ids.slice(begin, end).map((_, row) => ({ row, token: 5, topLogprobs: 3 }));
    return input;
  };
  const pipeline = await pipelineOf(model, tokenCount, [], { ...precision, device: testGpu(path) });
  const alone: TokenResult[] = [];
  for (let row = 0; row < longest; row++) alone.push(...(await pipeline.step(step(row, row + 1))).scores);
  // Each of them has other tiles of experts' rows; and more than 32 rows are chosen for by more than one block.
  for (const count of [6, 20, 40, longest]) {
    expect((await pipeline.step(step(0, count))).scores, `${count} rows`).toEqual(alone.slice(0, count));
  }
  await pipeline.close();
});

test.each([
  ["sm_80's instructions, int8 weights", "", { weights: INT8, headWeights: INT8 }, 0.03],
  ["sm_75's instructions, int8 weights", "turing", { weights: INT8, headWeights: INT8 }, 0.03],
  [
    "sm_80's instructions, int4 weights, an INT8 cache",
    "",
    { weights: INT4, headWeights: INT8, kvType: "int8" as const },
    0.2,
  ],
  [
    "sm_75's instructions, int4 weights, an INT8 cache",
    "turing",
    { weights: INT4, headWeights: INT8, kvType: "int8" as const },
    0.2,
  ],
] as const)("%s: rounded layers stay near", async (_, path, precision, bound) => {
  const model = await openModel(fixtureFolder("chatglm3-tiny"));
  const expected = readExpected("chatglm3-tiny");
  const run = await pipelineOf(model, expected.tokenCount, [2], { ...precision, device: testGpu(path) });
  const { worst, distance } = await runCases(run, expected);
  expect(worst).toBeGreaterThan(1e-4);
  expect(distance).toBeLessThan(bound);
});
