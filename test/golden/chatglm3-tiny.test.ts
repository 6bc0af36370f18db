/**
 * The engine against an independent float64 implementation (make_chatglm3_tiny.py): a random ChatGLM3
 * of 4 layers, prefill and 8 decode steps, in one stage and in several; and the same weights as those of
 * the other families of this network, found by their cards.
 */

import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { weightType } from "../../checkpoint/tensors.js";
import { plainForm } from "../../models/shape.js";
import type { DType, ModelShape } from "../../native/index.js";
import {
  readSafetensors,
  type Tensors,
  TestPipeline,
  temporaryFolder,
  writeTensors,
} from "../native/support.js";
import { type Expected, fixtureFolder, readExpected, runCases } from "./support.js";

const FIXTURE = fixtureFolder("chatglm3-tiny");
const expected = readExpected("chatglm3-tiny");

interface Family extends Pick<Expected, "cases"> {
  config: Record<string, unknown>;
}

const families = JSON.parse(readFileSync(join(FIXTURE, "families.json"), "utf8")) as Family[];
const config = JSON.parse(readFileSync(join(FIXTURE, "config.json"), "utf8")) as Record<string, number>;
const tensors = readSafetensors(join(FIXTURE, "model.safetensors"));

const shape: ModelShape = {
  hiddenSize: config.hidden_size!,
  layerCount: config.num_layers!,
  headCount: config.num_attention_heads!,
  kvHeadCount: config.multi_query_group_num!,
  headDim: config.kv_channels!,
  ffnSize: config.ffn_hidden_size!,
  vocabSize: config.padded_vocab_size!,
  tokenCount: expected.tokenCount,
  ropeDim: config.kv_channels! / 2,
  ropeBase: 10000,
  ropePositionDivisor: 1,
  normEps: config.layernorm_epsilon!,
  maxPositions: config.seq_length!,
  form: plainForm,
  experts: null,
};

const folder = temporaryFolder();
afterAll(folder.remove);

/** The same weights in another storage type. */
function converted(dtype: DType): Tensors {
  const bytes = readFileSync(join(FIXTURE, "model.safetensors"));
  const list = [...tensors].map(([name, source]) => {
    const values = new Float32Array(source.byteLength / 4);
    for (let i = 0; i < values.length; i++) values[i] = bytes.readFloatLE(source.byteOffset + 4 * i);
    return { name, dtype, shape: source.shape, values };
  });
  return writeTensors(join(folder.path, `${dtype}.bin`), list);
}

const expectedTokens = expected.cases.map((example) => example.tokens);

for (const [name, cuts] of [
  ["one stage", []],
  ["two stages", [1]],
  ["three stages", [2, 3]],
] as [string, number[]][]) {
  test(`${name} compute every logprob of the float64 reference within 1e-4`, async () => {
    const { worst, tokens } = await runCases(
      await TestPipeline.create(tensors, shape, cuts, { threads: 2 }),
      expected,
    );
    expect(worst).toBeLessThan(1e-4);
    expect(tokens).toEqual(expectedTokens);
  });
}

test("the same weights as torch.save wrote them compute the same tokens and logprobs to the bit", async () => {
  const { tensors: entries } = await openModel(fixtureFolder("chatglm3-tiny-torch"));
  const torch: Tensors = new Map();
  for (const [name, entry] of entries) torch.set(name, { ...entry, dtype: weightType(entry) });
  expect(new Set([...torch.values()].map(({ file }) => basename(file)))).toEqual(
    new Set(["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
  );
  const [plain, pickled] = [
    await runCases(await TestPipeline.create(tensors, shape, [2]), expected),
    await runCases(await TestPipeline.create(torch, shape, [2]), expected),
  ];
  expect(pickled).toEqual(plain);
  expect(pickled.tokens).toEqual(expectedTokens);
  expect(pickled.logprobs.length).toBeGreaterThan(2 * 9 * shape.tokenCount);
});

for (const { config: changed, cases } of families) {
  test(`${changed._name_or_path} computes every logprob of the float64 reference within 1e-4`, async () => {
    const directory = join(folder.path, String(changed._name_or_path).replace("/", "-"));
    mkdirSync(directory);
    copyFileSync(join(FIXTURE, "model.safetensors"), join(directory, "model.safetensors"));
    writeFileSync(join(directory, "config.json"), JSON.stringify({ ...config, ...changed }));
    const opened = await openModel(directory);
    const own = { ...opened.shape, tokenCount: expected.tokenCount };
    const reference = { tokenCount: expected.tokenCount, cases };
    const { worst, tokens } = await runCases(await TestPipeline.create(tensors, own, [2]), reference);
    expect(worst).toBeLessThan(1e-4);
    expect(tokens).toEqual(cases.map((example) => example.tokens));
    const asChatglm3 = await runCases(await TestPipeline.create(tensors, shape, [2]), reference);
    expect(asChatglm3.worst).toBeGreaterThan(100 * worst);
  });
}

// Rounding weights and residual to 11 or 8 bits moves logprobs of this noisy random model; the bounds
// only show that the types are read and written rightly.
for (const [dtype, bound] of [
  ["float16", 0.05],
  ["bfloat16", 0.4],
] as [DType, number][]) {
  test(`weights and residual in ${dtype} stay within ${bound} of the float64 reference`, async () => {
    const { worst } = await runCases(
      await TestPipeline.create(converted(dtype), shape, [2], { dtype }),
      expected,
    );
    expect(worst).toBeLessThan(bound);
    expect(worst).toBeGreaterThan(1e-4);
  });
}
