/** The arithmetic of the memory and speed benchmarks. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { parseRollup } from "../../../bench/load.js";
import { parseResident, promptLengths } from "../../../bench/memory.js";
import { decodeRate } from "../../../bench/report.js";
import { blocksFor } from "../../../coordinator/scheduler/block-pool.js";

describe("resident memory", () => {
  it("is read from /proc in bytes", () => {
    const status =
      "Name:\tnode\nVmHWM:\t    300 kB\nVmRSS:\t    200 kB\nRssAnon:\t  150 kB\nRssFile:\t 50 kB\n";
    expect(parseResident(status)).toEqual({
      rss: 200 * 1024,
      anon: 150 * 1024,
      file: 50 * 1024,
      peak: 300 * 1024,
    });
    const own = parseResident(readFileSync("/proc/self/status", "utf8"));
    expect(own.peak).toBeGreaterThanOrEqual(own.rss);
    expect(own.rss).toBeGreaterThan(1 << 20);
  });

  it("is not taken from a text without it", () => {
    expect(() => parseResident("VmHWM:\t 3 kB\n")).toThrow("no VmRSS");
  });
});

describe("mapped memory", () => {
  it("is read from /proc in bytes", () => {
    const rollup =
      "00400000-7fff r--p 00000000 00:00 0 [rollup]\nRss: 300 kB\nPss: 200 kB\nPss_Anon: 90 kB\n" +
      "Pss_File:     70 kB\nAnonymous:  100 kB\nFilePmdMapped:  40 kB\n";
    expect(parseRollup(rollup)).toEqual({
      anonymous: 100 * 1024,
      file: 200 * 1024,
      fileShare: 70 * 1024,
      fileLarge: 40 * 1024,
    });
    expect(parseRollup(readFileSync("/proc/self/smaps_rollup", "utf8")).file).toBeGreaterThan(1 << 20);
  });

  it("is not taken from a text without it", () => {
    expect(() => parseRollup("Rss: 3 kB\n")).toThrow("no Anonymous");
  });
});

describe("prompts that fill the KV cache", () => {
  it.each([
    [256, 64],
    [100, 100],
    [7, 48],
    [3, 8_192],
  ])("draw all of %i blocks with a context of %i tokens", (total, context) => {
    const lengths = promptLengths({ size: 16, total }, context);
    const drawn = lengths.map((length) => blocksFor(length));
    expect(drawn.reduce((sum, count) => sum + count, 0)).toBe(total);
    for (const [index, length] of lengths.entries()) {
      expect(length + 15).toBeLessThanOrEqual(context);
      // The answer grows into blocks that the prompt has drawn already.
      expect(blocksFor(length + 15)).toBe(drawn[index]);
    }
  });
});

describe("the rate of decoding", () => {
  it("of one sequence counts the tokens after its first", () => {
    expect(decodeRate([[1_000, 1_500, 2_000]])).toBe(2);
  });

  it("of several counts only the time in which all decode", () => {
    // From 1,000 (the second begins) to 2,000 (the first ends): tokens at 1,500, 2,000 and 1,800.
    expect(
      decodeRate([
        [500, 1_000, 1_500, 2_000],
        [1_000, 1_800, 2_600],
      ]),
    ).toBe(3);
  });

  it("is refused when they never decode together", () => {
    expect(() =>
      decodeRate([
        [1, 2],
        [3, 4],
      ]),
    ).toThrow("never decoded at the same time");
  });
});
