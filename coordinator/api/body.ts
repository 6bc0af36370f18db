/**
 * Request bodies: bytes to JSON. Read here and not by fastify for two reasons: bytes that are not UTF-8
 * must be refused, not replaced by U+FFFD, and a body that is too large is read to its end and thrown
 * away, since a socket closed with unread bytes is reset and the client never sees the 413.
 */
import type { IncomingMessage } from "node:http";
import type { FastifyInstance } from "fastify";
import { RelayError } from "../../common/errors.js";
import { maxBodyBytes } from "../../common/limits.js";
import { bodyTooLarge } from "./errors.js";
import { maxDiscardedBytes } from "./limits.js";

export function installJsonParser(server: FastifyInstance): void {
  server.removeAllContentTypeParsers();
  server.addContentTypeParser("application/json", async (_request: unknown, payload: IncomingMessage) => {
    const encoding = payload.headers["content-encoding"];
    if (encoding !== undefined && encoding !== "identity") {
      throw new RelayError("unsupported_media_type", "the request body must not be compressed");
    }
    return parseJson(await readBody(payload));
  });
}

async function readBody(payload: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of payload as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes <= maxBodyBytes) chunks.push(chunk);
      else chunks.length = 0;
      if (bytes > maxDiscardedBytes) break;
    }
  } catch (cause) {
    throw new RelayError("cancelled", "the client left while its request was being read", { cause });
  }
  if (bytes > maxBodyBytes) throw bodyTooLarge();
  return Buffer.concat(chunks);
}

/** @throws RelayError invalid_json */
export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new RelayError("invalid_json", "the request body is not valid UTF-8");
  }
  if (text.trim() === "") throw new RelayError("invalid_json", "the request body is empty, expected JSON");
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RelayError("invalid_json", `the request body is not valid JSON: ${(error as Error).message}`);
  }
}
