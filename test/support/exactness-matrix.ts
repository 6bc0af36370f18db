/** Every combination of stages, kernels, chunk and load for one type, against the first of them. */
import { expect, it } from "vitest";
import { type Answer, collect, describeShape, firstDifference, type Shape } from "./exactness.js";

export function exactnessMatrix(dtype: Shape["dtype"]): void {
  const shapes = [1, 2, 4, 8].flatMap((stages) =>
    (["scalar", "avx2"] as const).flatMap((kernels) =>
      [null, 1, 7, 16].flatMap((chunk) =>
        ([1, 9] as const).map((concurrency): Shape => ({ stages, dtype, kernels, chunk, concurrency })),
      ),
    ),
  );
  let expected: Answer[] | null = null;
  it.each(shapes.map((shape) => [describeShape(shape), shape] as const))("%s", async (_, shape) => {
    const answers = await collect(shape);
    if (expected === null) {
      // The reference: one stage, scalar, whole prompts, alone.
      expected = answers;
      expect(new Set(answers.map((answer) => answer.tokens.join())).size).toBeGreaterThan(10);
      return;
    }
    expect(firstDifference(answers, expected)).toBeNull();
  });
}
