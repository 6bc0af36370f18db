/**
 * The layouts of the transformers package against what that package computes (make_glm4_tiny.py): random
 * models opened as directories, prefill and 8 decode steps, in one stage and in several.
 */
import { describe, expect, test } from "vitest";
import { type Model, openModel, stageTensors } from "../../checkpoint/index.js";
import { Stage, type WeightFormat } from "../../native/index.js";
import { INT4, INT8, TestPipeline } from "../native/support.js";
import { fixtureFolder, readExpected, runCases } from "./support.js";

interface Precision {
  weights?: WeightFormat;
  headWeights?: WeightFormat;
  kvType?: "float32" | "int8";
}

async function pipelineOf(model: Model, cuts: number[], precision: Precision = {}): Promise<TestPipeline> {
  const { shape } = model;
  const borders = [0, ...cuts, shape.layerCount];
  const stages = borders.slice(1).map((layerEnd, i) => {
    const layerBegin = borders[i]!;
    const range = { layerBegin, layerEnd, embed: layerBegin === 0, head: layerEnd === shape.layerCount };
    return Stage.create({
      shape,
      layerBegin,
      layerEnd,
      ...stageTensors(model, range),
      weights: precision.weights ?? null,
      headWeights: precision.headWeights ?? null,
      dtype: "float32",
      kvType: precision.kvType ?? "float32",
      blockCount: 8,
      blockSize: 16,
      maxRows: 64,
      threads: 2,
    });
  });
  return new TestPipeline(await Promise.all(stages));
}

describe.each(["glm-tiny", "glm4-tiny"])("%s", (name) => {
  const expected = readExpected(name);
  const expectedTokens = expected.cases.map((example) => example.tokens);

  test.each([[[]], [[1]], [[2, 3]], [[1, 2, 3]]])(
    "cut at %j computes every logprob within 1e-4",
    async (cuts) => {
      const model = await openModel(fixtureFolder(name));
      const { worst, tokens } = await runCases(await pipelineOf(model, cuts), expected);
      expect(worst).toBeLessThan(1e-4);
      expect(tokens).toEqual(expectedTokens);
    },
  );

  test.each([
    ["int8", { weights: INT8, headWeights: INT8 }, 0.5],
    ["int4 with an INT8 cache", { weights: INT4, headWeights: INT8, kvType: "int8" }, 5],
  ] as [string, Precision, number][])(
    "%s stays near, and is the same in every cut",
    async (_, precision, bound) => {
      const model = await openModel(fixtureFolder(name));
      const whole = await runCases(await pipelineOf(model, [], precision), expected);
      // Rounding must show, and this random model doubles every difference per layer.
      expect(whole.worst).toBeGreaterThan(1e-4);
      expect(whole.worst).toBeLessThan(bound);
      expect(await runCases(await pipelineOf(model, [1, 3], precision), expected)).toEqual(whole);
    },
  );
});
