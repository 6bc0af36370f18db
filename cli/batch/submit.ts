/** From a file on this machine to a batch of the coordinator. */
import { randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { createGunzip } from "node:zlib";
import { type BatchEndpoint, type BatchObject, batchEndpoints } from "../../coordinator/batches/batch.js";
import { CommandError } from "../errors.js";
import type { BatchClient, NewBatchBody } from "./client.js";
import { CallError, type Patience } from "./retry.js";

/** What the first line is looked for in. */
const peekBytesMax = 1024 * 1024;
/** The pair of a batch's metadata by which whoever made it finds it again. */
export const runKey = "glm-relay-run";
/** A batch that was just made is among the newest. */
const searchedPagesMax = 10;
const pageLimit = 100;

export type BatchOptions = Omit<NewBatchBody, "input_file_id" | "endpoint"> & { endpoint?: string };

/** How far a submission has come; it can go on from there after whatever ended the process. */
export interface Submission {
  /** Stands in the batch's metadata. */
  readonly run: string;
  fileId: string | null;
  /** The batch was asked for, so it may be there although nobody was told. */
  asked: boolean;
  batchId: string | null;
}

export function newSubmission(): Submission {
  return { run: randomUUID(), fileId: null, asked: false, batchId: null };
}

/**
 * Sends the file and makes a batch of it, once: a connection that breaks does not lead to a second one.
 * @param submission Is changed, and saved before each step that could be made twice.
 * @throws CallError for what the coordinator refuses, CommandError when the file cannot be read.
 */
export async function submit(
  client: BatchClient,
  input: string,
  options: BatchOptions,
  submission: Submission,
  ports: {
    patience: Patience;
    save(submission: Submission): Promise<void>;
    onBytes?(sent: number, total: number): void;
  },
): Promise<BatchObject> {
  const { patience, save, onBytes } = ports;
  const endpoint = options.endpoint ?? (await peekEndpoint(input));
  const earlier = submission.asked ? await findRun(client, submission.run, patience) : null;
  if (earlier !== null) return finish(earlier);
  // A file of an earlier process may be gone by now; then it is sent once more.
  for (let known = submission.fileId !== null; ; known = false) {
    if (submission.fileId === null) {
      const { id } = await patience.call(() => client.upload(input, patience.signal, onBytes));
      submission.fileId = id;
    }
    submission.asked = true;
    await save(submission);
    try {
      return await finish(await create({ ...options, endpoint, input_file_id: submission.fileId }));
    } catch (error) {
      if (!known || !(error instanceof CallError) || error.httpStatus !== 404) throw error;
      submission.fileId = null;
    }
  }

  async function create(body: NewBatchBody): Promise<BatchObject> {
    const metadata = { ...body.metadata, [runKey]: submission.run };
    let unsure = false;
    return patience.call(async () => {
      const found = unsure ? await findRun(client, submission.run, patience) : null;
      if (found !== null) return found;
      unsure = true;
      return client.create({ ...body, metadata }, patience.signal);
    });
  }

  async function finish(batch: BatchObject): Promise<BatchObject> {
    submission.batchId = batch.id;
    await save(submission);
    return batch;
  }
}

async function findRun(client: BatchClient, run: string, patience: Patience): Promise<BatchObject | null> {
  let after: string | null = null;
  for (let page = 0; page < searchedPagesMax; page++) {
    const { data, has_more } = await patience.call(() =>
      client.list({ after, limit: pageLimit }, patience.signal),
    );
    const found = data.find(({ metadata }) => metadata?.[runKey] === run);
    if (found !== undefined) return found;
    if (!has_more) return null;
    after = data.at(-1)!.id;
  }
  return null;
}

/**
 * The `url` of the first line that has one: a batch asks one endpoint. Anything else that is wrong with the file
 * is the coordinator's to say.
 */
async function peekEndpoint(file: string): Promise<BatchEndpoint> {
  for (const line of (await peek(file)).split("\n")) {
    try {
      const { url } = JSON.parse(line) as { url?: unknown };
      const found = batchEndpoints.find((each) => each === url);
      if (found !== undefined) return found;
    } catch {
      // Blank, or for the coordinator to refuse.
    }
  }
  return batchEndpoints[0];
}

async function peek(file: string): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    const begin = createReadStream(file, { end: 1 });
    const magic = Buffer.concat(await begin.toArray());
    const raw = createReadStream(file, { end: peekBytesMax - 1 });
    const zipped = magic.length === 2 && magic[0] === 0x1f && magic[1] === 0x8b;
    const content = zipped ? raw.pipe(createGunzip()) : raw;
    raw.on("error", (error) => content.destroy(error));
    for await (const chunk of content as AsyncIterable<Buffer>) {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes >= peekBytesMax) break;
    }
  } catch (error) {
    const { syscall, message } = error as NodeJS.ErrnoException;
    if (syscall !== undefined && chunks.length === 0)
      throw new CommandError(`cannot read ${file}: ${message}`);
  }
  return Buffer.concat(chunks).toString("utf8");
}
