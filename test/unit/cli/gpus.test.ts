import fc from "fast-check";
import { expect, it } from "vitest";
import { assignGpus, devices } from "../../../cli/gpus.js";

const GiB = 2 ** 30;
const gpu = (index: number, freeBytes = 20 * GiB, computeCapability = "8.6") => ({
  index,
  name: `card ${index}`,
  computeCapability,
  freeBytes,
});
const namesOf = (assigned: { device: string }[]) => assigned.map(({ device }) => device);

it("takes auto, cpu, cuda and cuda:N", () => {
  for (const text of ["auto", "cpu", "cuda", "cuda:0", "cuda:15"]) expect(devices(text)).toBe(text);
  for (const text of ["", "gpu", "cuda:", "cuda:x", "CUDA", "cuda:1234"])
    expect(() => devices(text)).toThrow("Expected auto, cpu, cuda or cuda:N, for example cuda:0.");
});

it("gives worker i the GPU i modulo their number", () => {
  expect(namesOf(assignGpus("cuda", [gpu(0), gpu(1), gpu(2)], 4))).toEqual([
    "cuda:0",
    "cuda:1",
    "cuda:2",
    "cuda:0",
  ]);
  expect(namesOf(assignGpus("cuda:5", [gpu(5)], 2))).toEqual(["cuda:5", "cuda:5"]);
  expect(namesOf(assignGpus("auto", [gpu(0), gpu(1)], 1))).toEqual(["cuda:0"]);
});

it("shares a GPU's memory among its workers, and never offers more than 90 % of what is free", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 12 * GiB, max: 200 * GiB }), { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 1, max: 20 }),
      (free, workers) => {
        const gpus = free.map((bytes, index) => gpu(index, bytes));
        const assigned = assignGpus("cuda", gpus, workers);
        expect(assigned).toHaveLength(workers);
        for (const { index, freeBytes } of gpus) {
          const own = assigned.filter(({ device }) => device === `cuda:${index}`);
          if (own.length === 0) continue;
          // Each further process has a context of its own.
          const context = (own.length - 1) * 512 * 2 ** 20;
          const sum = own.reduce((bytes, { memoryBytes }) => bytes + memoryBytes, 0);
          expect(sum).toBeLessThanOrEqual(0.9 * (freeBytes - context));
          expect(sum).toBeGreaterThan(0.9 * (freeBytes - context) - own.length);
          expect(new Set(own.map(({ memoryBytes }) => memoryBytes)).size).toBe(1);
        }
      },
    ),
  );
});

it("offers what it is told instead, also where that is more than is free", () => {
  expect(assignGpus("cuda", [gpu(0, GiB)], 3, 5 * GiB).map(({ memoryBytes }) => memoryBytes)).toEqual(
    [5, 5, 5].map((count) => count * GiB),
  );
});

it("refuses GPUs that compute different bits, unless only equal ones are used", () => {
  const mixed = [gpu(0), gpu(1), gpu(2, 20 * GiB, "8.9")];
  expect(() => assignGpus("cuda", mixed, 3)).toThrow(
    "option '--device <device>' value 'cuda': GPU 0 has compute capability 8.6, GPU 2 has 8.9, and a pipeline wants " +
      "one: choose a GPU with cuda:N",
  );
  expect(namesOf(assignGpus("cuda", mixed, 2))).toEqual(["cuda:0", "cuda:1"]);
});

it("refuses a GPU that has no room for the processes alone", () => {
  expect(() => assignGpus("cuda:0", [gpu(0, GiB)], 3)).toThrow(
    "option '--device <device>' value 'cuda:0': GPU 0 has 1073741824 bytes free, too few for 3 workers",
  );
});
