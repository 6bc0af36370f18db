/** The folders of batches: where each of their files lies, and batch.json, which is there whole or not at all. */
import { link, mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Logger } from "../../common/log.js";
import { syncFolder, writeDurably } from "../files/durable.js";
import { type BatchRecord, readRecord } from "./record.js";

const recordName = "batch.json";
const idPattern = /^batch_[0-9a-f]{32}$/;
const ledgerPattern = /^ledger-(\d{1,15})\.jsonl$/;
/** Records that are read at the same time at the start. */
const readConcurrency = 16;

export interface BatchPaths {
  folder: string;
  /** What the client sent. */
  source: string;
  prepared: string;
  output: string;
  error: string;
}

export class BatchStore {
  readonly #folder: string;
  readonly #log: Logger;
  /** Of a batch, its last write: a record never replaces a later one. */
  readonly #writes = new Map<string, Promise<void>>();

  private constructor(folder: string, log: Logger) {
    this.#folder = folder;
    this.#log = log;
  }

  static async open(data: string, log: Logger): Promise<BatchStore> {
    const folder = join(data, "batches");
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return new BatchStore(folder, log);
  }

  /** All batches. A folder in which no record stands is removed: its batch was never accepted. */
  async read(): Promise<BatchRecord[]> {
    const ids = (await readdir(this.#folder)).filter((name) => idPattern.test(name));
    const records: BatchRecord[] = [];
    const lane = async () => {
      for (let id = ids.pop(); id !== undefined; id = ids.pop()) {
        const record = await this.#readOne(id);
        if (record !== null) records.push(record);
      }
    };
    await Promise.all(Array.from({ length: readConcurrency }, lane));
    return records;
  }

  paths(id: string): BatchPaths {
    const folder = join(this.#folder, id);
    return {
      folder,
      source: join(folder, "source"),
      prepared: join(folder, "input"),
      output: join(folder, "output.jsonl"),
      error: join(folder, "error.jsonl"),
    };
  }

  /** Makes the folder of a batch, with its input; it counts once its record is written. */
  async create(id: string, input: string): Promise<void> {
    const { folder, source } = this.paths(id);
    await mkdir(folder, { mode: 0o700 });
    await link(input, source);
    await syncFolder(this.#folder);
  }

  /** @throws what the operating system says; the record of before stands then. */
  save(record: BatchRecord): Promise<void> {
    const { id } = record.object;
    const text = JSON.stringify(record);
    const before = this.#writes.get(id) ?? Promise.resolve();
    const write = before
      .catch(() => undefined)
      .then(() => writeDurably(join(this.paths(id).folder, recordName), text));
    this.#writes.set(id, write);
    const forget = () => {
      if (this.#writes.get(id) === write) this.#writes.delete(id);
    };
    write.then(forget, forget);
    return write;
  }

  /** Paths of its ledgers in the order in which they were begun, and the number of the next one. */
  async ledgers(id: string): Promise<{ paths: string[]; next: number }> {
    const { folder } = this.paths(id);
    const numbers = (await readdir(folder))
      .map((name) => ledgerPattern.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number)
      .sort((a, b) => a - b);
    return { paths: numbers.map((number) => this.ledgerPath(id, number)), next: (numbers.at(-1) ?? -1) + 1 };
  }

  ledgerPath(id: string, number: number): string {
    return join(this.paths(id).folder, `ledger-${number}.jsonl`);
  }

  /** What a batch that has ended needs no more. */
  async clean(id: string): Promise<void> {
    const { folder } = this.paths(id);
    for (const name of await readdir(folder))
      if (name !== recordName) await rm(join(folder, name), { force: true });
  }

  async removeSource(id: string): Promise<void> {
    await rm(this.paths(id).source, { force: true });
  }

  /** The record goes first: a batch without one was never there. */
  async remove(id: string): Promise<void> {
    const { folder } = this.paths(id);
    await rm(join(folder, recordName), { force: true });
    await rm(folder, { recursive: true, force: true });
  }

  async #readOne(id: string): Promise<BatchRecord | null> {
    const { folder } = this.paths(id);
    try {
      return readRecord(await readFile(join(folder, recordName), "utf8"), id);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") {
        await rm(folder, { recursive: true, force: true });
        return null;
      }
      this.#log.error(
        { batchId: id, folder, reason: (error as Error).message },
        "a batch cannot be read: it is left alone",
      );
      return null;
    }
  }
}
