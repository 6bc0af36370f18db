/**
 * Checks the input of a batch from its first byte to its last, and writes it anew in the form in which it is run
 * (prepared.ts). Takes long, so it runs in a thread (work.ts).
 */
import { closeSync, createReadStream, openSync, readSync } from "node:fs";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import type { BatchProblem } from "./batch.js";
import { FileWriter } from "./file-writer.js";
import {
  jobLines,
  jobsWanted,
  maxInputBytes,
  maxJobBytes,
  maxLineBytes,
  maxLines,
  maxProblems,
} from "./limits.js";
import { type Line, LineSplitter } from "./line-splitter.js";
import { type JobCut, preparedLine } from "./prepared.js";
import { LineProblem, type LineRules, parseRequestLine, show } from "./request-line.js";

export interface CheckTask extends LineRules {
  /** Path of what the client sent, plain or gzip. */
  source: string;
  /** Path of what is written; an earlier one is replaced. */
  prepared: string;
}

export interface CheckResult {
  /** Lines to be answered; 0 when there are problems. */
  total: number;
  jobs: JobCut[];
  /** At most maxProblems and one that counts the others. */
  problems: BatchProblem[];
}

const chunkBytes = 256 * 1024;
const gzipMagic = [0x1f, 0x8b] as const;

/** @throws what the operating system says when a file cannot be read or written. */
export async function checkInput(task: CheckTask): Promise<CheckResult> {
  const check = new InputCheck(task);
  try {
    await check.run();
    return check.result();
  } finally {
    check.close();
  }
}

/** Nothing more needs to be read. */
class Enough extends Error {}

class InputCheck {
  readonly #task: CheckTask;
  readonly #writer: FileWriter;
  readonly #problems: BatchProblem[] = [];
  #moreProblems = 0;
  /** Where each custom_id stands. */
  readonly #lineOf = new Map<string, number>();
  /** Bytes of each prepared line. */
  readonly #lengths: number[] = [];
  #lines = 0;

  constructor(task: CheckTask) {
    this.#task = task;
    this.#writer = new FileWriter(task.prepared);
  }

  async run(): Promise<void> {
    const splitter = new LineSplitter(maxLineBytes, (line) => this.#take(line));
    let bytes = 0;
    try {
      for await (const chunk of chunksOf(this.#task.source)) {
        bytes += chunk.length;
        if (bytes > maxInputBytes) {
          const message = `the input is longer than ${maxInputBytes} bytes, decompressed: cut it into several files`;
          throw new LineProblem("invalid_value", null, message);
        }
        splitter.push(chunk);
      }
      splitter.end();
      if (this.#lines === 0) throw new LineProblem("empty_file", null, "the input holds no requests");
    } catch (error) {
      if (error instanceof LineProblem) this.#note(error.at(null));
      else if (!(error instanceof Enough)) throw error;
    }
    if (this.#problems.length === 0) this.#writer.finish();
  }

  result(): CheckResult {
    if (this.#problems.length === 0) {
      return { total: this.#lines, jobs: cutJobs(this.#lengths), problems: [] };
    }
    const problems = [...this.#problems];
    if (this.#moreProblems > 0) {
      const message = `and ${this.#moreProblems} more problems`;
      problems.push({ code: problems.at(-1)!.code, line: null, message, param: null });
    }
    return { total: 0, jobs: [], problems };
  }

  close(): void {
    this.#writer.close();
  }

  #take(line: Line): void {
    this.#lines++;
    if (this.#lines > maxLines) {
      const message = `the input holds more than ${maxLines} requests: cut it into several files`;
      this.#note({ code: "too_many_tasks", line: line.number, message, param: null });
      throw new Enough();
    }
    try {
      const { customId, body } = parseRequestLine(line, this.#task);
      const earlier = this.#lineOf.get(customId);
      if (earlier !== undefined) {
        const message = `custom_id: ${show(customId)} stands in line ${earlier} already, expected one of its own`;
        throw new LineProblem("duplicate_custom_id", "custom_id", message);
      }
      this.#lineOf.set(customId, line.number);
      // What has a problem is never run.
      if (this.#problems.length > 0) return;
      const prepared = preparedLine(line.number, customId, body);
      this.#lengths.push(prepared.length);
      this.#writer.write(prepared);
    } catch (error) {
      if (!(error instanceof LineProblem)) throw error;
      this.#note(error.at(line.number));
    }
  }

  #note(problem: BatchProblem): void {
    if (this.#problems.length < maxProblems) this.#problems.push(problem);
    else this.#moreProblems++;
  }
}

/** @param lengths Bytes of each line. */
export function cutJobs(lengths: readonly number[]): JobCut[] {
  const wanted = Math.ceil(lengths.length / jobsWanted);
  const lines = Math.min(Math.max(wanted, jobLines.least), jobLines.most);
  const jobs: JobCut[] = [];
  let job: JobCut = { offset: 0, bytes: 0, firstLine: 0, lines: 0 };
  for (const [line, bytes] of lengths.entries()) {
    if (job.lines === lines || (job.lines > 0 && job.bytes + bytes > maxJobBytes)) {
      jobs.push(job);
      job = { offset: job.offset + job.bytes, bytes: 0, firstLine: line, lines: 0 };
    }
    job.bytes += bytes;
    job.lines++;
  }
  if (job.lines > 0) jobs.push(job);
  return jobs;
}

/** @throws LineProblem for gzip that is broken or cut off. */
async function* chunksOf(path: string): AsyncGenerator<Buffer> {
  const isCompressed = isGzip(path);
  const file = createReadStream(path, { highWaterMark: chunkBytes });
  if (!isCompressed) {
    yield* file as AsyncIterable<Buffer>;
    return;
  }
  const plain = createGunzip({ chunkSize: chunkBytes });
  // Its error is that of `plain`, which is read below.
  pipeline(file, plain, () => undefined);
  try {
    yield* plain as AsyncIterable<Buffer>;
  } catch (error) {
    if (!((error as NodeJS.ErrnoException).code ?? "").startsWith("Z_")) throw error;
    const message = `the input is gzip that cannot be decompressed: ${(error as Error).message}`;
    throw new LineProblem("invalid_encoding", null, message);
  } finally {
    file.destroy();
  }
}

function isGzip(path: string): boolean {
  const file = openSync(path, "r");
  try {
    const head = Buffer.alloc(gzipMagic.length);
    readSync(file, head, 0, head.length, 0);
    return gzipMagic.every((byte, at) => head[at] === byte);
  } finally {
    closeSync(file);
  }
}
