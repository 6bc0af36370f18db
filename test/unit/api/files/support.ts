/** /v1/files over a real server and a real directory. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach } from "vitest";
import type { Logger } from "../../../../common/log.js";
import type { Timing } from "../../../../coordinator/api/limits.js";
import { type Api, createApi } from "../../../../coordinator/api/server.js";
import { DiskGuard } from "../../../../coordinator/files/disk.js";
import { FileStore } from "../../../../coordinator/files/store.js";
import { type Json, post, ScriptedService } from "../support.js";

export let directory: string;
export let store: FileStore;
/** Bytes of the disk that are said to be free. */
export const disk = { free: 0 };
export let api: Api;
/** Of the log. */
export let lines: Json[];

async function start(options: { filesBytes?: number; timing?: Partial<Timing> } = {}): Promise<void> {
  const clock = { nowMs: () => performance.now() };
  // Asked anew each time.
  const guard = new DiskGuard(directory, 1_000, { nowMs: () => clock.nowMs() * 1e6 }, async () => disk.free);
  const log: Logger = pino({ level: "info" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const timers = { timeOfDayMs: () => Date.now() };
  store = await FileStore.open(directory, {
    guard,
    timers,
    log,
    filesBytes: options.filesBytes ?? null,
  });
  const timing = { closeGraceMs: 200, ...options.timing };
  api = await createApi(new ScriptedService(), { host: "127.0.0.1", port: 0, log, timing, files: store });
}

/** A server and a directory for each test of the file that calls this. */
export function serveFiles(): void {
  beforeEach(begin);
  afterEach(end);
}

async function begin(): Promise<void> {
  directory = mkdtempSync(join(tmpdir(), "glm-relay-files-api-"));
  disk.free = 1e12;
  lines = [];
  await start();
}

async function end(): Promise<void> {
  await api.close();
  rmSync(directory, { recursive: true, force: true });
}

/** An API that was given no directory. */
export async function restartWithoutFiles(): Promise<void> {
  await api.close();
  const log = pino({ level: "silent" });
  api = await createApi(new ScriptedService(), {
    host: "127.0.0.1",
    port: 0,
    log,
    timing: { closeGraceMs: 200 },
  });
}

export async function restart(options: Parameters<typeof start>[0]): Promise<void> {
  await api.close();
  await start(options);
}

export type Part = [name: string, value: string | Uint8Array, filename?: string];

export const boundary = "b0undary";
export function multipart(parts: Part[]): Buffer {
  const pieces: Uint8Array[] = [];
  for (const [name, value, filename] of parts) {
    const file = filename === undefined ? "" : `; filename="${filename}"`;
    const type = filename === undefined ? "" : "content-type: application/octet-stream\r\n";
    pieces.push(
      Buffer.from(`--${boundary}\r\ncontent-disposition: form-data; name="${name}"${file}\r\n${type}\r\n`),
    );
    pieces.push(typeof value === "string" ? Buffer.from(value) : value, Buffer.from("\r\n"));
  }
  pieces.push(Buffer.from(`--${boundary}--\r\n`));
  return Buffer.concat(pieces);
}

export const formHeaders = { "content-type": `multipart/form-data; boundary=${boundary}` };
export const upload = (parts: Part[], headers: Record<string, string> = {}) =>
  post(api, "/v1/files", multipart(parts), { ...formHeaders, ...headers });

export const purpose: Part = ["purpose", "batch"];
export const file: Part = ["file", "one\ntwo\n", "in.jsonl"];

export const leftovers = () => [
  ...readdirSync(join(directory, "uploads")),
  ...readdirSync(join(directory, "files")),
];

export async function content(id: string, headers: Record<string, string> = {}, method = "GET") {
  const response = await fetch(`${api.address}/v1/files/${id}/content`, { method, headers });
  return {
    status: response.status,
    headers: response.headers,
    body: Buffer.from(await response.arrayBuffer()),
  };
}

interface Slowness {
  chunked?: boolean;
  /** Written in so many pieces with pauses between them. */
  pieces?: number;
  pauseMs?: number;
  /** Nothing follows these bytes. */
  stopAfter?: number;
  declared?: number;
  /** So many bytes, and the others after this. */
  firstBytes?: number;
  rest?: Promise<void>;
}

/** A client that reads its answer when it has written all that it has to write. */
export function slowUpload(
  body: Buffer,
  slowness: Slowness,
): Promise<{ status: number; headers: Json; body: Json }> {
  const { chunked = false, pieces = 1, pauseMs = 0, stopAfter, declared = body.length } = slowness;
  return new Promise((resolve, reject) => {
    const length = chunked ? {} : { "content-length": declared };
    const request = httpRequest(`${api.address}/v1/files`, {
      method: "POST",
      headers: { ...formHeaders, ...length },
    });
    request.on("response", (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("end", () => {
        request.destroy();
        resolve({ status: response.statusCode!, headers: response.headers, body: JSON.parse(text) });
      });
    });
    request.on("error", reject);
    if (slowness.firstBytes !== undefined) {
      request.write(body.subarray(0, slowness.firstBytes));
      void slowness.rest?.then(() => request.end(body.subarray(slowness.firstBytes)));
      return;
    }
    if (stopAfter !== undefined) {
      request.write(body.subarray(0, stopAfter));
      return;
    }
    const size = Math.ceil(body.length / pieces);
    const write = (at: number) => {
      if (at >= body.length) {
        if (declared === body.length) request.end();
        return;
      }
      request.write(body.subarray(at, at + size));
      setTimeout(() => write(at + size), pauseMs);
    };
    write(0);
  });
}

export async function until(condition: () => boolean): Promise<void> {
  for (const startedMs = performance.now(); !condition(); ) {
    if (performance.now() - startedMs > 10_000)
      throw new Error(`it did not happen\n${JSON.stringify(lines)}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
