import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import { isFileId, maxFilenameLength, newFileId } from "../../../../coordinator/files/file.js";
import type { FileStore } from "../../../../coordinator/files/store.js";
import { about, chunks, everything, openStore, scratch, stillClock, WallClock } from "./support.js";

const tenant = "default";
const idsOf = (store: FileStore, of = tenant) => store.list(everything, of)!.data.map(({ id }) => id);
const contentOf = (store: FileStore, id: string) => readFileSync(store.pathOf(id, tenant)!, "utf8");

describe("a file", () => {
  it("is what its client said and sent, now and after a restart", async () => {
    const directory = scratch();
    const clock = new WallClock();
    const store = await openStore(directory, { clock });
    const file = await store.create(chunks("one\n", "", "two\n"), about({ expiresAfterS: 3_600 }));
    expect(file).toEqual({
      id: file.id,
      object: "file",
      bytes: 8,
      created_at: clock.ms / 1_000,
      expires_at: clock.ms / 1_000 + 3_600,
      filename: "in.jsonl",
      purpose: "batch",
      status: "processed",
    });
    expect(isFileId(file.id)).toBe(true);
    expect(contentOf(store, file.id)).toBe("one\ntwo\n");
    const again = await openStore(directory, { clock });
    expect(again.get(file.id, tenant)).toEqual(file);
    expect(contentOf(again, file.id)).toBe("one\ntwo\n");
    expect(again.bytes()).toEqual({ batch: 8, batch_output: 0 });
  });

  it("may be empty", async () => {
    const store = await openStore(scratch());
    const { id, bytes } = await store.create(chunks(), about());
    expect(bytes).toBe(0);
    expect(contentOf(store, id)).toBe("");
  });

  it("is nobody else's", async () => {
    const store = await openStore(scratch());
    const { id } = await store.create(chunks("x"), about({ tenant: "a" }));
    expect(store.get(id, "b")).toBeNull();
    expect(store.pathOf(id, "b")).toBeNull();
    expect(await store.remove(id, "b")).toBe(false);
    expect(idsOf(store, "b")).toEqual([]);
    expect(store.list({ ...everything, after: id }, "b")).toBeNull();
    expect(store.get(id, "a")).not.toBeNull();
  });

  it("is gone with all that belongs to it when it is removed", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const { id } = await store.create(chunks("x"), about());
    expect(await store.remove(id, tenant)).toBe(true);
    expect(await store.remove(id, tenant)).toBe(false);
    expect(store.get(id, tenant)).toBeNull();
    expect(readdirSync(join(directory, "files"))).toEqual([]);
    expect(store.bytes()).toEqual({ batch: 0, batch_output: 0 });
    expect(idsOf(await openStore(directory))).toEqual([]);
  });

  it("stays to be read by whoever linked it before", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const { id } = await store.create(chunks("x"), about());
    linkSync(store.pathOf(id, tenant)!, join(directory, "link"));
    await store.remove(id, tenant);
    expect(readFileSync(join(directory, "link"), "utf8")).toBe("x");
  });

  it("is readable by its owner alone", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    await store.create(chunks("x"), about());
    const others = (path: string) => statSync(path).mode & 0o077;
    const [folder] = readdirSync(join(directory, "files"));
    const file = join(directory, "files", folder!);
    for (const path of [join(directory, "files"), file, join(file, "content"), join(file, "meta.json")]) {
      expect(others(path)).toBe(0);
    }
  });

  it("has whatever name, and lies where that name has no say", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const before = readdirSync(directory).sort();
    const name = fc.oneof(
      fc.string({ unit: "binary", maxLength: maxFilenameLength }),
      fc.constantFrom(
        "../../etc/passwd",
        "..",
        ".",
        "",
        "/etc/passwd",
        "a\0b",
        "C:\\x",
        "con",
        "meta.json",
        "content",
      ),
    );
    await fc.assert(
      fc.asyncProperty(name, async (filename) => {
        const file = await store.create(chunks("x"), about({ filename }));
        expect(file.filename).toBe(filename);
        expect(readdirSync(join(directory, "files")).every(isFileId)).toBe(true);
        expect(readdirSync(join(directory, "files", file.id)).sort()).toEqual(["content", "meta.json"]);
        expect(readdirSync(directory).sort()).toEqual(before);
        expect(readdirSync(join(directory, "uploads"))).toEqual([]);
        const again = await openStore(directory);
        expect(again.get(file.id, tenant)).toEqual(file);
        await store.remove(file.id, tenant);
      }),
      { numRuns: 60 },
    );
  });
});

