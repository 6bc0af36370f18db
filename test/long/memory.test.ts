/**
 * The plan against the kernel's own figures, on layers of the size that they have in a 6B model and stages
 * large enough that the process around them, which varies by 15 MB, is no matter.
 */
import { mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { fillCache } from "../../bench/load.js";
import { measureMemory, plannedSum } from "../../bench/memory.js";
import { shapes, writeRandomCheckpoint } from "../../bench/random-checkpoint.js";

/** 12 layers of float16 and both ends: 5.9 GB; 1.6 GB of packed weights, and what the cache leaves free. */
const layerCount = 12;
const neededBytes = 9.5e9;

const folder = mkdtempSync(join(tmpdir(), "glm-relay-memory-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const { bavail, bsize } = statfsSync(folder);
const roomy = bavail * bsize > neededBytes;
if (!roomy)
  console.log(`skipped: planned against resident memory, because ${folder} has less than 9.5 GB left`);

beforeAll(async () => {
  if (!roomy) return;
  const shape = { ...shapes["chatglm2-6b"], layerCount, contextLength: 64 };
  await writeRandomCheckpoint({ directory: folder, shape });
}, 300_000);

test.skipIf(!roomy).each<[string, string[], "made" | "mapped"]>([
  ["int4", ["--quantization", "int4"], "made"],
  [
    "int8 in whole rows with an INT8 cache",
    ["--quantization", "int8", "--group-size", "row", "--kv", "int8"],
    "made",
  ],
  ["int4 from the weight cache", ["--quantization", "int4"], "mapped"],
])(
  "workers with %s hold what was planned, and loading peaks below one layer more",
  async (_, flags, weights) => {
    const data = weights === "mapped" ? join(folder, "data") : undefined;
    if (data !== undefined) await fillCache(folder, flags, data);
    const { stages, layerBytes } = await measureMemory(folder, [1, 2], flags, data);
    expect(stages).toHaveLength(3);
    for (const { stages: count, stage, planned, ready, used, kvUsed } of stages) {
      const where = `stage ${stage} of ${count}`;
      // Nothing was held back that the figures are to be about.
      expect(kvUsed, where).toBe(1);
      // All but norms, KV cache and workspace are pages of files, or of none.
      if (weights === "mapped") expect(used.file, where).toBeGreaterThan(planned.weightBytes);
      else expect(used.anon, where).toBeGreaterThan(planned.kvBytes);
      expect(Math.abs(used.rss / plannedSum(planned) - 1), where).toBeLessThan(0.03);
      expect(ready.peak - used.rss, where).toBeLessThan(layerBytes);
    }
  },
);
