/** Files and batches through the API of a running coordinator, for tests. */
import { setTimeout as sleep } from "node:timers/promises";
import { type BatchObject, isFinal } from "../../coordinator/batches/batch.js";
import type { FileObject } from "../../coordinator/files/file.js";

/** A coordinator that is started again takes so long at most to answer. */
const awayLimitMs = 60_000;

/** Asks again while the coordinator is away, as it is when it is killed. */
export async function asked(url: string, init: () => RequestInit = () => ({})): Promise<Response> {
  const deadline = performance.now() + awayLimitMs;
  for (;;) {
    try {
      const response = await fetch(url, init());
      if (response.status !== 503) return response;
      await response.arrayBuffer();
    } catch (error) {
      if (performance.now() > deadline) throw error;
    }
    await sleep(50);
  }
}

export async function upload(url: string, content: string | Uint8Array<ArrayBuffer>): Promise<FileObject> {
  const form = () => {
    const data = new FormData();
    data.append("purpose", "batch");
    data.append("file", new Blob([content]), "input.jsonl");
    return { method: "POST", body: data };
  };
  const response = await asked(`${url}/v1/files`, form);
  const body = await response.text();
  if (response.status !== 200) throw new Error(`upload: ${response.status} ${body}`);
  return JSON.parse(body) as FileObject;
}

export async function createBatch(
  url: string,
  fileId: string,
  fields: Record<string, unknown> = {},
): Promise<BatchObject> {
  const body = {
    input_file_id: fileId,
    endpoint: "/v1/chat/completions",
    completion_window: "24h",
    ...fields,
  };
  const response = await asked(`${url}/v1/batches`, () => ({
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }));
  const text = await response.text();
  if (response.status !== 200) throw new Error(`create: ${response.status} ${text}`);
  return JSON.parse(text) as BatchObject;
}

export async function getBatch(url: string, id: string): Promise<BatchObject> {
  const response = await asked(`${url}/v1/batches/${id}`);
  const text = await response.text();
  if (response.status !== 200) throw new Error(`get: ${response.status} ${text}`);
  return JSON.parse(text) as BatchObject;
}

/** The batch when `check` holds of it. */
export async function batchUntil(
  url: string,
  id: string,
  check: (batch: BatchObject) => boolean,
  limitMs = 120_000,
): Promise<BatchObject> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    const batch = await getBatch(url, id);
    if (check(batch)) return batch;
    if (performance.now() > deadline) throw new Error(`waited ${limitMs} ms: ${JSON.stringify(batch)}`);
    await sleep(100);
  }
}

export const hasEnded = ({ status }: BatchObject): boolean => isFinal(status);

export interface OutputLine {
  id: string;
  custom_id: string;
  response: { status_code: number; request_id: string; body: any } | null;
  error: { code: string; message: string } | null;
}

/** The lines of an output or error file; none when there is no such file. */
export async function linesOf(url: string, fileId: string | null): Promise<OutputLine[]> {
  if (fileId === null) return [];
  const response = await asked(`${url}/v1/files/${fileId}/content`);
  const text = await response.text();
  if (response.status !== 200) throw new Error(`content: ${response.status} ${text}`);
  if (!text.endsWith("\n")) throw new Error(`the file does not end with a newline: ${text.slice(-100)}`);
  return text
    .slice(0, -1)
    .split("\n")
    .map((line) => JSON.parse(line) as OutputLine);
}

export const requestLine = (customId: string, body: unknown, url = "/v1/chat/completions"): string =>
  JSON.stringify({ custom_id: customId, method: "POST", url, body });
