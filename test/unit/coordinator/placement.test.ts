import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { type PlacementModel, place } from "../../../coordinator/placement/placement.js";

const MB = 1_000_000;
const model = (layers: number): PlacementModel => ({
  layerBytes: Array.from({ length: layers }, () => 10 * MB),
  embeddingBytes: 5 * MB,
  headBytes: 5 * MB,
  layerKvBytesPerToken: 1_000,
  workspace: { stage: MB, perThread: 0, first: 0, last: MB, lastPerThread: 0 },
  processBytes: 0,
});
const limits = { blockSize: 16, minBlocks: 4, maxBlocks: 1_000 };
const workers = (...memory: number[]) =>
  memory.map((bytes, index) => ({ id: `w${index}`, memoryBytes: bytes * MB, threads: 1 }));
const counts = (stages: { layerBegin: number; layerEnd: number }[]) =>
  stages.map(({ layerBegin, layerEnd }) => layerEnd - layerBegin);

describe("placement", () => {
  it("cuts evenly between equal workers", () => {
    expect(counts(place(model(8), workers(100, 100, 100, 100), limits).stages)).toEqual([2, 2, 2, 2]);
  });

  it("gives layers in proportion to the memory offered", () => {
    expect(counts(place(model(12), workers(220, 112, 113), limits).stages)).toEqual([6, 3, 3]);
  });

  it("counts embedding, head, workspace and the KV blocks that fit everywhere", () => {
    const { stages, blockCount } = place(model(2), workers(100, 60), limits);
    expect(stages.map((stage) => stage.weightBytes)).toEqual([15 * MB, 15 * MB]);
    // Worker 1 has 60 - 5 (head) - 2 (workspace, logits) - 10 (layer) MB for blocks of 16,000 bytes.
    expect(blockCount).toBe(1_000);
    expect(place(model(2), workers(100, 60), { ...limits, maxBlocks: 1e9 }).blockCount).toBe(
      Math.floor((43 * MB) / 16_000),
    );
  });

  it("counts threads, both ends and the process itself, and plans the KV cache that is left", () => {
    const heavy: PlacementModel = {
      ...model(2),
      workspace: { stage: MB, perThread: 2 * MB, first: 3 * MB, last: 4 * MB, lastPerThread: 5 * MB },
      processBytes: 7 * MB,
    };
    const offered = workers(100, 100).map((worker) => ({ ...worker, threads: 2 }));
    const { stages, blockCount } = place(heavy, offered, { ...limits, maxBlocks: 1e9 });
    expect(stages.map((stage) => stage.workspaceBytes)).toEqual([8 * MB, 19 * MB]);
    expect(stages.map((stage) => stage.processBytes)).toEqual([7 * MB, 7 * MB]);
    expect(blockCount).toBe(Math.floor(((100 - 15 - 19 - 7) * MB) / 16_000));
    expect(stages.map((stage) => stage.kvBytes)).toEqual([blockCount * 16_000, blockCount * 16_000]);
  });

  it("names the numbers when there are more stages than layers", () => {
    expect(() => place(model(2), workers(100, 100, 100), limits)).toThrow(/3 stages asked for.* 2 layers/);
  });

  it("names the worker or the missing bytes when the model does not fit", () => {
    expect(() => place(model(4), workers(100, 5), limits)).toThrow(/worker "w1" offers 5000000 bytes/);
    expect(() => place(model(40), workers(100, 100), limits)).toThrow(
      /2 workers offer 200000000 bytes.* more/,
    );
  });

  it("always covers every layer once and never promises more memory than a worker offers", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 8 }),
        (layers, memory) => {
          const offered = workers(...memory);
          try {
            const { stages, blockCount } = place(model(layers), offered, limits);
            expect(stages[0]!.layerBegin).toBe(0);
            expect(stages.at(-1)!.layerEnd).toBe(layers);
            expect(blockCount).toBeGreaterThanOrEqual(limits.minBlocks);
            for (const [index, stage] of stages.entries()) {
              if (index > 0) expect(stage.layerBegin).toBe(stages[index - 1]!.layerEnd);
              expect(stage.kvBytes).toBe(blockCount * 16 * (stage.layerEnd - stage.layerBegin) * 1_000);
              expect(stage.layerEnd).toBeGreaterThan(stage.layerBegin);
              expect(stage.weightBytes + stage.workspaceBytes + stage.kvBytes).toBeLessThanOrEqual(
                offered[index]!.memoryBytes,
              );
            }
          } catch (error) {
            expect(error).toBeInstanceOf(RelayError);
          }
        },
      ),
      { numRuns: 300 },
    );
  });
});
