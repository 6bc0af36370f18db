/**
 * The weight cache of the engine: what is mapped from it is what would be made from the checkpoint, to the bit, in
 * every format, family and cut; and whatever happens to its files costs a warning and never a load.
 */
import { execFileSync, spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, describe, expect, test, vi } from "vitest";
import { contextRowsOf, openModel, stageTensors } from "../../checkpoint/index.js";
import { packageRoot } from "../../common/package.js";
import { plainForm } from "../../models/shape.js";
import {
  engineInfo,
  type ModelShape,
  Stage,
  type StageConfig,
  type WeightCacheOptions,
  type WeightCacheReport,
  type WeightFormat,
} from "../../native/index.js";
import {
  INT4,
  INT8,
  randomModel,
  rows,
  type StageOptions,
  seededRandom,
  stageConfig,
  TestPipeline,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

/** Sizes that fill neither the last strip nor the last tile. */
const RANDOM: ModelShape = {
  hiddenSize: 96,
  layerCount: 3,
  headCount: 4,
  kvHeadCount: 2,
  headDim: 24,
  ffnSize: 136,
  vocabSize: 70,
  tokenCount: 67,
  ropeDim: 8,
  ropeBase: 10_000,
  ropePositionDivisor: 1,
  normEps: 1e-5,
  maxPositions: 64,
  form: plainForm,
  experts: null,
};
const tensors = writeTensors(join(folder.path, "random.bin"), randomModel(RANDOM, "bfloat16", 3), true);
const ids = [3, 41, 5, 66, 0, 12, 12, 30];

let directories = 0;
const addonFile = process.env.GLM_RELAY_ADDON ?? join(packageRoot, "build/native/glm_relay.node");
const newDirectory = () => join(folder.path, `cache-${directories++}`);
const cacheIn = (directory: string, more: Partial<WeightCacheOptions> = {}): WeightCacheOptions => ({
  directory,
  maxBytes: 2 ** 30,
  fingerprint: "abc",
  ...more,
});

interface Run {
  /** Log probability of every token behind every row. */
  logprobs: number[];
  weightBytes: number[];
  roundings: unknown[];
  report: WeightCacheReport;
}

/** Builds the stages, computes a step and waits for the cache. */
async function run(configs: StageConfig[], cache: WeightCacheOptions | null, prompt = ids): Promise<Run> {
  const stages: Stage[] = [];
  for (const config of configs) stages.push(await Stage.create(config, undefined, cache));
  const { shape, prefix, blockSize } = configs[0]!;
  const slots = (prefix?.length ?? 0) + prompt.length;
  const table = Array.from({ length: Math.ceil(slots / blockSize) }, (_, block) => block);
  const input = tokenStep([rows(0, prompt.length, table)], prompt);
  input.scores = prompt.flatMap((_, row) =>
    Array.from({ length: shape.tokenCount }, (_, token) => ({ row, token, topLogprobs: 0 })),
  );
  const { scores } = await new TestPipeline(stages).step(input);
  await Promise.all(stages.map((stage) => stage.weightCacheWritten()));
  const reports = stages.map((stage) => stage.weightCache);
  await Promise.all(stages.map((stage) => stage.close()));
  return {
    logprobs: scores.map(({ logprob }) => logprob),
    weightBytes: stages.map(({ weightBytes }) => weightBytes),
    roundings: stages.flatMap(({ roundings }) => roundings),
    report: reports.reduce<WeightCacheReport>(
      (sum, report) => ({
        hits: sum.hits + (report?.hits ?? 0),
        misses: sum.misses + (report?.misses ?? 0),
        mappedBytes: sum.mappedBytes + (report?.mappedBytes ?? 0),
        filesWritten: sum.filesWritten + (report?.filesWritten ?? 0),
        writtenBytes: sum.writtenBytes + (report?.writtenBytes ?? 0),
        warnings: [...sum.warnings, ...(report?.warnings ?? [])],
      }),
      { hits: 0, misses: 0, mappedBytes: 0, filesWritten: 0, writtenBytes: 0, warnings: [] },
    ),
  };
}

function configs(options: StageOptions, cuts: number[] = []): StageConfig[] {
  const borders = [0, ...cuts, RANDOM.layerCount];
  return cuts.concat(0).map((_, i) => stageConfig(tensors, RANDOM, borders[i]!, borders[i + 1]!, options));
}

const int4 = { weights: INT4, headWeights: INT8 };
const filesIn = (directory: string) => (existsSync(directory) ? readdirSync(directory).sort() : []);
const weightsIn = (directory: string) => filesIn(directory).filter((name) => name.endsWith(".weights"));

function expectSame(found: Run, expected: Run): void {
  expect(found.logprobs.length).toBe(expected.logprobs.length);
  expect(found.logprobs.every((value, i) => value === expected.logprobs[i])).toBe(true);
  expect(found.roundings).toEqual(expected.roundings);
}

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

describe("the cache is bounded", () => {
  const bytesOf = (directory: string) =>
    weightsIn(directory).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);

  test("the least recently used files go first, and what this stage needs stays", async () => {
    const directory = newDirectory();
    await run(configs(int4), cacheIn(directory, { fingerprint: "old" }));
    const old = weightsIn(directory);
    const bytes = bytesOf(directory);
    // The head was used last.
    for (const [i, name] of old.entries()) utimesSync(join(directory, name), 1_000 - i, 1_000 - i);
    const limit = { fingerprint: "new", maxBytes: 2 * bytes - 1 };
    const { report } = await run(configs(int4), cacheIn(directory, limit));
    expect(report).toMatchObject({ filesWritten: 4, warnings: [] });
    // Layer 2 has the oldest time, and is as large as any layer.
    expect(old.filter((name) => !weightsIn(directory).includes(name))).toEqual([old[3]]);
    expect(bytesOf(directory)).toBeLessThanOrEqual(limit.maxBytes);
  });

  test("a hit makes a file young again", async () => {
    const directory = newDirectory();
    await run(configs(int4), cacheIn(directory));
    const names = weightsIn(directory);
    for (const name of names) utimesSync(join(directory, name), 1_000, 1_000);
    await run(configs(int4), cacheIn(directory));
    for (const name of names)
      expect(Date.now() - statSync(join(directory, name)).mtimeMs).toBeLessThan(60_000);
  });

  test("files that are mapped are never removed; without room nothing more is kept", async () => {
    const directory = newDirectory();
    const cache = cacheIn(directory);
    await run(configs(int4), cache);
    const names = weightsIn(directory);
    const user = await Stage.create(configs(int4)[0]!, undefined, cache);
    const tight = cacheIn(directory, { fingerprint: "new", maxBytes: bytesOf(directory) + 4096 });
    const { report } = await run(configs(int4), tight);
    expect(report).toMatchObject({ misses: 4, filesWritten: 0 });
    expect(report.warnings).toEqual([expect.stringMatching(/nothing more is kept: .* in use/)]);
    expect(weightsIn(directory)).toEqual(names);
    await user.close();
    expect((await run(configs(int4), tight)).report).toMatchObject({ filesWritten: 4, warnings: [] });
    expect(bytesOf(directory)).toBeLessThanOrEqual(tight.maxBytes);
  });

  test("a limit below one stage keeps the same part of it, load after load", async () => {
    const directory = newDirectory();
    await run(configs(int4), cacheIn(directory, { fingerprint: "measured" }));
    const cache = cacheIn(directory, { maxBytes: Math.ceil(bytesOf(directory) / 2) });
    const first = await run(configs(int4), cache);
    expect(first.report.filesWritten).toBeGreaterThan(0);
    expect(first.report.filesWritten).toBeLessThan(4);
    const second = await run(configs(int4), cache);
    expect(second.report.hits).toBe(first.report.filesWritten);
    expectSame(second, first);
  });

  test("what a dead writer has left goes, other files stay", async () => {
    const directory = newDirectory();
    mkdirSync(directory);
    const left = join(directory, "layer-0-0123.weights.1-0.unfinished");
    writeFileSync(left, "half");
    writeFileSync(join(directory, "notes.txt"), "mine");
    await run(configs(int4), cacheIn(directory));
    expect(existsSync(left)).toBe(false);
    expect(existsSync(join(directory, "notes.txt"))).toBe(true);
  });
});

