/**
 * What of a request's body is still to come when its answer is there. It is read and thrown away, because a socket that
 * is closed with unread bytes is reset, and the client never sees its answer; but neither for ever nor without end.
 */
import type { IncomingMessage } from "node:http";
import { maxRestBytes } from "./limits.js";

/** Reads on, whoever read before. */
export function discardRest(request: IncomingMessage): void {
  request.unpipe();
  request.resume();
}

/** Call it when the answer has been sent: what comes then may take so long, and so many bytes. */
export function boundRest(request: IncomingMessage, limitMs: number, maxBytes = maxRestBytes): void {
  if (request.complete || request.destroyed) return;
  let bytes = 0;
  const cut = () => request.destroy();
  const timer = setTimeout(cut, limitMs);
  const count = (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > maxBytes) cut();
  };
  request.on("data", count);
  request.once("end", () => clearTimeout(timer));
  request.once("close", () => clearTimeout(timer));
}
