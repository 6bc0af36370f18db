import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { lockOutput, OutputFile, outputPath } from "../../../../cli/batch/output.js";
import { scratch } from "../support.js";

describe("the output file of a batch", () => {
  it("holds lines behind those of an earlier run, whole and in the order in which they were given", async () => {
    const file = join(scratch(), "out.jsonl");
    writeFileSync(file, "earlier\n");
    const output = await OutputFile.open(file);
    const lines = Array.from({ length: 200 }, (_, index) => `${index}${"x".repeat(index * 50)}\n`);
    await Promise.all(lines.map((line) => output.append(line)));
    expect(readFileSync(file, "utf8")).toBe(`earlier\n${lines.join("")}`);
    await output.close();
  });

  it("takes nothing after a line that could not be written whole", async () => {
    const output = await OutputFile.open("/dev/full");
    const first = output.append("a\n");
    const second = output.append("b\n");
    await expect(first).rejects.toThrow("cannot write /dev/full: ENOSPC");
    await expect(second).rejects.toThrow("cannot write /dev/full: ENOSPC");
    await expect(output.append("c\n")).rejects.toThrow("cannot write /dev/full: ENOSPC");
    await expect(output.close()).rejects.toThrow("cannot write /dev/full: ENOSPC");
  });

  it("has one path under all its names, before and after it exists", async () => {
    const folder = scratch();
    const link = join(scratch(), "folder");
    symlinkSync(folder, link);
    const file = join(folder, "out.jsonl");
    expect(await outputPath(join(link, "out.jsonl"))).toBe(file);
    writeFileSync(file, "");
    expect(await outputPath(join(link, "..", "folder", "out.jsonl"))).toBe(file);
    await expect(outputPath(folder)).rejects.toThrow(/is not a regular file$/);
  });

  it("is locked until the lock is closed", async () => {
    const file = join(scratch(), "out.jsonl");
    const lock = await lockOutput(file);
    await expect(lockOutput(file)).rejects.toThrow(`another run writes ${file}`);
    await new Promise((resolve) => lock.close(resolve));
    (await lockOutput(file)).close();
  });
});