/** A disk of its own, 16 MiB large; null where none can be mounted. */
function mountedDisk(): string | null {
  const disk = join(folder.path, "disk");
  mkdirSync(disk);
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], { stdio: "pipe" });
    return disk;
  } catch (error) {
    console.log(`skipped: no tmpfs can be mounted here: ${(error as Error).message.split("\n")[0]}`);
    return null;
  }
}

test("a disk is left free where it is nearly full, and only read where it is read-only", async ({ skip }) => {
  const disk = mountedDisk();
  if (disk === null) return skip();
  try {
    const cache = cacheIn(disk);
    const plain = await run(configs(int4), null);
    const full = await run(configs(int4), cache);
    expect(full.report).toMatchObject({ misses: 4, filesWritten: 0 });
    expect(full.report.warnings).toEqual([expect.stringMatching(/nothing more is kept: .* stay free/)]);
    expect(weightsIn(disk)).toEqual([]);

    const elsewhere = newDirectory();
    await run(configs(int4), cacheIn(elsewhere));
    for (const name of weightsIn(elsewhere)) copyFileSync(join(elsewhere, name), join(disk, name));
    execFileSync("mount", ["-o", "remount,ro", disk]);
    const mapped = await run(configs(int4), cache);
    expect(mapped.report).toMatchObject({ hits: 4, misses: 0, warnings: [] });
    const other = await run(configs({ weights: INT8 }), cache);
    expect(other.report).toMatchObject({ misses: 4, filesWritten: 0 });
    expect(other.report.warnings).toEqual([expect.stringMatching(/nothing more is kept: .*Read-only/)]);
    for (const found of [full, mapped]) expectSame(found, plain);
  } finally {
    execFileSync("umount", ["-l", disk]);
  }
});

