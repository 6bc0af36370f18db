/**
 * /v1/files: takes, shows, gives back and deletes what batches read and write. What keeps the files stands in
 * coordinator/files; each is seen by its own tenant alone.
 */
import { type FileHandle, open } from "node:fs/promises";
import { Readable } from "node:stream";
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { type FileObject, type FilePage, filePurposes } from "../files/file.js";
import type { FileStore } from "../files/store.js";
import { readRange } from "./byte-range.js";
import type { ApiContext, Handler, Route } from "./context.js";
import { show } from "./fields.js";
import { downloadChunkBytes, maxFormBytes, maxIdLength, maxLoggedFields, maxUploads } from "./limits.js";
import { pageObject, readAfter, readLimit, readOneOf } from "./page.js";
import { discardRest } from "./request-rest.js";
import { tenantOf } from "./requests.js";
import { fileTooLarge, receiveForm, uploadSchema } from "./upload-form.js";

/** The limit as OpenAI has it; a page has no more than the second, whatever the limit says. */
const pageLimitMax = 10_000;
const pageFilesMax = 1_000;

const orders = ["desc", "asc"] as const;

const pageParameters = [
  {
    name: "after",
    in: "query",
    required: false,
    description: "Id of the last file of the page before.",
    schema: { type: "string", maxLength: maxIdLength },
  },
  {
    name: "limit",
    in: "query",
    required: false,
    description: `Files of a page; never more than ${pageFilesMax}.`,
    schema: { type: "integer", minimum: 1, maximum: pageLimitMax, default: pageLimitMax },
  },
  {
    name: "order",
    in: "query",
    required: false,
    description: "By when they were made.",
    schema: { type: "string", enum: orders, default: orders[0] },
  },
  {
    name: "purpose",
    in: "query",
    required: false,
    description: "Only files of this purpose.",
    schema: { type: "string", enum: filePurposes },
  },
];

export function fileRoutes(context: ApiContext): Route[] {
  return [
    {
      method: "POST",
      path: "/v1/files",
      summary: "Takes a file, by multipart/form-data; it goes to disk as it comes.",
      form: uploadSchema,
      handler: uploadHandler(context),
    },
    {
      method: "GET",
      path: "/v1/files",
      summary: "Lists files.",
      parameters: pageParameters,
      handler: listHandler(context),
    },
    {
      method: "GET",
      path: "/v1/files/:id",
      summary: "What is known of one file.",
      handler: (request) => find(storeOf(context), request),
    },
    {
      method: "GET",
      path: "/v1/files/:id/content",
      summary: "The bytes of a file, or one range of them.",
      parameters: [
        {
          name: "range",
          in: "header",
          required: false,
          description: "One range of bytes (RFC 9110).",
          schema: { type: "string", examples: ["bytes=0-1023"] },
        },
      ],
      handler: contentHandler(context),
    },
    {
      method: "DELETE",
      path: "/v1/files/:id",
      summary: "Deletes a file. A batch that has begun to read it goes on.",
      handler: deleteHandler(context),
    },
  ];
}

function uploadHandler(context: ApiContext): Handler {
  let uploads = 0;
  return async (request) => {
    try {
      const store = storeOf(context);
      const tenant = tenantOf(request);
      requireForm(request);
      if (uploads >= maxUploads) {
        throw new RelayError("queue_full", `${uploads} files are being uploaded, expected fewer at a time`);
      }
      uploads++;
      try {
        return await upload(context, store, request, tenant);
      } finally {
        uploads--;
      }
    } catch (error) {
      // Answered at once: a client that hears that the disk is full may stop.
      discardRest(request.raw);
      throw error;
    }
  };
}

async function upload(
  { log, timing }: ApiContext,
  store: FileStore,
  request: FastifyRequest,
  tenant: string,
): Promise<FileObject> {
  const coming = Number(request.headers["content-length"] ?? 0);
  if (coming > store.maxBytes + maxFormBytes) throw fileTooLarge(store.maxBytes);
  await store.requireRoom(coming);
  const strict = request.headers["x-glm-strict"] === "1";
  const form = await receiveForm(request, store, timing.uploadStallMs, strict);
  const fields = form.unknown.slice(0, maxLoggedFields).map(show);
  if (fields.length > 0) log.info({ requestId: request.id, fields }, "unknown fields");
  const { filename, expiresAfterS } = form;
  try {
    return await form.upload.finish({ filename, expiresAfterS, tenant, purpose: "batch" });
  } catch (error) {
    await form.upload.discard();
    throw error;
  }
}

