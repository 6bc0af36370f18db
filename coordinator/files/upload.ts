/** A file on its way in: bytes go to the disk as they come, and nothing is left of it unless it is finished. */
import { type FileHandle, open, unlink } from "node:fs/promises";
import { asStorageFull, type DiskGuard } from "./disk.js";
import type { FileObject, NewFile } from "./file.js";

export interface UploadPorts {
  /** Makes the file at the path, which is on the disk, one of the store's, by moving it. */
  keep(path: string, bytes: number, about: NewFile): Promise<FileObject>;
  /** Called once, when it is finished or discarded. */
  over(): void;
}

export class Upload {
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #guard: DiskGuard;
  readonly #ports: UploadPorts;
  #bytes = 0;
  #isOver = false;

  private constructor(path: string, handle: FileHandle, guard: DiskGuard, ports: UploadPorts) {
    this.#path = path;
    this.#handle = handle;
    this.#guard = guard;
    this.#ports = ports;
  }

  static async open(path: string, guard: DiskGuard, ports: UploadPorts): Promise<Upload> {
    return new Upload(path, await open(path, "wx", 0o600), guard, ports);
  }

  /** Written so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** @throws RelayError storage_full; `discard` it then. */
  async write(chunk: Uint8Array): Promise<void> {
    await this.#guard.take(chunk.length);
    try {
      await this.#handle.writeFile(chunk);
    } catch (error) {
      throw asStorageFull(error);
    }
    this.#bytes += chunk.length;
  }

  /**
   * Makes it a file, which it is for good when this resolves.
   * @throws RelayError storage_full; `discard` it then.
   */
  async finish(about: NewFile): Promise<FileObject> {
    try {
      // Some file systems say only here that the disk is full.
      await this.#handle.sync();
      const file = await this.#ports.keep(this.#path, this.#bytes, about);
      await this.#end();
      return file;
    } catch (error) {
      throw asStorageFull(error);
    }
  }

  /** Leaves nothing of it; without effect once it is finished. */
  async discard(): Promise<void> {
    if (this.#isOver) return;
    await unlink(this.#path).catch(() => undefined);
    await this.#end();
  }

  async #end(): Promise<void> {
    this.#isOver = true;
    this.#ports.over();
    // Nothing can be lost by it any more: what was written was synchronized, or is not wanted.
    await this.#handle.close().catch(() => undefined);
  }
}
