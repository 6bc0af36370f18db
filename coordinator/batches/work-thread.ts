/** The thread of batch-thread.ts: one piece of work after the other. */
import { parentPort } from "node:worker_threads";
import { type Work, type WorkAnswer, type WorkKind, workers } from "./work.js";

async function answer<Kind extends WorkKind>(kind: Kind, task: Work[Kind]["task"]): Promise<WorkAnswer> {
  try {
    return { result: await workers[kind](task) };
  } catch (error) {
    return { message: (error as Error).message, code: (error as NodeJS.ErrnoException).code };
  }
}

parentPort!.on("message", async ({ kind, task }: { kind: WorkKind; task: Work[WorkKind]["task"] }) => {
  parentPort!.postMessage(await answer(kind, task as never));
});