describe("lists", () => {
  it("go on behind the last one seen, in either order, by purpose", async () => {
    const directory = scratch();
    const clock = new WallClock();
    let store = await openStore(directory, { clock });
    const ids: string[] = [];
    for (let i = 0; i < 7; i++) {
      // A clock that is set back does not change who came first.
      clock.passS(i === 3 ? -100 : 0.1);
      const purpose = i % 2 === 0 ? "batch" : "batch_output";
      ids.push((await store.create(chunks("x"), about({ purpose }))).id);
      await store.create(chunks("x"), about({ tenant: "other" }));
    }
    for (let round = 0; round < 2; round++) {
      expect(idsOf(store)).toEqual(ids);
      const page = (after: string | null, order: "asc" | "desc") =>
        store.list({ after, limit: 3, order, purpose: null }, tenant)!;
      expect(page(null, "desc").data.map(({ id }) => id)).toEqual([ids[6], ids[5], ids[4]]);
      expect(page(ids[4]!, "desc")).toMatchObject({
        data: [{ id: ids[3] }, { id: ids[2] }, { id: ids[1] }],
        hasMore: true,
      });
      expect(page(ids[1]!, "desc")).toMatchObject({ data: [{ id: ids[0] }], hasMore: false });
      expect(page(ids[3]!, "asc")).toMatchObject({
        data: [{ id: ids[4] }, { id: ids[5] }, { id: ids[6] }],
        hasMore: false,
      });
      expect(page(ids[6]!, "asc")).toEqual({ data: [], hasMore: false });
      const outputs = store.list(
        { after: ids[1]!, limit: 1, order: "asc", purpose: "batch_output" },
        tenant,
      )!;
      expect(outputs).toMatchObject({ data: [{ id: ids[3] }], hasMore: true });
      expect(store.list({ ...everything, after: newFileId() }, tenant)).toBeNull();
      store = await openStore(directory, { clock });
    }
  });
});

describe("many files at once", () => {
  it("are all kept, and stand in the same order after a restart", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const made = await Promise.all(
      Array.from({ length: 40 }, (_, i) => store.create(chunks(...Array(i % 7).fill("x"), `${i}`), about())),
    );
    const ids = idsOf(store);
    expect([...ids].sort()).toEqual(made.map(({ id }) => id).sort());
    await Promise.all(made.filter((_, i) => i % 3 === 0).map(({ id }) => store.remove(id, tenant)));
    const rest = idsOf(store);
    expect(rest).toEqual(ids.filter((id) => made.findIndex((file) => file.id === id) % 3 !== 0));
    expect(idsOf(await openStore(directory))).toEqual(rest);
  });
});

describe("what is left half-way", () => {
  it("by an upload that is given up is nothing", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const broken = async function* () {
      yield Buffer.from("half a fi");
      throw new Error("cut");
    };
    await expect(store.create(broken(), about())).rejects.toThrow("cut");
    expect(readdirSync(join(directory, "uploads"))).toEqual([]);
    expect(readdirSync(join(directory, "files"))).toEqual([]);
    expect(store.bytes().batch).toBe(0);
  });

  it("by a killed process is swept at the start, and nothing else is", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const whole = await store.create(chunks("whole"), about());
    const folderOf = (id: string) => join(directory, "files", id);
    const [justFolder, justMeta, alsoTemporary] = [newFileId(), newFileId(), newFileId()];
    for (const id of [justFolder, justMeta, alsoTemporary]) mkdirSync(folderOf(id));
    writeFileSync(join(folderOf(justMeta), "meta.json"), readFileSync(join(folderOf(whole.id), "meta.json")));
    writeFileSync(join(folderOf(alsoTemporary), "meta.json.tmp"), "{");
    writeFileSync(join(directory, "uploads", newFileId()), "half");
    mkdirSync(join(directory, "files", "lost+found"));
    const again = await openStore(directory);
    expect(idsOf(again)).toEqual([whole.id]);
    expect(readdirSync(join(directory, "files")).sort()).toEqual([whole.id, "lost+found"].sort());
    expect(readdirSync(join(directory, "uploads"))).toEqual([]);
  });

  it("by a disk that lost bytes is not served, and not thrown away either", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const files = await Promise.all(
      Array.from({ length: 8 }, () => store.create(chunks("content"), about())),
    );
    const part = (at: number, name: string) => join(directory, "files", files[at]!.id, name);
    const meta = JSON.parse(readFileSync(part(0, "meta.json"), "utf8"));
    writeFileSync(part(1, "content"), "cont");
    writeFileSync(part(2, "meta.json"), '{"id":');
    writeFileSync(part(3, "meta.json"), "null");
    writeFileSync(part(4, "meta.json"), JSON.stringify({ ...meta, id: newFileId() }));
    writeFileSync(part(5, "meta.json"), JSON.stringify({ ...meta, id: files[5]!.id, purpose: "fine-tune" }));
    writeFileSync(part(6, "meta.json"), JSON.stringify({ ...meta, id: files[6]!.id, tenant: undefined }));
    rmSync(part(7, "meta.json"));
    const again = await openStore(directory);
    expect(idsOf(again)).toEqual([files[0]!.id]);
    expect(readdirSync(join(directory, "files"))).toHaveLength(8);
  });
});

