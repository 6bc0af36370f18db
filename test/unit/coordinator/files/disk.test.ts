import { existsSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { systemTimers, type Timers } from "../../../../common/clock.js";
import { DataDirectory } from "../../../../coordinator/files/data-directory.js";
import { asStorageFull, DiskGuard, isDiskFull } from "../../../../coordinator/files/disk.js";
import { writeDurably } from "../../../../coordinator/files/durable.js";
import { openData } from "../../../../coordinator/files/open.js";
import { Retention } from "../../../../coordinator/files/retention.js";
import { FileStore } from "../../../../coordinator/files/store.js";
import { about, chunks, largeDisk, log, openStore, scratch, WallClock } from "./support.js";

describe("the guard of the disk", () => {
  it("asks once a second at most, and counts what is written in between", async () => {
    let nowMs = 5_000;
    let asked = 0;
    let free = 1_000;
    const guard = new DiskGuard("/", 100, { nowMs: () => nowMs }, async () => {
      asked++;
      return free;
    });
    await guard.take(600);
    await expect(guard.take(301)).rejects.toMatchObject({ code: "storage_full" });
    await guard.take(300);
    await expect(guard.requireRoom(1)).rejects.toThrow(
      "has room for 0 bytes beside its reserve of 100, expected 1",
    );
    free = 2_000;
    nowMs += 999;
    await expect(guard.requireRoom(1)).rejects.toMatchObject({ code: "storage_full" });
    expect(asked).toBe(1);
    nowMs += 1;
    await guard.requireRoom(1_900);
    expect(asked).toBe(2);
  });

  it("says what the real disk has", async () => {
    const guard = new DiskGuard(scratch(), 0, systemTimers);
    await guard.requireRoom(1);
    await expect(guard.requireRoom(1e18)).rejects.toMatchObject({ code: "storage_full" });
  });

  it("knows what no room looks like", () => {
    for (const code of ["ENOSPC", "EDQUOT"]) {
      const error = Object.assign(new Error("x"), { code });
      expect(isDiskFull(error)).toBe(true);
      expect(asStorageFull(error)).toMatchObject({ code: "storage_full", cause: error });
    }
    const other = Object.assign(new Error("x"), { code: "EIO" });
    expect(asStorageFull(other)).toBe(other);
    expect(isDiskFull(null)).toBe(false);
  });
});

describe("the data directory", () => {
  it("is made for its owner alone, and has one coordinator, whatever it is called", async () => {
    const parent = scratch();
    const path = join(parent, "a", "b");
    const first = await DataDirectory.open(path);
    expect(first.path).toBe(path);
    expect(statSync(path).mode & 0o077).toBe(0);
    symlinkSync(path, join(parent, "link"));
    for (const name of [path, join(parent, "link"), `${path}/../b/`]) {
      await expect(DataDirectory.open(name)).rejects.toMatchObject({
        code: "invalid_configuration",
        message: `--data ${path}: another coordinator works on this directory, expected one coordinator per directory`,
      });
    }
    await first.close();
    const second = await DataDirectory.open(path);
    expect(existsSync(await second.folder("batches"))).toBe(true);
    await second.close();
  });

  it("that cannot be one is named with the reason", async () => {
    const file = join(scratch(), "file");
    writeFileSync(file, "");
    await expect(DataDirectory.open(file)).rejects.toMatchObject({
      code: "invalid_configuration",
      message: expect.stringMatching(/^--data .*file: E(EXIST|NOTDIR)/),
    });
    const directory = scratch();
    writeFileSync(join(directory, "files"), "");
    await expect(openData({ data: directory }, log)).rejects.toMatchObject({
      code: "invalid_configuration",
      message: expect.stringContaining(`--data ${directory}: E`),
    });
    // It is free again.
    await (await DataDirectory.open(directory)).close();
  });
});

describe("writing durably", () => {
  it("replaces a file, and leaves what was there when it cannot", async () => {
    const directory = scratch();
    const path = join(directory, "a.json");
    await writeDurably(path, "1");
    await writeDurably(path, "2");
    expect(readdirSync(directory)).toEqual(["a.json"]);
    mkdirSync(join(directory, "folder", "x"), { recursive: true });
    await expect(writeDurably(join(directory, "folder"), "3")).rejects.toThrow();
    expect(readdirSync(directory).sort()).toEqual(["a.json", "folder"]);
  });
});

describe("retention", () => {
  it("cleans up at the start and once a minute, one round at a time, and is done when it is closed", async () => {
    const directory = scratch();
    const clock = new WallClock();
    const store = await openStore(directory, { clock });
    for (let i = 0; i < 3; i++) await store.create(chunks("x"), about({ expiresAfterS: 3_600 * (i + 1) }));
    clock.passS(3_600);
    let run: () => void = () => {};
    let everyMs = 0;
    let cancelled = false;
    const timers: Timers = {
      ...systemTimers,
      every: (ms, each) => {
        everyMs = ms;
        run = each;
        return {
          cancel: () => {
            cancelled = true;
          },
        };
      },
    };
    const retention = new Retention(store, 1e12, timers, log);
    const left = () => readdirSync(join(directory, "files")).length;
    while (left() > 2) await sleep(5);
    expect(everyMs).toBe(60_000);
    clock.passS(3_600);
    await sleep(20);
    expect(left()).toBe(2);
    run();
    run();
    await retention.close();
    expect(cancelled).toBe(true);
    expect(left()).toBe(1);
  });

  it("goes on after a round that failed", async () => {
    const store = await FileStore.open(scratch(), {
      guard: largeDisk,
      timers: new WallClock(),
      log,
      filesBytes: null,
    });
    let rounds = 0;
    store.prune = async () => {
      rounds++;
      throw new Error("EIO");
    };
    let run: () => void = () => {};
    const every = (_: number, each: () => void) => {
      run = each;
      return { cancel: () => {} };
    };
    const timers = { ...systemTimers, every };
    const retention = new Retention(store, 1, timers, log);
    await sleep(5);
    run();
    await retention.close();
    expect(rounds).toBe(2);
  });
});
