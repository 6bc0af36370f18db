import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { type PlacementModel, place, type StageBytes } from "../../../coordinator/placement/placement.js";

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

  it("cuts by time: memory beyond what a stage needs draws no layers to it", () => {
    expect(counts(place(model(12), workers(220, 112, 113), limits).stages)).toEqual([4, 4, 4]);
  });

  it("gives a worker with twice the threads twice the layers", () => {
    const offered = workers(200, 200, 200).map((worker, index) => ({
      ...worker,
      threads: index === 1 ? 2 : 1,
    }));
    expect(counts(place({ ...model(12), headBytes: 0 }, offered, limits).stages)).toEqual([3, 6, 3]);
  });

  it("counts the head as the layers that could be read in its time", () => {
    const heavy = { ...model(12), headBytes: 20 * MB };
    expect(counts(place(heavy, workers(200, 200), limits).stages)).toEqual([7, 5]);
  });

  describe("on GPUs", () => {
    const gpu: StageBytes = {
      layerBytes: Array.from({ length: 4 }, () => 6 * MB),
      layerRoundingBytes: [MB, 2 * MB, 0, 0],
      embeddingBytes: 0,
      headBytes: 3 * MB,
      workspace: { stage: 4 * MB, perThread: 0, first: 0, last: 2 * MB, lastPerThread: 0, perBlock: 1_000 },
      processBytes: 20 * MB,
    };
    const onGpus = (...memory: number[]) => workers(...memory).map((worker) => ({ ...worker, gpu: true }));

    it("counts what they take, without the embedding, with tables for every block", () => {
      const { stages, blockCount } = place({ ...model(4), gpu }, onGpus(50, 50), limits);
      expect(counts(stages)).toEqual([2, 2]);
      expect(stages.map(({ weightBytes }) => weightBytes)).toEqual([12 * MB, 15 * MB]);
      expect(stages.map(({ processBytes }) => processBytes)).toEqual([23 * MB, 20 * MB]);
      // 50 - 15 - 6 - 20 MB for blocks of two layers and their tables.
      expect(blockCount).toBe(Math.floor((9 * MB) / (2 * 16_000 + 1_000)));
      const tables = blockCount * 1_000;
      expect(stages.map(({ workspaceBytes }) => workspaceBytes)).toEqual([4 * MB + tables, 6 * MB + tables]);
      for (const { weightBytes, workspaceBytes, kvBytes, processBytes } of stages)
        expect(weightBytes + workspaceBytes + kvBytes + processBytes).toBeLessThanOrEqual(50 * MB);
    });

    it("refuses one that could not hold the tables of the least KV cache", () => {
      const needed = 27 * MB + 6 * MB + 23 * MB + 4 * (4 * 16_000 + 1_000);
      const placed = (bytes: number) =>
        place({ ...model(4), gpu }, [{ id: "w0", threads: 1, gpu: true, memoryBytes: bytes }], limits);
      expect(placed(needed).blockCount).toBe(4);
      expect(() => placed(needed - 1)).toThrow("the best cut lacks 1 more");
    });

    it("takes them as of one speed, whatever their threads", () => {
      const offered = onGpus(200, 200).map((worker, index) => ({ ...worker, threads: 1 + 7 * index }));
      expect(counts(place({ ...model(4), headBytes: 0, gpu }, offered, limits).stages)).toEqual([2, 2]);
    });
  });

  it("moves layers to other stages when the memory of one is full", () => {
    // Worker 1 has 29 MB but for its workspace and room for 2 layers, worker 2 has 6 MB of ends.
    expect(counts(place(model(12), workers(200, 30, 200), limits).stages)).toEqual([5, 2, 5]);
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
    // Head 5, workspace 2, a layer 10 MB and its 64 KV tokens.
    expect(() => place(model(4), workers(100, 5), limits)).toThrow(
      'worker "w1" offers 5000000 bytes, one layer on it needs 17064000: 12064000 more',
    );
    expect(() => place(model(40), workers(100, 100), limits)).toThrow(
      /2 workers offer 200000000 bytes, the model with its KV cache needs 415560000; .* lacks 215560000 more: /,
    );
  });

  it("names the worker that lacks least when only the cut at whole layers does not fit", () => {
    // 5 layers of 10.064 MB, the ends 13 MB: 63.32 of 65 MB, but neither 3 + 2 nor 2 + 3 layers fit.
    expect(() => place(model(5), workers(35, 30), limits)).toThrow(
      /: stage 0 with layers 0-2 needs 36192000 bytes, worker "w0" offers 35000000: 1192000 more$/,
    );
  });

  it("keeps a cut made by hand, and names the stage that does not fit", () => {
    const cut = (...ends: number[]) =>
      ends.map((layerEnd, stage) => ({ layerBegin: ends[stage - 1] ?? 0, layerEnd }));
    const { stages } = place(model(8), workers(100, 100, 100), limits, cut(1, 7, 8));
    expect(counts(stages)).toEqual([1, 6, 1]);
    expect(stages.map((stage) => stage.weightBytes)).toEqual([15 * MB, 60 * MB, 15 * MB]);
    // 7 layers of 10.064 MB and 1 MB of workspace.
    expect(() => place(model(9), workers(100, 70, 100), limits, cut(1, 8, 9))).toThrow(
      "the model does not fit: stage 1 with layers 1-7 needs 71448000 bytes, " +
        'worker "w1" offers 70000000: 1448000 more',
    );
    expect(() => place(model(2), workers(100, 10), limits, cut(1, 2))).toThrow(
      /: stage 1 with layer 1 needs/,
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
