import { beforeAll, describe, expect, it } from "vitest";
import { type Answer, collect, describeShape, firstDifference, type Shape } from "../support/exactness.js";

/** What everything else must equal: one stage, scalar kernels, whole prompts, one request at a time. */
const reference = (dtype: Shape["dtype"]): Shape => ({
  stages: 1,
  dtype,
  kernels: "scalar",
  chunk: null,
  concurrency: 1,
});

/** With each type every stage count, chunk size, kernel and load occurs; the full matrix is in test/long. */
const sampled: Shape[] = [
  { stages: 1, dtype: "float32", kernels: "avx2", chunk: 7, concurrency: 9 },
  { stages: 2, dtype: "float32", kernels: "scalar", chunk: 1, concurrency: 9 },
  { stages: 4, dtype: "float32", kernels: "avx2", chunk: 16, concurrency: 1 },
  { stages: 8, dtype: "float32", kernels: "avx2", chunk: null, concurrency: 9 },
  { stages: 1, dtype: "float16", kernels: "avx2", chunk: 16, concurrency: 9 },
  { stages: 2, dtype: "float16", kernels: "avx2", chunk: null, concurrency: 1 },
  { stages: 4, dtype: "float16", kernels: "scalar", chunk: 7, concurrency: 9 },
  { stages: 8, dtype: "float16", kernels: "scalar", chunk: 1, concurrency: 1 },
];

describe.each(["float32", "float16"] as const)(
  "tokens and logprobs in %s are the same to the last bit",
  (dtype) => {
    let expected: Answer[];
    beforeAll(async () => {
      expected = await collect(reference(dtype));
    });

    it("and are not the same for all requests, so that the comparison means something", () => {
      expect(new Set(expected.map((answer) => answer.tokens.join())).size).toBeGreaterThan(10);
    });

    it.each(
      sampled.filter((shape) => shape.dtype === dtype).map((shape) => [describeShape(shape), shape] as const),
    )("with %s", async (_, shape) => {
      expect(firstDifference(await collect(shape), expected)).toBeNull();
    });
  },
);
