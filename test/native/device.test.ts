/** Which device a worker gets, and what a GPU refuses. */
import { join } from "node:path";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import { chooseDevice, engineInfo, isOutOfMemory, Stage } from "../../native/index.js";
import { emulatedLibrary, testGpu } from "../support/test-gpu.js";
import {
  INT4,
  ODD,
  randomModel,
  rows,
  stageConfig,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

test("the CPU is what cpu means, and auto where there is no CUDA library or no driver", () => {
  expect(chooseDevice("cpu")).toBeNull();
  vi.stubEnv("GLM_RELAY_CUDA_LIBRARY", join(folder.path, "none.so"));
  expect(chooseDevice("auto")).toBeNull();
  // A library, but none of ours.
  vi.stubEnv("GLM_RELAY_CUDA_LIBRARY", process.execPath);
  expect(chooseDevice("auto")).toBeNull();
  expect(() => chooseDevice("cuda:0")).toThrow("the CUDA library cannot be opened");
});

test("a GPU that was asked for by number is there, or the reason is told", () => {
  vi.stubEnv("GLM_RELAY_CUDA_LIBRARY", emulatedLibrary);
  expect(chooseDevice("cuda:0")).toMatchObject({ index: 0, computeCapability: "8.6", turing: false });
  expect(chooseDevice("auto")).toEqual(chooseDevice("cuda:0"));
  expect(() => chooseDevice("cuda:1")).toThrow("device cuda:1: there are 1 GPUs here");
  expect(() => chooseDevice("gpu")).toThrow("device gpu: expected auto, cpu or cuda:N");
  vi.stubEnv("GLM_RELAY_CUDA_PATH", "volta");
  expect(() => chooseDevice("cuda:0")).toThrow("GLM_RELAY_CUDA_PATH=volta: expected turing or nothing");
  vi.stubEnv("GLM_RELAY_CUDA_LIBRARY", join(folder.path, "none.so"));
  expect(() => chooseDevice("cuda:0")).toThrow('run "make cuda"');
});

test("the numerics id tells GPUs and instructions apart", () => {
  expect(engineInfo(testGpu()).backend).toBe("cuda-sm_86");
  expect(engineInfo(testGpu("turing")).backend).toBe("cuda-sm_86-turing");
  expect(engineInfo().backend).toBe("cpu");
});

test("a stage that its GPU cannot hold says what was missing for what, and leaves room for the next one", async () => {
  const tensors = writeTensors(join(folder.path, "odd.bin"), randomModel(ODD, "float32", 5));
  const config = stageConfig(tensors, ODD, 0, ODD.layerCount, { blockCount: 20_000_000 });
  const creating = Stage.create(config, undefined, null, testGpu());
  const refusal = await creating.catch((error: Error) => error);
  expect(isOutOfMemory(refusal)).toBe(true);
  expect((refusal as Error).message).toMatch(
    /^no room for the KV cache of 20000000 blocks: it takes \d+ MB more, \d+ MB of the 8590 MB of GPU 0 \(emulated\) are free$/,
  );
  const stage = await Stage.create({ ...config, blockCount: 8 }, undefined, null, testGpu());
  expect(stage.kernels).toBe("cuda-sm_86");
  await stage.close();
});

test.each([
  // A GPU of 0 to 3 pages of 2 MiB; the partial sums of attention, 16 MiB, come with the KV cache.
  [0, /^no room for the weights of layer 0: it takes \d MB more, 0 MB of the 0 MB/],
  [1, /^no room for the KV cache of 8 blocks: it takes 17 MB more, 0 MB of the 3 MB/],
  [9, /^no room for the workspace of steps of 4096 rows: it takes \d MB more, \d MB of the 19 MB/],
])("on a GPU of %i pages the error names what did not fit", async (pages, message) => {
  const tensors = writeTensors(join(folder.path, "odd.bin"), randomModel(ODD, "float32", 5));
  const config = stageConfig(tensors, ODD, 0, ODD.layerCount, { blockCount: 8, maxRows: 4_096 });
  const gpu = testGpu();
  vi.stubEnv("GLM_RELAY_EMULATED_GPU_BYTES", String(pages * 2 ** 21));
  await expect(Stage.create(config, undefined, null, gpu)).rejects.toThrow(message);
});

test("matrices that a CPU has packed into a cache are used by a GPU, to the same bits", async () => {
  const tensors = writeTensors(join(folder.path, "cached.bin"), randomModel(ODD, "float16", 6));
  const config = stageConfig(tensors, ODD, 0, ODD.layerCount, { dtype: "float16", weights: INT4 });
  const cache = { directory: join(folder.path, "cache"), maxBytes: 1e9, fingerprint: "f" };
  const cpu = await Stage.create(config, undefined, cache);
  await cpu.weightCacheWritten();
  await cpu.close();
  const plain = await Stage.create(config, undefined, null, testGpu());
  const mapped = await Stage.create(config, undefined, cache, testGpu());
  expect(mapped.weightCache).toMatchObject({ misses: 0 });
  expect(mapped.weightCache!.hits).toBeGreaterThan(0);
  expect(mapped.roundings).toEqual(plain.roundings);
  const input = tokenStep([rows(0, 5, [1])], [3, 1, 4, 1, 5]);
  input.scores = [0, 4].map((row) => ({ row, token: 9, topLogprobs: 5 }));
  expect((await mapped.step(input)).scores).toEqual((await plain.step(input)).scores);
  await Promise.all([plain.close(), mapped.close()]);
});
