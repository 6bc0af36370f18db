/** The two steps of a batch that move files, with their progress shown. */
import type { BatchObject } from "../../coordinator/batches/batch.js";
import type { BatchClient } from "./client.js";
import type { SubmitFlags } from "./options.js";
import { uploadProgress } from "./progress.js";
import { copyResults, type Results, writeResults } from "./results.js";
import { type BatchOptions, type Submission, submit } from "./submit.js";
import type { Session } from "./watch.js";

/** @param save See submit. */
export async function begin(
  client: BatchClient,
  session: Session,
  input: string,
  flags: SubmitFlags,
  submission: Submission,
  save: () => Promise<void>,
): Promise<BatchObject> {
  const options: BatchOptions = {
    ...(flags.endpoint === undefined ? {} : { endpoint: flags.endpoint }),
    completion_window: flags.window,
    ...(flags.metadata === undefined ? {} : { metadata: flags.metadata }),
    ...(flags.priority === undefined ? {} : { priority: flags.priority }),
    ...(flags.tokenBudget === undefined ? {} : { token_budget: flags.tokenBudget }),
    ...(flags.webhook === undefined ? {} : { webhook: { url: flags.webhook } }),
  };
  const batch = await submit(client, input, options, submission, {
    patience: session.patience,
    save,
    onBytes: (sent, total) => {
      session.instead = uploadProgress(sent, total);
    },
  });
  session.instead = null;
  session.tracker.note(batch, performance.now());
  return batch;
}

/**
 * @param file Null: standard output.
 * @returns Null for a batch that was never run.
 */
export function fetchResults(
  client: BatchClient,
  session: Session,
  batch: BatchObject,
  file: string | null,
): Promise<Results | null> {
  session.tracker.note(batch, performance.now());
  if (batch.status === "failed") return Promise.resolve(null);
  if (file === null) return copyResults(client, batch, session.patience, process.stdout);
  return writeResults(client, batch, file, session.patience);
}
