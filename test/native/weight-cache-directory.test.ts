/**
 * The directory of a weight cache: its bound, its disk, and that whatever happens to its files costs a warning and
 * never a load.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Stage, type WeightCacheOptions } from "../../native/index.js";
import { INT8, randomModel, stageConfig, writeTensors } from "./support.js";
import {
  addonFile,
  cacheIn,
  configs,
  expectSame,
  filesIn,
  folder,
  int4,
  newDirectory,
  RANDOM,
  run,
  weightsIn,
} from "./weight-cache-support.js";

afterAll(folder.remove);

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
