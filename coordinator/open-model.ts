/**
 * Opens the model in a thread: its tokenizer and the headers of its weights take longer to read than the
 * coordinator may stand still, and a coordinator that starts again has workers that wait for it.
 */
import { Worker } from "node:worker_threads";
import type { Model, OpenOptions } from "../checkpoint/index.js";
import { type ErrorCode, RelayError } from "../common/errors.js";
import { threadFile } from "./thread-file.js";

/** An error crosses as a value: a thrown one would arrive without its code. */
export type OpenResult = { model: Model } | { code: ErrorCode; message: string };

/** Arguments of openModel. */
export interface OpenTask {
  directory: string;
  options: OpenOptions;
}

/** @throws RelayError as openModel does. */
export async function openModelInThread(directory: string, options: OpenOptions): Promise<Model> {
  const workerData: OpenTask = { directory, options };
  const thread = new Worker(threadFile(import.meta.url, "open-model-thread.js"), { workerData });
  const result = await new Promise<OpenResult>((resolve, reject) => {
    thread.once("message", resolve);
    thread.once("error", reject);
    thread.once("exit", () => reject(new Error("the thread that opens the model ended without an answer")));
  });
  if ("model" in result) return result.model;
  throw new RelayError(result.code, result.message);
}
