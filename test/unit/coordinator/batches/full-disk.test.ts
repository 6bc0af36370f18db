/** A disk that is full, for real: a small tmpfs. Needs the right to mount one. */
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { checkInput } from "../../../../coordinator/batches/check.js";
import { formatRecord } from "../../../../coordinator/batches/ledger-record.js";
import { LedgerWriter } from "../../../../coordinator/batches/ledger-writer.js";
import { mergeLedgers } from "../../../../coordinator/batches/merge.js";
import { checkTask, requestLine } from "./support.js";
import { ids, inProgress, World } from "./world.js";

const diskBytes = 4 * 1024 * 1024;
const usage = { promptTokens: 1, cachedTokens: 0, completionTokens: 1, reasoningTokens: 0 };
const record = (line: number, length: number) =>
  formatRecord({ line, ok: true, usage }, JSON.stringify("x".repeat(length)));

function mounted(): string | null {
  const folder = mkdtempSync(join(tmpdir(), "glm-relay-full-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${diskBytes}`, "tmpfs", folder], { stdio: "pipe" });
    return folder;
  } catch (error) {
    console.log(`skipped: no tmpfs can be mounted here: ${(error as Error).message.split("\n")[0]}`);
    rmSync(folder, { recursive: true, force: true });
    return null;
  }
}

const disk = mounted();
const ballast = disk === null ? "" : join(disk, "ballast");

function fill(): void {
  writeFileSync(ballast, "");
  for (const bytes of [65_536, 4_096, 1]) {
    try {
      for (;;) appendFileSync(ballast, Buffer.alloc(bytes));
    } catch {}
  }
}

describe.skipIf(disk === null)("a full disk", () => {
  beforeAll(() => mkdirSync(join(disk!, "batch")));
  beforeEach(() => rmSync(ballast, { force: true }));
  afterAll(() => {
    execFileSync("umount", ["-l", disk!]);
    rmSync(disk!, { recursive: true, force: true });
  });

  it("lets no record of a ledger count, loses none, and all of them count when there is room again", async () => {
    const path = join(disk!, "batch", "ledger-1.jsonl");
    const troubles: (string | null)[] = [];
    const trouble = (error: Error | null) => {
      troubles.push(error === null ? null : ((error as NodeJS.ErrnoException).code ?? error.message));
    };
    const writer = await LedgerWriter.open(path, trouble, 50);
    const records = Array.from({ length: 40 }, (_, line) => record(line, 10_000));
    for (const each of records.slice(0, 20)) await writer.append(each);
    fill();
    let counted = 20;
    const appends = records.slice(20).map((each) => writer.append(each).then(() => counted++));
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(counted).toBeLessThan(40);
    expect(troubles[0]).toBe("ENOSPC");
    // What is not sound is not there.
    expect(statSync(path).size).toBeLessThanOrEqual(Buffer.concat(records.slice(0, counted + 20)).length);
    const safe = Buffer.concat(records.slice(0, 20));
    expect(readFileSync(path).subarray(0, safe.length)).toEqual(safe);
    rmSync(ballast);
    await Promise.all(appends);
    expect(troubles).toEqual(["ENOSPC", null]);
    expect(readFileSync(path)).toEqual(Buffer.concat(records));
    fill();
    const late = writer.append(record(40, 100_000));
    await new Promise((resolve) => setTimeout(resolve, 100));
    const refused = expect(late).rejects.toMatchObject({ code: "draining" });
    await writer.close();
    await refused;
    expect(readFileSync(path)).toEqual(Buffer.concat(records));
  });

  it("ends the check of an input, and the making of files, with ENOSPC; both succeed when there is room", async () => {
    const folder = join(disk!, "batch");
    const lines = Array.from({ length: 300 }, (_, i) =>
      requestLine(`${i}`, { body: { prompt: "x".repeat(500) } }),
    );
    const task = checkTask(folder, lines.join("\n"));
    fill();
    await expect(checkInput(task)).rejects.toMatchObject({ code: "ENOSPC" });
    expect(existsSync(task.prepared)).toBe(false);
    rmSync(ballast);
    expect((await checkInput(task)).total).toBe(300);
    const ledger = join(folder, "ledger-2.jsonl");
    writeFileSync(ledger, Buffer.concat(lines.map((_, line) => record(line, 1_000))));
    const merge = {
      batchId: "batch_x",
      total: 300,
      ledgers: [ledger],
      prepared: task.prepared,
      output: join(folder, "output.jsonl"),
      error: join(folder, "error.jsonl"),
      unanswered: { code: "batch_expired", message: "" },
    };
    fill();
    expect(() => mergeLedgers(merge)).toThrow(/ENOSPC/);
    expect([merge.output, merge.error].filter((path) => existsSync(path))).toEqual([]);
    rmSync(ballast);
    expect(mergeLedgers(merge).outputLines).toBe(300);
    expect(readFileSync(merge.output, "utf8").split("\n")).toHaveLength(301);
  });

  it("stops a batch where it is, and loses none of it", async () => {
    const world = await World.start(disk!);
    try {
      const body = JSON.stringify("x".repeat(2_000));
      let answered = 0;
      world.runner.act = async () => {
        if (answered++ === 50) fill();
        return { body };
      };
      const { id } = await world.create(ids(200));
      await world.until(id, inProgress);
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      const stuck = world.get(id).request_counts;
      expect(stuck.completed).toBeLessThan(200);
      expect(world.log.of("the disk takes no answers of a batch: its lines wait").length).toBe(1);
      await expect(world.create(ids(1))).rejects.toMatchObject({ code: "storage_full" });
      rmSync(ballast);
      const batch = await world.ended(id);
      expect(batch.request_counts).toEqual({ total: 200, completed: 200, failed: 0 });
      expect(world.lines(batch.output_file_id).map(({ custom_id }) => custom_id)).toEqual(ids(200));
      expect(world.runner.asked).toHaveLength(200);
    } finally {
      rmSync(ballast, { force: true });
      await world.engine.close();
    }
  });
});
