import { describe, expect, it } from "vitest";
import { type Answer, collect, describeShape, firstDifference, type Shape } from "../support/exactness.js";

const shapes = (["float32", "float16"] as const).flatMap((dtype) =>
  [1, 2, 4, 8].flatMap((stages) =>
    (["scalar", "avx2"] as const).flatMap((kernels) =>
      [null, 1, 7, 16].flatMap((chunk) =>
        ([1, 9] as const).map((concurrency): Shape => ({ stages, dtype, kernels, chunk, concurrency })),
      ),
    ),
  ),
);

describe("the full matrix of exactness", () => {
  const expected = new Map<string, Answer[]>();
  it.each(shapes.map((shape) => [describeShape(shape), shape] as const))("%s", async (_, shape) => {
    const answers = await collect(shape);
    const first = expected.get(shape.dtype);
    if (first === undefined) {
      // The first shape of each type is the reference: one stage, scalar, whole prompts, alone.
      expected.set(shape.dtype, answers);
      expect(new Set(answers.map((answer) => answer.tokens.join())).size).toBeGreaterThan(10);
      return;
    }
    expect(firstDifference(answers, first)).toBeNull();
  });
});
