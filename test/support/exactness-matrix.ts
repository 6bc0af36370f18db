import { expect, it } from "vitest";
import {
  type Answer,
  collect,
  describeShape,
  fastKernels,
  firstDifference,
  type PrecisionName,
  type Shape,
} from "./exactness.js";

const stageCounts = [1, 2, 4, 8];
const kernelKinds = ["scalar", "fast"] as const;
const chunks = [null, 1, 7, 16];
const loads = [1, 9] as const;

const kernelsOf = (kind: (typeof kernelKinds)[number], turn: number) =>
  kind === "scalar" ? kind : fastKernels(turn);

/**
 * Every combination of stages, kernels (scalar or faster), chunk and load, against the first of them without
 * speculation.
 */
export function exactnessMatrix(precision: PrecisionName): void {
  const shapes = stageCounts.flatMap((stages, i) =>
    kernelKinds.flatMap((kind) =>
      chunks.flatMap((chunk, j) =>
        loads.map(
          (concurrency, k): Shape => ({
            stages,
            precision,
            kernels: kernelsOf(kind, i + j + k),
            chunk,
            concurrency,
          }),
        ),
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
    kernelKinds.map(
      (kind, j): Shape => ({
        stages,
        precision,
        kernels: kernelsOf(kind, i + turn),
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
