/** What a batch has answered, in one file: its output and its errors, in the order of the input. */
import { createWriteStream } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { lineId } from "../../coordinator/batches/line-id.js";
import { syncFolder } from "../../coordinator/files/durable.js";
import { CommandError } from "../errors.js";
import { formatCount } from "../text.js";
import type { BatchClient } from "./client.js";
import type { Patience } from "./retry.js";

/** More than an answer can be. */
const lineBytesMax = 256 * 1024 * 1024;
/** Lines of an input, blank ones counted: more than the largest file can hold. */
const lineNumberMax = 2 ** 28;
/** Kinds of failures that are counted apart; the rest is one kind. */
const failureKindsMax = 8;
const otherFailures = "other";
const newline = 0x0a;

export interface FailureKind {
  count: number;
  /** The first of them. */
  customId: string;
  message: string;
}

export interface Results {
  lines: number;
  /** By code, in the order of appearance. */
  failures: Map<string, FailureKind>;
}

/**
 * Writes the file whole: through one beside it and a rename, so that half of it is never seen.
 * @throws CommandError when the answers cannot be had, or not be written.
 */
export async function writeResults(
  client: BatchClient,
  batch: BatchObject,
  file: string,
  patience: Patience,
): Promise<Results> {
  const beside = `${file}.glm-relay-tmp`;
  try {
    const results = await copyResults(client, batch, patience, createWriteStream(beside));
    const handle = await open(beside, "r+");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(beside, file);
    await syncFolder(dirname(file));
    return results;
  } catch (error) {
    await rm(beside, { force: true });
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new CommandError(`cannot write ${file}: ${(error as Error).message}`);
  }
}

/** The same into a stream, which ends with it unless it is standard output. */
export async function copyResults(
  client: BatchClient,
  batch: BatchObject,
  patience: Patience,
  target: Writable,
): Promise<Results> {
  const results: Results = { lines: 0, failures: new Map() };
  const { output_file_id: output, error_file_id: errors } = batch;
  const lines = mergeLines(
    batch.id,
    output === null ? null : contentOf(client, output, patience),
    errors === null ? null : contentOf(client, errors, patience),
  );
  await pipeline(counted(lines, results), target, { end: target !== process.stdout });
  const { total } = batch.request_counts;
  if (results.lines !== total) {
    throw new CommandError(
      `${client.url} holds ${formatCount(results.lines)} answers of ${batch.id}, expected ${formatCount(total)}`,
    );
  }
  return results;
}

async function* counted(lines: AsyncIterable<MergedLine>, results: Results): AsyncGenerator<Buffer> {
  for await (const { bytes, failed } of lines) {
    results.lines += 1;
    if (failed) noteFailure(results.failures, bytes);
    yield bytes;
  }
}

/** All bytes of a file of the coordinator, however often the connection breaks. */
async function* contentOf(client: BatchClient, id: string, patience: Patience): AsyncGenerator<Buffer> {
  const { bytes } = await patience.call(() => client.file(id, patience.signal));
  for (let from = 0; from < bytes; ) {
    try {
      for await (const chunk of client.content(id, from, patience.signal)) {
        patience.succeeded();
        from += chunk.length;
        yield chunk;
      }
      if (from < bytes) throw new CommandError(`${client.url} gave ${from} of the ${bytes} bytes of ${id}`);
    } catch (error) {
      await patience.failed(error);
    }
  }
}

export interface MergedLine {
  /** With its newline. */
  bytes: Buffer;
  /** It stands in the error file. */
  failed: boolean;
}

/**
 * The lines of both files in the order of the input, which the ids of the lines tell.
 * @throws CommandError for a line that is not one of this batch, or stands in the wrong place.
 */
export async function* mergeLines(
  batchId: string,
  output: AsyncIterable<Buffer> | null,
  errors: AsyncIterable<Buffer> | null,
): AsyncGenerator<MergedLine> {
  const sources = [new Head(output, false), new Head(errors, true)];
  for (const source of sources) await source.advance();
  for (let number = 1; sources.some(({ line }) => line !== null); number++) {
    if (number > lineNumberMax)
      throw new CommandError(`the results hold a line that is not one of ${batchId}`);
    const id = lineId(batchId, number);
    for (const source of sources) {
      if (source.id !== id) continue;
      yield { bytes: source.line!, failed: source.failed };
      await source.advance();
    }
  }
}

/** The first line of what is left of a file. */
class Head {
  line: Buffer | null = null;
  id = "";
  readonly #lines: AsyncGenerator<Buffer> | null;

  constructor(
    bytes: AsyncIterable<Buffer> | null,
    readonly failed: boolean,
  ) {
    this.#lines = bytes === null ? null : splitLines(bytes);
  }

  async advance(): Promise<void> {
    const next = await this.#lines?.next();
    this.line = next === undefined || next.done ? null : next.value;
    this.id = this.line === null ? "" : idOf(this.line);
  }
}

const idPattern = /^\{"id":"(batch_req_[0-9a-f]{32})"/;

function idOf(line: Buffer): string {
  const id = idPattern.exec(line.toString("latin1", 0, 64))?.[1];
  if (id !== undefined) return id;
  throw new CommandError('the results hold a line that does not begin with {"id":"batch_req_...');
}

/** Lines with their newline; a last one gets it. */
export async function* splitLines(bytes: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let parts: Buffer[] = [];
  let length = 0;
  for await (const chunk of bytes) {
    let begin = 0;
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, begin)) {
      yield Buffer.concat([...parts, chunk.subarray(begin, end + 1)]);
      parts = [];
      length = 0;
      begin = end + 1;
    }
    const rest = chunk.subarray(begin);
    length += rest.length;
    if (length > lineBytesMax) {
      throw new CommandError(`the results hold a line above ${formatCount(lineBytesMax)} bytes`);
    }
    if (rest.length > 0) parts.push(rest);
  }
  if (length > 0) yield Buffer.concat([...parts, Buffer.of(newline)]);
}

function noteFailure(failures: Map<string, FailureKind>, bytes: Buffer): void {
  const { customId, code, message } = describe(JSON.parse(bytes.toString("utf8")) as AnsweredLine);
  const kind = failures.has(code) || failures.size < failureKindsMax ? code : otherFailures;
  const known = failures.get(kind);
  if (known === undefined) failures.set(kind, { count: 1, customId, message });
  else known.count += 1;
}

interface AnsweredLine {
  custom_id: string;
  response: { status_code: number; body: { error?: { code?: string; message?: string } } | null } | null;
  error: { code: string; message: string } | null;
}

/** Code and message of a failure, wherever it tells them. */
function describe({ custom_id: customId, response, error }: AnsweredLine): {
  customId: string;
  code: string;
  message: string;
} {
  if (error !== null) return { customId, code: error.code, message: error.message };
  const told = response?.body?.error;
  const status = `status ${response?.status_code}`;
  return { customId, code: told?.code ?? status, message: told?.message ?? status };
}
