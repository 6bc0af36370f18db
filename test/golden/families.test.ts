/**
 * Every family against its reference: random models opened as directories, prefill and 8 decode steps, in one
 * stage and in several. The references are the transformers package (glm, glm4, glm4_moe) and NumPy written
 * from the authors' formulas (the scripts beside this file).
 */
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { type TensorData, writeSafetensors } from "../../checkpoint/safetensors-writer.js";
import { INT4, INT8 } from "../native/support.js";
import { fixtureFolder, pipelineOf, readExpected, runCases } from "./support.js";

interface Fixture {
  name: string;
  /** A prefix encoder's directory over it. */
  prefix?: string;
  /** Whose expected values are this one's. */
  as?: string;
}

const fixtures: Fixture[] = [
  { name: "glm-tiny" },
  { name: "glm4-tiny" },
  { name: "glm45-tiny" },
  { name: "glm45-air-tiny" },
  { name: "chatglm-6b-tiny" },
  { name: "glm-130b-tiny" },
  { name: "glm-130b-tiny-shards", as: "glm-130b-tiny" },
  { name: "glm-10b-tiny" },
  { name: "glm-10b-tiny-shards", as: "glm-10b-tiny" },
  { name: "chatglm-6b-tiny", prefix: "chatglm-6b-tiny-ptuning" },
  { name: "chatglm-6b-tiny", prefix: "chatglm-6b-tiny-ptuning-projection" },
  { name: "chatglm3-tiny", prefix: "chatglm3-tiny-ptuning" },
  { name: "chatglm3-tiny", prefix: "chatglm3-tiny-ptuning-projection" },
];

const open = ({ name, prefix }: Fixture) =>
  openModel(fixtureFolder(name), prefix === undefined ? {} : { prefixEncoder: fixtureFolder(prefix) });

/** Experts are chosen by scores that rounded layers move: those models are looked at with the choice fixed. */
const rounded = fixtures.filter(({ name }) => !name.startsWith("glm45"));

describe.each(fixtures)("$name $prefix", (fixture) => {
  const expected = readExpected(fixture.prefix ?? fixture.as ?? fixture.name);
  const expectedTokens = expected.cases.map((example) => example.tokens);

  test.each([[[]], [[1]], [[2]], [[1, 2]]])("cut at %j computes every logprob within 1e-4", async (cuts) => {
    const { worst, tokens } = await runCases(
      await pipelineOf(await open(fixture), expected.tokenCount, cuts),
      expected,
    );
    expect(worst).toBeLessThan(1e-4);
    expect(tokens).toEqual(expectedTokens);
  });
});

describe.each(rounded)("$name $prefix", (fixture) => {
  const expected = readExpected(fixture.prefix ?? fixture.as ?? fixture.name);

  test.each([
    ["int8", { weights: INT8, headWeights: INT8 }, 0.03],
    ["int4 with an INT8 cache", { weights: INT4, headWeights: INT8, kvType: "int8" as const }, 0.2],
  ] as const)("%s stays near, and is the same in every cut", async (_, precision, bound) => {
    const model = await open(fixture);
    const whole = await runCases(await pipelineOf(model, expected.tokenCount, [], precision), expected);
    // Rounding must show; random models amplify every difference from layer to layer.
    expect(whole.worst).toBeGreaterThan(1e-4);
    expect(whole.distance).toBeLessThan(bound);
    expect(await runCases(await pipelineOf(model, expected.tokenCount, [1, 2], precision), expected)).toEqual(
      whole,
    );
  });
});

/** The model with router biases that decide the choice: the same experts whatever the layers before gave. */
async function withFixedChoice(name: string): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-test-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  cpSync(join(fixtureFolder(name), "config.json"), join(directory, "config.json"));
  const model = await openModel(fixtureFolder(name));
  const list = [...model.tensors.values()].map((tensor): TensorData => {
    const { byteOffset, byteLength, dtype, shape } = tensor;
    const data = readFileSync(tensor.file).subarray(byteOffset, byteOffset + byteLength);
    if (!tensor.name.endsWith("e_score_correction_bias")) return { name: tensor.name, dtype, shape, data };
    // Scores are below one.
    const bias = Float32Array.from({ length: shape[0]! }, (_, expert) =>
      expert % 3 === 1 ? 10 - expert : 0,
    );
    return { name: tensor.name, dtype, shape, data: new Uint8Array(bias.buffer) };
  });
  await writeSafetensors(join(directory, "model.safetensors"), list);
  return directory;
}

describe.each(["glm45-tiny", "glm45-air-tiny"])("%s with a fixed choice of experts", (name) => {
  test.each([
    ["int8", { weights: INT8, headWeights: INT8 }, 0.03],
    ["int4 with an INT8 cache", { weights: INT4, headWeights: INT8, kvType: "int8" as const }, 0.2],
  ] as const)("%s stays near float32, and is the same in every cut", async (_, precision, bound) => {
    const expected = readExpected(name);
    const model = await openModel(await withFixedChoice(name));
    const run = async (cuts: number[], rounding = {}) =>
      runCases(await pipelineOf(model, expected.tokenCount, cuts, rounding), expected);
    const [plain, whole] = [await run([]), await run([], precision)];
    const squares = (values: number[]) => values.reduce((sum, value) => sum + value ** 2, 0);
    const difference = squares(plain.logprobs.map((value, i) => value - whole.logprobs[i]!));
    const distance = Math.sqrt(difference / squares(plain.logprobs));
    expect(distance).toBeGreaterThan(1e-5);
    expect(distance).toBeLessThan(bound);
    expect(await run([1, 3], precision)).toEqual(whole);
  });
});
