/**
 * The weight cache of the engine: what is mapped from it is what would be made from the checkpoint, to the bit, in
 * every format, family and cut.
 */
import { copyFileSync, readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, test, vi } from "vitest";
import { contextRowsOf, openModel, stageTensors } from "../../checkpoint/index.js";
import { packageRoot } from "../../common/package.js";
import {
  engineInfo,
  Stage,
  type StageConfig,
  type WeightCacheOptions,
  type WeightFormat,
} from "../../native/index.js";
import {
  INT4,
  INT8,
  randomModel,
  type StageOptions,
  seededRandom,
  stageConfig,
  writeTensors,
} from "./support.js";
import {
  cacheIn,
  configs,
  expectSame,
  filesIn,
  folder,
  ids,
  int4,
  newDirectory,
  RANDOM,
  run,
  weightsIn,
} from "./weight-cache-support.js";

afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

describe("mapped weights are those that were made", () => {
  const all: [string, StageOptions][] = (["int4", "int8"] as const).flatMap((type) =>
    ([32, 64, 128, 0] as const).flatMap((groupSize) =>
      (["absmax", "search"] as const).map((scales): [string, StageOptions] => {
        const weights: WeightFormat = { type, groupSize, scales };
        return [`${type} groups of ${groupSize} by ${scales}`, { weights, headWeights: INT8 }];
      }),
    ),
  );
  const heads: [string, StageOptions][] = [
    ["int4 with a head as stored", { weights: INT4 }],
    ["int4 with an int4 head, in float16", { weights: INT4, headWeights: INT4, dtype: "float16" }],
    ["int8 on three threads", { weights: INT8, headWeights: INT8, threads: 3 }],
  ];

  test.each([...all, ...heads])("%s", async (_, options) => {
    const directory = newDirectory();
    const plain = await run(configs(options), null);
    const first = await run(configs(options), cacheIn(directory));
    expect(first.report).toMatchObject({ hits: 0, misses: 4, mappedBytes: 0, filesWritten: 4, warnings: [] });
    const second = await run(configs(options), cacheIn(directory));
    expect(second.report).toMatchObject({ hits: 4, misses: 0, filesWritten: 0, warnings: [] });
    expect(second.report.mappedBytes).toBe(first.report.writtenBytes);
    // Another cut finds the same files.
    const cut = await run(configs(options, [1]), cacheIn(directory));
    expect(cut.report).toMatchObject({ hits: 4, misses: 0, warnings: [] });
    for (const found of [first, second, cut]) expectSame(found, plain);
    expect(first.weightBytes).toEqual(plain.weightBytes);
    expect(second.weightBytes).toEqual(plain.weightBytes);
    expect(weightsIn(directory).map((name) => name.replace(/-[0-9a-f]{32}/, ""))).toEqual([
      "head.weights",
      "layer-0.weights",
      "layer-1.weights",
      "layer-2.weights",
    ]);
    expect(filesIn(directory).filter((name) => name.endsWith(".unfinished"))).toEqual([]);
  });

  test("nothing is kept of matrices as they are stored, which would copy the checkpoint", async () => {
    const directory = newDirectory();
    const { report } = await run(configs({}), cacheIn(directory));
    expect(report).toMatchObject({ hits: 0, misses: 0, filesWritten: 0, warnings: [] });
    expect(filesIn(directory)).toEqual([]);
    // With a rounded head, the head alone.
    const head = await run(configs({ headWeights: INT8 }), cacheIn(directory));
    expect(head.report).toMatchObject({ misses: 1, filesWritten: 1 });
    expectSame(
      await run(configs({ headWeights: INT8 }), cacheIn(directory)),
      await run(configs({ headWeights: INT8 }), null),
    );
  });

  test.each(engineInfo().available)("what the scalar kernels have made serves %s", async (variant) => {
    const directory = newDirectory();
    vi.stubEnv("GLM_RELAY_KERNELS", "scalar");
    const made = await run(configs(int4), cacheIn(directory));
    vi.stubEnv("GLM_RELAY_KERNELS", variant);
    const mapped = await run(configs(int4), cacheIn(directory));
    expect(mapped.report.hits).toBe(4);
    expectSame(mapped, made);
  });

  const fixtures = join(packageRoot, "test/golden/fixtures");
  test.each<[string, string, string | null]>([
    ["headwise rows", "chatglm-6b-tiny", null],
    ["a prefix encoder", "chatglm-6b-tiny", "chatglm-6b-tiny-ptuning-projection"],
    ["tensor-parallel shards", "glm-130b-tiny-shards", null],
    ["a tied head", "glm-10b-tiny", null],
    ["stacked halves", "glm4-tiny", null],
    ["experts", "glm45-tiny", null],
    ["experts and head norms", "glm45-air-tiny", null],
  ])("families: %s", async (_, name, prefix) => {
    const prefixEncoder = prefix === null ? null : join(fixtures, prefix);
    const model = await openModel(join(fixtures, name), { prefixEncoder });
    const { shape } = model;
    const cut = (layerBegin: number, layerEnd: number): StageConfig => ({
      shape,
      layerBegin,
      layerEnd,
      ...stageTensors(model, {
        layerBegin,
        layerEnd,
        embed: layerBegin === 0,
        head: layerEnd === shape.layerCount,
      }),
      weights: INT4,
      headWeights: INT8,
      dtype: "float32",
      kvType: "float32",
      blockCount: 8,
      blockSize: 16,
      maxRows: 64,
      contextRows: Math.min(contextRowsOf(model), 64),
      threads: 2,
    });
    const { fingerprint } = model;
    const cache = cacheIn(newDirectory(), { fingerprint });
    const prompt = ids.map((id) => id % shape.tokenCount);
    const whole = [cut(0, shape.layerCount)];
    const plain = await run(whole, null, prompt);
    const files = shape.layerCount + 1;
    const first = await run(whole, cache, prompt);
    expect(first.report).toMatchObject({ misses: files, filesWritten: files, warnings: [] });
    const mapped = await run([cut(0, 1), cut(1, shape.layerCount)], cache, prompt);
    expect(mapped.report).toMatchObject({ hits: files, misses: 0, warnings: [] });
    for (const found of [first, mapped]) expectSame(found, plain);
  });

  test("a load from the cache tells at once that all has been read", async () => {
    const cache = cacheIn(newDirectory());
    await run(configs(int4), cache);
    let progress = () => ({ loadedBytes: 0, totalBytes: 1 });
    const stage = await Stage.create(
      configs(int4)[0]!,
      (told) => {
        progress = told;
      },
      cache,
    );
    expect(progress().loadedBytes).toBe(progress().totalBytes);
    await stage.close();
    expect(stage.weightCache?.hits).toBe(4);
  });
});

