import { beforeAll, describe, expect, it } from "vitest";
import {
  type Answer,
  collect,
  describeShape,
  fastKernels,
  firstDifference,
  type PrecisionName,
  type Shape,
} from "../support/exactness.js";

const int4 = "int4 in groups of 64, INT8 KV";
const int8 = "int8 in groups of 128";

/** What everything else must equal: one stage, scalar kernels, whole prompts, one request and token at a time. */
const reference = (precision: PrecisionName): Shape => ({
  stages: 1,
  precision,
  kernels: "scalar",
  chunk: null,
  concurrency: 1,
  speculation: "off",
});

/**
 * With each float type every stage count, chunk size, kind of kernels and load occurs, and with rounded weights
 * and cache some of each; the full matrix and all pairs are in test/long. The variants of this machine take turns.
 */
const sampled: Shape[] = [
  { stages: 1, precision: "float32", kernels: fastKernels(0), chunk: 7, concurrency: 9 },
  { stages: 2, precision: "float32", kernels: "scalar", chunk: 1, concurrency: 9 },
  { stages: 4, precision: "float32", kernels: fastKernels(1), chunk: 16, concurrency: 1 },
  { stages: 8, precision: "float32", kernels: "best", chunk: null, concurrency: 9 },
  // Chunks of a block beside decodes, once the stages are measured, and chunks that nothing limits.
  { stages: 2, precision: "float32", kernels: fastKernels(2), chunk: null, concurrency: 9, itlTargetMs: 1 },
  {
    stages: 4,
    precision: "float32",
    kernels: fastKernels(3),
    chunk: null,
    concurrency: 9,
    itlTargetMs: 60_000,
  },
  { stages: 1, precision: "float16", kernels: "best", chunk: 16, concurrency: 9 },
  { stages: 2, precision: "float16", kernels: fastKernels(1), chunk: null, concurrency: 1 },
  { stages: 4, precision: "float16", kernels: "scalar", chunk: 1, concurrency: 9 },
  { stages: 8, precision: "float16", kernels: "scalar", chunk: 7, concurrency: 9 },
  { stages: 4, precision: int4, kernels: "best", chunk: 7, concurrency: 9 },
  { stages: 2, precision: int4, kernels: fastKernels(2), chunk: 1, concurrency: 1 },
  { stages: 2, precision: int8, kernels: "best", chunk: 16, concurrency: 9 },
];

describe.each(["float32", "float16", int4, int8] as const)(
  "tokens and logprobs in %s are the same to the last bit",
  (precision) => {
    let expected: Answer[];
    beforeAll(async () => {
      expected = await collect(reference(precision));
    });

    it("and are not the same for all requests, so that the comparison means something", () => {
      expect(new Set(expected.map((answer) => answer.tokens.join())).size).toBeGreaterThan(10);
    });

    it.each(
      sampled
        .filter((shape) => shape.precision === precision)
        .map((shape) => [describeShape(shape), shape] as const),
    )("with %s", async (_, shape) => {
      expect(firstDifference(await collect(shape), expected)).toBeNull();
    });
  },
);