function requireForm(request: FastifyRequest): void {
  if (!request.isMultipart()) {
    throw new RelayError("unsupported_media_type", "the Content-Type must be multipart/form-data");
  }
  const encoding = request.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") {
    throw new RelayError(
      "unsupported_media_type",
      "the request body must not be compressed; the file in it may be, with gzip",
    );
  }
}

function listHandler(context: ApiContext): Handler {
  return (request) => {
    const page = readPage(request);
    const found = storeOf(context).list(page, tenantOf(request));
    if (found === null) throw noSuchFile("after", page.after ?? "");
    return pageObject(found);
  };
}

function contentHandler(context: ApiContext): Handler {
  return async (request, reply) => {
    const store = storeOf(context);
    const file = find(store, request);
    // An id never stands for other bytes.
    const etag = `"${file.id}"`;
    reply.header("accept-ranges", "bytes").header("etag", etag);
    const range = wantedRange(request, file, etag);
    if (range === "unsatisfiable") {
      reply.header("content-range", `bytes */${file.bytes}`);
      throw new RelayError(
        "range_not_satisfiable",
        `range: ${show(request.headers.range)} lies behind the end, expected one within ${file.bytes} bytes`,
        { param: "range" },
      );
    }
    const { start, end } = range ?? { start: 0, end: file.bytes - 1 };
    if (range !== null) reply.code(206).header("content-range", `bytes ${start}-${end}/${file.bytes}`);
    // What a client wrote is nothing for a browser to show under our name.
    reply
      .type("application/octet-stream")
      .header("x-content-type-options", "nosniff")
      .header("content-disposition", `attachment; filename*=UTF-8''${encodeName(file.filename)}`)
      .header("content-length", String(end - start + 1));
    if (request.method === "HEAD" || file.bytes === 0) return reply.send(Readable.from([]));
    const content = await openContent(store.pathOf(file.id, tenantOf(request)), file.id);
    // Time in which nothing moves; Node sets it back for the connection's next request.
    reply.raw.setTimeout(context.timing.stalledClientMs, () => reply.raw.destroy());
    return reply.send(content.createReadStream({ start, end, highWaterMark: downloadChunkBytes }));
  };
}

/** It may be deleted at any time; once it is open it is read to its end all the same. */
async function openContent(path: string | null, id: string): Promise<FileHandle> {
  if (path === null) throw noSuchFile("id", id);
  try {
    return await open(path, "r");
  } catch (cause) {
    throw (cause as NodeJS.ErrnoException).code === "ENOENT" ? noSuchFile("id", id) : cause;
  }
}

/** Null: the whole file. */
function wantedRange(request: FastifyRequest, file: FileObject, etag: string): ReturnType<typeof readRange> {
  const { range, "if-range": condition } = request.headers;
  if (condition !== undefined && condition !== etag) return null;
  return readRange(range, file.bytes);
}

function deleteHandler(context: ApiContext): Handler {
  return async (request) => {
    const id = idOf(request);
    if (!(await storeOf(context).remove(id, tenantOf(request)))) throw noSuchFile("id", id);
    return { id, object: "file", deleted: true };
  };
}

function storeOf({ files }: ApiContext): FileStore {
  if (files !== null) return files;
  throw new RelayError("not_supported", "this coordinator keeps no files: start it with --data");
}

function find(store: FileStore, request: FastifyRequest): FileObject {
  const id = idOf(request);
  const file = store.get(id, tenantOf(request));
  if (file === null) throw noSuchFile("id", id);
  return file;
}

function idOf(request: FastifyRequest): string {
  return (request.params as { id: string }).id;
}

function noSuchFile(param: string, id: string): RelayError {
  return new RelayError("not_found", `${param}: ${show(id)} is not known, expected the id of a file`, {
    param,
  });
}

/** Every character that has a meaning in a header is written by its number (RFC 8187). */
function encodeName(name: string): string {
  return encodeURIComponent(name.replace(/\p{Surrogate}/gu, "\ufffd")).replace(
    /['()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/** @throws RelayError invalid_value naming the parameter */
function readPage(request: FastifyRequest): FilePage {
  const { after, limit, order, purpose } = request.query as Record<string, unknown>;
  return {
    after: readAfter(after, "the id of the last file that was seen"),
    limit: Math.min(readLimit(limit, pageLimitMax, pageLimitMax), pageFilesMax),
    order: readOneOf("order", order, orders) ?? orders[0],
    purpose: readOneOf("purpose", purpose, filePurposes),
  };
}