describe("a file is of these weights only", () => {
  test("another source, fingerprint, format or time of change is another file", async () => {
    const directory = newDirectory();
    const file = join(folder.path, "changing.bin");
    const list = randomModel(RANDOM, "bfloat16", 3);
    const changing = writeTensors(file, list);
    const config = () => [stageConfig(changing, RANDOM, 0, RANDOM.layerCount, int4)];
    const misses = async (more: Partial<WeightCacheOptions> = {}, changed = config()) =>
      (await run(changed, cacheIn(directory, more))).report.misses;
    expect(await misses()).toBe(4);
    expect(await misses()).toBe(0);
    expect(await misses({ fingerprint: "abd" })).toBe(4);
    for (const seconds of [1_000_000, 1_000_001, 1_000_001.5]) {
      utimesSync(file, seconds, seconds);
      expect(await misses()).toBe(4);
    }
    copyFileSync(file, `${file}.copy`);
    const copied = new Map(
      [...changing].map(([name, source]) => [name, { ...source, file: `${file}.copy` }]),
    );
    expect(await misses({}, [stageConfig(copied, RANDOM, 0, RANDOM.layerCount, int4)])).toBe(4);
    expect(await misses({}, [stageConfig(changing, RANDOM, 0, 3, { ...int4, weights: INT8 })])).toBe(3);
  });

  test("every format has files of its own", async () => {
    const cache = cacheIn(newDirectory());
    for (const type of ["int4", "int8"] as const) {
      for (const groupSize of [32, 64, 128, 0]) {
        for (const scales of ["absmax", "search"] as const) {
          const weights: WeightFormat = { type, groupSize, scales };
          const { report } = await run(configs({ weights, headWeights: weights }), cache);
          expect(report).toMatchObject({ hits: 0, misses: 4 });
        }
      }
    }
  });

  const damages: [string, (file: string, others: string[]) => void, RegExp][] = [
    ["cut off", (file) => truncateSync(file, statSync(file).size - 1), /bytes, expected/],
    ["cut to its header", (file) => truncateSync(file, 4096), /bytes, expected/],
    ["empty", (file) => truncateSync(file, 0), /it is empty/],
    ["some bytes", (file) => writeFileSync(file, "hello"), /too short for a header/],
    ["longer", (file) => writeFileSync(file, Buffer.concat([readFileSync(file), Buffer.alloc(8)])), /bytes/],
    ["without a header", (file) => patch(file, 0, Buffer.alloc(4096)), /no finished file/],
    ["of another layout", (file) => patch(file, 8, Buffer.from([99, 0, 0, 0])), /layout is version 99/],
    ["of another layer", (file, [other]) => copyFileSync(other!, file), /of other weights/],
    ["with a header of no size", (file) => patch(file, 16, Buffer.alloc(8)), /header cannot have 0/],
    ["with a wrong header", (file) => flip(file, 100), /header has another checksum/],
    ["with a wrong last byte", (file) => flip(file, statSync(file).size - 1), /has another checksum/],
  ];

  test.each(damages)("a file that is %s is not used, and made anew", async (_, damage, reason) => {
    const directory = newDirectory();
    const plain = await run(configs(int4), null);
    await run(configs(int4), cacheIn(directory));
    const [head, layer] = weightsIn(directory).map((name) => join(directory, name));
    damage(layer!, [head!]);
    const again = await run(configs(int4), cacheIn(directory));
    expect(again.report).toMatchObject({ hits: 3, misses: 1, filesWritten: 1 });
    expect(again.report.warnings).toHaveLength(1);
    expect(again.report.warnings[0]).toContain(layer);
    expect(again.report.warnings[0]).toMatch(reason);
    const healed = await run(configs(int4), cacheIn(directory));
    expect(healed.report).toMatchObject({ hits: 4, misses: 0, warnings: [] });
    for (const found of [again, healed]) expectSame(found, plain);
  });

  test("whichever byte is wrong, the weights are right", async () => {
    const directory = newDirectory();
    const plain = await run(configs(int4), null);
    await run(configs(int4), cacheIn(directory));
    const [, layer] = weightsIn(directory).map((name) => join(directory, name));
    const whole = readFileSync(layer!);
    const random = seededRandom(17);
    let noticed = 0;
    for (let round = 0; round < 60; round++) {
      writeFileSync(layer!, whole);
      flip(layer!, Math.floor(random() * whole.length), 1 << Math.floor(8 * random()));
      const found = await run(configs(int4), cacheIn(directory));
      expectSame(found, plain);
      noticed += found.report.misses;
    }
    // What is not noticed lies between two matrices and is never read.
    expect(noticed).toBeGreaterThan(30);
  });
});

function patch(file: string, offset: number, bytes: Buffer): void {
  const content = readFileSync(file);
  bytes.copy(content, offset);
  writeFileSync(file, content);
}

function flip(file: string, offset: number, bit = 1): void {
  const content = readFileSync(file);
  content[offset]! ^= bit;
  writeFileSync(file, content);
}
