import { expect, it } from "vitest";
import {
  type Answer,
  collect,
  describeShape,
  firstDifference,
  type PrecisionName,
  type Shape,
} from "./exactness.js";

const stageCounts = [1, 2, 4, 8];
const kernelVariants = ["scalar", "avx2"] as const;
const chunks = [null, 1, 7, 16];
const loads = [1, 9] as const;

/** Every combination of stages, kernels, chunk and load, against the first of them without speculation. */
export function exactnessMatrix(precision: PrecisionName): void {
  const shapes = stageCounts.flatMap((stages) =>
    kernelVariants.flatMap((kernels) =>
      chunks.flatMap((chunk) =>
        loads.map((concurrency): Shape => ({ stages, precision, kernels, chunk, concurrency })),
      ),
    ),
  );
  compareAll([{ ...shapes[0]!, speculation: "off" }, ...shapes]);
}

/**
 * One stage with scalar kernels, and then so many shapes that every stage count, variant, chunk and load
 * meets this precision, and over several precisions (`turn` = 0, 1, ...) every stage count every chunk.
 */
export function exactnessPairs(precision: PrecisionName, turn: number): void {
  const pairs = stageCounts.flatMap((stages, i) =>
    kernelVariants.map(
      (kernels, j): Shape => ({
        stages,
        precision,
        kernels,
        chunk: chunks[(i + 2 * j + turn) % chunks.length]!,
        concurrency: loads[(i + j + turn) % loads.length]!,
      }),
    ),
  );
  const plain: Shape = { stages: 1, precision, kernels: "scalar", chunk: null, concurrency: 1 };
  compareAll([{ ...plain, speculation: "off" }, ...pairs]);
}

/** The first shape gives what all others must give. */
function compareAll(shapes: Shape[]): void {
  let expected: Answer[] | null = null;
  it.each(shapes.map((shape) => [describeShape(shape), shape] as const))("%s", async (_, shape) => {
    const answers = await collect(shape);
    if (expected === null) {
      expected = answers;
      expect(new Set(answers.map((answer) => answer.tokens.join())).size).toBeGreaterThan(10);
      return;
    }
    expect(firstDifference(answers, expected)).toBeNull();
  });
}
