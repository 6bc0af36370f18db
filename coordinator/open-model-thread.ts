/** The thread of open-model.ts. */
import { parentPort, workerData } from "node:worker_threads";
import { openModel } from "../checkpoint/index.js";
import { RelayError } from "../common/errors.js";
import type { OpenResult, OpenTask } from "./open-model.js";

async function open({ directory, options }: OpenTask): Promise<OpenResult> {
  try {
    return { model: await openModel(directory, options) };
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    return { code: error.code, message: error.message };
  }
}

parentPort!.postMessage(await open(workerData as OpenTask));