describe("adopting", () => {
  it("moves a file in, and says the same when it is asked again", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const path = join(directory, "output.jsonl");
    writeFileSync(path, "answers");
    const id = newFileId();
    const wanted = about({ purpose: "batch_output", filename: "output.jsonl" });
    const file = await store.adopt(id, path, wanted);
    expect(file).toMatchObject({ id, bytes: 7, purpose: "batch_output" });
    expect(existsSync(path)).toBe(false);
    expect(contentOf(store, id)).toBe("answers");
    expect(await store.adopt(id, path, wanted)).toEqual(file);
    const again = await openStore(directory);
    expect(await again.adopt(id, path, wanted)).toEqual(file);
    expect(again.bytes()).toEqual({ batch: 0, batch_output: 7 });
  });

  it("leaves the file where it was when it cannot be done", async () => {
    const directory = scratch();
    const store = await openStore(directory);
    const path = join(directory, "output.jsonl");
    writeFileSync(path, "answers");
    const id = newFileId();
    // A file in place of the folder that is to be made.
    writeFileSync(join(directory, "files", id), "");
    await expect(store.adopt(id, path, about())).rejects.toThrow(/EEXIST|ENOTDIR/);
    expect(readFileSync(path, "utf8")).toBe("answers");
    expect(store.get(id, tenant)).toBeNull();
    await expect(store.adopt(newFileId(), join(directory, "nothing"), about())).rejects.toThrow("ENOENT");
  });
});

describe("time and room", () => {
  it("hides a file at its time, before anything cleans up, and removes it then", async () => {
    const directory = scratch();
    const clock = new WallClock();
    const store = await openStore(directory, { clock });
    const { id } = await store.create(chunks("x"), about({ expiresAfterS: 3_600 }));
    const stays = await store.create(chunks("x"), about());
    clock.passS(3_599);
    expect(await store.prune(1e12)).toBe(0);
    expect(store.get(id, tenant)).not.toBeNull();
    clock.passS(1);
    expect(store.get(id, tenant)).toBeNull();
    expect(store.pathOf(id, tenant)).toBeNull();
    expect(idsOf(store)).toEqual([stays.id]);
    expect(await store.remove(id, tenant)).toBe(false);
    expect(readdirSync(join(directory, "files"))).toHaveLength(2);
    expect(await store.prune(1e12)).toBe(1);
    expect(readdirSync(join(directory, "files"))).toEqual([stays.id]);
  });

  it("removes what is too old, whatever time it was given", async () => {
    const clock = new WallClock();
    const store = await openStore(scratch(), { clock });
    await store.create(chunks("x"), about({ expiresAfterS: 2_592_000 }));
    await store.create(chunks("x"), about());
    clock.passS(10);
    const { id } = await store.create(chunks("x"), about());
    clock.passS(86_400 - 9);
    expect(await store.prune(86_400_000)).toBe(2);
    expect(idsOf(store)).toEqual([id]);
  });

  it("removes the oldest while all are too many bytes, of all tenants, but never the newest", async () => {
    const store = await openStore(scratch(), { filesBytes: 10 });
    const make = async (length: number, of: string) =>
      (await store.create(chunks("x".repeat(length)), about({ tenant: of }))).id;
    await make(4, "a");
    await make(4, "b");
    const c = await make(4, "a");
    const d = await make(4, "b");
    expect(await store.prune(1e12)).toBe(2);
    expect([...idsOf(store, "a"), ...idsOf(store, "b")]).toEqual([c, d]);
    const large = await make(11, "a");
    expect(await store.prune(1e12)).toBe(2);
    expect([...idsOf(store, "a"), ...idsOf(store, "b")]).toEqual([large]);
    expect(store.maxBytes).toBe(10);
  });

  it("refuses on a full disk, leaves nothing of it and keeps what was there", async () => {
    const directory = scratch();
    let free = 1_000;
    const guard = new DiskGuard(directory, 200, stillClock, async () => free);
    const store = await openStore(directory, { guard });
    const { id } = await store.create(chunks("x".repeat(500)), about());
    const refusal = { code: "storage_full", httpStatus: 507, retryAfterS: 60 };
    await expect(store.requireRoom(301)).rejects.toMatchObject(refusal);
    await store.requireRoom(300);
    await expect(store.create(chunks("x".repeat(200), "x".repeat(200)), about())).rejects.toMatchObject(
      refusal,
    );
    expect(readdirSync(join(directory, "uploads"))).toEqual([]);
    expect(contentOf(store, id)).toHaveLength(500);
    free = 0;
    await expect(openStore(directory, { guard })).resolves.toBeDefined();
  });
});
