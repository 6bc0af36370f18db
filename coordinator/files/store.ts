/**
 * Files under DIR/files, one folder each: `content`, and `meta.json` with what is known of it. A file is there once its
 * content stands in its folder: it is moved there last, when it and meta.json are on the disk. So a process that is
 * killed leaves a file or none, and folders without content are swept at the next start. Nothing that a client wrote
 * is part of a path.
 */
import { mkdir, open, readdir, rename, rm, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { Timers } from "../../common/clock.js";
import type { Logger } from "../../common/log.js";
import { asStorageFull, type DiskGuard, storageFull } from "./disk.js";
import { syncFolder, writeDurably } from "./durable.js";
import {
  type FileObject,
  type FilePage,
  type FilePurpose,
  isFileId,
  maxFileBytes,
  type NewFile,
  newFileId,
} from "./file.js";
import { compareAge, isOver, type Meta, objectOf, readMeta } from "./meta.js";
import { Upload } from "./upload.js";

/** Files of all tenants; each takes a folder, and a little memory here. */
export const maxFiles = 100_000;
/** At the start, files that are looked at together. */
const readConcurrency = 32;

export interface FileStoreOptions {
  guard: DiskGuard;
  timers: Pick<Timers, "timeOfDayMs">;
  log: Logger;
  /** All files together; the oldest go for it (retention.ts). Null: no bound. */
  filesBytes: number | null;
}

export class FileStore {
  readonly #files: string;
  readonly #uploads: string;
  readonly #options: FileStoreOptions;
  readonly #known = new Map<string, Meta>();
  /** The same, oldest first: a page of 100,000 files is found without touching all of them. */
  readonly #ordered: Meta[] = [];
  readonly #bytes: Record<FilePurpose, number> = { batch: 0, batch_output: 0 };
  #nextOrder = 1;
  /** Files that are being made; they count against maxFiles already. */
  #coming = 0;

  private constructor(directory: string, options: FileStoreOptions) {
    this.#files = join(directory, "files");
    this.#uploads = join(directory, "uploads");
    this.#options = options;
  }

  /** Reads what is there, and sweeps what a killed process left half-way. */
  static async open(directory: string, options: FileStoreOptions): Promise<FileStore> {
    const store = new FileStore(directory, options);
    await mkdir(store.#files, { recursive: true, mode: 0o700 });
    await rm(store.#uploads, { recursive: true, force: true });
    await mkdir(store.#uploads, { mode: 0o700 });
    await store.#restore();
    return store;
  }

  /** Bytes of one file at most. */
  get maxBytes(): number {
    return Math.min(maxFileBytes, this.#options.filesBytes ?? maxFileBytes);
  }

  /** Bytes of all files. */
  bytes(): Readonly<Record<FilePurpose, number>> {
    return this.#bytes;
  }

  /** @throws RelayError storage_full unless one more file of so many bytes can be kept. */
  async requireRoom(bytes: number): Promise<void> {
    this.#requirePlace();
    await this.#options.guard.requireRoom(bytes);
  }

  /**
   * Begins a file whose bytes come one after the other; its `finish` makes it a file, its `discard` leaves nothing.
   * @throws RelayError storage_full
   */
  async begin(): Promise<Upload> {
    this.#requirePlace();
    const id = newFileId();
    this.#coming++;
    try {
      return await Upload.open(join(this.#uploads, id), this.#options.guard, {
        keep: (path, bytes, about) => this.#keep(id, path, bytes, about),
        over: () => this.#coming--,
      });
    } catch (error) {
      this.#coming--;
      throw asStorageFull(error);
    }
  }

  /**
   * Keeps all that comes as a file. What comes is checked against no limit but the disk's.
   * @throws RelayError storage_full; what `content` throws. Nothing is left then.
   */
  async create(content: AsyncIterable<Uint8Array>, about: NewFile): Promise<FileObject> {
    const upload = await this.begin();
    try {
      for await (const chunk of content) await upload.write(chunk);
      return await upload.finish(about);
    } finally {
      await upload.discard();
    }
  }

  /**
   * Makes a finished file one of these, by moving it, so it must lie on the same disk. It is there for good when this
   * resolves.
   * @param id From newFileId. Once a file of this id is there, the same call again answers with it: whoever is killed
   *   in between, and had written the id down, asks again.
   * @throws RelayError storage_full; the file lies where it lay then.
   */
  async adopt(id: string, path: string, about: NewFile): Promise<FileObject> {
    const known = this.#known.get(id);
    if (known !== undefined) return objectOf(known);
    try {
      const handle = await open(path, "r");
      let bytes: number;
      try {
        await handle.sync();
        bytes = (await handle.stat()).size;
      } finally {
        await handle.close();
      }
      return await this.#keep(id, path, bytes, about);
    } catch (error) {
      throw asStorageFull(error);
    }
  }

  /** Null when this tenant has no such file. */
  get(id: string, tenant: string): FileObject | null {
    const meta = this.#find(id, tenant);
    return meta === null ? null : objectOf(meta);
  }

  /** Where its content lies, which does not change; it may be gone at any time. Null: no such file. */
  pathOf(id: string, tenant: string): string | null {
    return this.#find(id, tenant) === null ? null : this.#contentOf(id);
  }

  /** Null when there is no file `after`. */
  list(page: FilePage, tenant: string): { data: FileObject[]; hasMore: boolean } | null {
    const { after, limit, order, purpose } = page;
    const nowMs = this.#nowMs();
    const step = order === "asc" ? 1 : -1;
    let at = order === "asc" ? 0 : this.#ordered.length - 1;
    if (after !== null) {
      const last = this.#find(after, tenant);
      if (last === null) return null;
      at = this.#placeOf(last) + step;
    }
    const found: FileObject[] = [];
    for (; at >= 0 && at < this.#ordered.length; at += step) {
      const meta = this.#ordered[at]!;
      if (meta.tenant !== tenant || isOver(meta, nowMs)) continue;
      if (purpose !== null && meta.purpose !== purpose) continue;
      if (found.length === limit) return { data: found, hasMore: true };
      found.push(objectOf(meta));
    }
    return { data: found, hasMore: false };
  }

  /** Whether it was there. It is gone for good when it resolves. */
  async remove(id: string, tenant: string): Promise<boolean> {
    if (this.#find(id, tenant) === null) return false;
    await this.#drop(id);
    return true;
  }

  /**
   * Removes what is over: by its own time, by age, and the oldest while all together exceed their bound. The newest one
   * stays whatever its size: somebody is about to read it.
   * @param maxAgeMs Files are no older, whatever time they were given.
   * @returns How many went.
   */
  async prune(maxAgeMs: number): Promise<number> {
    const nowMs = this.#nowMs();
    const over = this.#ordered.filter((meta) => isOver(meta, nowMs) || nowMs - meta.createdMs > maxAgeMs);
    for (const { id } of over) await this.#drop(id);
    let removed = over.length;
    const bound = this.#options.filesBytes ?? Number.POSITIVE_INFINITY;
    while (this.#ordered.length > 1 && this.#bytes.batch + this.#bytes.batch_output > bound) {
      await this.#drop(this.#ordered[0]!.id);
      removed++;
    }
    return removed;
  }

  /** The content at `path`, on the disk already, becomes a file. */
  async #keep(id: string, path: string, bytes: number, about: NewFile): Promise<FileObject> {
    const createdMs = this.#nowMs();
    const meta: Meta = { id, order: this.#nextOrder++, createdMs, bytes, ...about };
    const folder = join(this.#files, id);
    const content = this.#contentOf(id);
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await writeDurably(join(folder, "meta.json"), JSON.stringify(meta));
      await rename(path, content);
      await syncFolder(folder);
      await syncFolder(this.#files);
    } catch (error) {
      // It may have been moved already.
      await rename(content, path).catch(() => undefined);
      await rm(folder, { recursive: true, force: true }).catch(() => undefined);
      throw error;
    }
    this.#add(meta);
    return objectOf(meta);
  }

  #add(meta: Meta): void {
    this.#known.set(meta.id, meta);
    this.#ordered.splice(this.#placeOf(meta), 0, meta);
    this.#bytes[meta.purpose] += meta.bytes;
  }

  async #drop(id: string): Promise<void> {
    const meta = this.#known.get(id);
    if (meta === undefined) return;
    this.#known.delete(id);
    this.#ordered.splice(this.#placeOf(meta), 1);
    this.#bytes[meta.purpose] -= meta.bytes;
    try {
      // First of all: without it the rest is no file.
      await unlink(this.#contentOf(id));
      await rm(join(this.#files, id), { recursive: true, force: true });
      await syncFolder(this.#files);
    } catch (error) {
      this.#options.log.warn({ file: id, err: error }, "a deleted file could not be removed from the disk");
    }
  }

  #find(id: string, tenant: string): Meta | null {
    const meta = this.#known.get(id);
    return meta === undefined || meta.tenant !== tenant || isOver(meta, this.#nowMs()) ? null : meta;
  }

  #contentOf(id: string): string {
    return join(this.#files, id, "content");
  }

  /** Where it stands in the order, or would stand. */
  #placeOf(meta: Meta): number {
    let begin = 0;
    let end = this.#ordered.length;
    while (begin < end) {
      const middle = (begin + end) >>> 1;
      if (compareAge(this.#ordered[middle]!, meta) < 0) begin = middle + 1;
      else end = middle;
    }
    return begin;
  }

  #nowMs(): number {
    return this.#options.timers.timeOfDayMs();
  }

  #requirePlace(): void {
    if (this.#known.size + this.#coming < maxFiles) return;
    throw storageFull(`${maxFiles} files are kept, expected less: delete some`);
  }

  async #restore(): Promise<void> {
    const names = (await readdir(this.#files)).filter(isFileId);
    const metas: Meta[] = [];
    const next = names.values();
    const readSome = async () => {
      for (const id of next) {
        const meta = await this.#read(id);
        if (meta !== null) metas.push(meta);
      }
    };
    await Promise.all(Array.from({ length: readConcurrency }, readSome));
    metas.sort(compareAge);
    for (const meta of metas) this.#add(meta);
    this.#nextOrder = (metas.at(-1)?.order ?? 0) + 1;
  }

  /** Null when it is no file, which goes, or one whose parts contradict each other, which people may want to look at. */
  async #read(id: string): Promise<Meta | null> {
    const folder = join(this.#files, id);
    const bytes = await stat(join(folder, "content")).then(
      ({ size }) => size,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return null;
        throw error;
      },
    );
    if (bytes === null) {
      await rm(folder, { recursive: true, force: true });
      return null;
    }
    const meta = await readMeta(join(folder, "meta.json"), id);
    const damage =
      typeof meta === "string" ? meta : meta.bytes === bytes ? null : `content has ${bytes} bytes`;
    if (damage === null) return meta as Meta;
    this.#options.log.error({ folder, damage }, "a file is damaged and not served");
    return null;
  }
}