describe("what goes wrong costs no load", () => {
  test("a directory that cannot be made", async () => {
    const file = join(folder.path, "file");
    writeFileSync(file, "");
    const plain = await run(configs(int4), null);
    const found = await run(configs(int4), cacheIn(join(file, "weights")));
    expect(found.report).toMatchObject({ hits: 0, misses: 4, filesWritten: 0 });
    expect(found.report.warnings).toEqual([expect.stringMatching(/nothing more is kept: .*Not a directory/)]);
    expectSame(found, plain);
  });

  test("a file that the system does not let grow is given up, once", () => {
    const config = join(folder.path, "config.json");
    writeFileSync(config, JSON.stringify(configs(int4)[0]));
    const cache = cacheIn(newDirectory());
    const program = `
      const { Stage, availableKernels } = require(${JSON.stringify(addonFile)});
      const config = JSON.parse(require("fs").readFileSync(${JSON.stringify(config)}));
      const stage = new Stage(config, availableKernels[0], ${JSON.stringify(cache)}, null);
      stage.load().then(() => stage.cacheWritten()).then(() => console.log(JSON.stringify(stage.cacheReport())));`;
    // In blocks of 512 bytes: less than the smallest layer.
    const { status, stdout, stderr } = spawnSync(
      "sh",
      ["-c", 'ulimit -f 8; exec "$0" -e "$1"', process.execPath, program],
      {
        encoding: "utf8",
      },
    );
    expect(status, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      misses: 4,
      filesWritten: 0,
      warnings: [expect.stringMatching(/nothing more is kept: .*File too large/)],
    });
    expect(filesIn(cache.directory)).toEqual(["lock"]);
  });

  test("two stages write the same files at once", async () => {
    const directory = newDirectory();
    const cache = cacheIn(directory);
    const both = await Promise.all([run(configs(int4), cache), run(configs(int4), cache)]);
    expectSame(both[0], both[1]);
    for (const { report } of both) expect(report.warnings).toEqual([]);
    expect(filesIn(directory).filter((name) => name.endsWith(".unfinished"))).toEqual([]);
    const third = await run(configs(int4), cache);
    expect(third.report).toMatchObject({ hits: 4, misses: 0 });
    expectSame(third, both[0]);
  });

  test("a stage that is closed while files are written leaves whole files only", async () => {
    // Large enough that a file is not written at once.
    const shape = { ...RANDOM, hiddenSize: 1024, ffnSize: 3000, vocabSize: 200, tokenCount: 200 };
    const large = writeTensors(join(folder.path, "large.bin"), randomModel(shape, "float16", 4));
    const config = stageConfig(large, shape, 0, 3, { weights: { ...INT8, scales: "absmax" }, threads: 2 });
    const kept: number[] = [];
    for (let round = 0; round < 3; round++) {
      const directory = newDirectory();
      const stage = await Stage.create(config, undefined, cacheIn(directory));
      const written = stage.weightCacheWritten();
      await stage.close();
      await written;
      expect(filesIn(directory).filter((name) => name.endsWith(".unfinished"))).toEqual([]);
      const files = weightsIn(directory).length;
      expect(stage.weightCache?.filesWritten).toBe(files);
      const again = await Stage.create(config, undefined, cacheIn(directory));
      expect(again.weightCache).toMatchObject({ hits: files, warnings: [] });
      await again.weightCacheWritten();
      await again.close();
      kept.push(files);
    }
    // It was in the middle at least once.
    expect(Math.min(...kept)).toBeLessThan(4);
  });

  test("bad options are refused by name", async () => {
    const create = (cache: WeightCacheOptions) => Stage.create(configs(int4)[0]!, undefined, cache);
    await expect(create(cacheIn(""))).rejects.toThrow("cache.directory");
    await expect(create(cacheIn("x", { maxBytes: 0 }))).rejects.toThrow("cache.maxBytes 0");
    await expect(create(cacheIn("x", { fingerprint: "" }))).rejects.toThrow("cache.fingerprint");
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
