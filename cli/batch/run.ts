/** `glm-relay batch run`: submit, wait and results in one, which goes on where an earlier run of it was ended. */
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { fetchCluster } from "../api.js";
import { CommandError, exitStatus } from "../errors.js";
import { clientKey } from "../secrets.js";
import type { BatchClient } from "./client.js";
import { clientOf, commandLine, type SubmitFlags } from "./options.js";
import { lockOutput, outputPath } from "./output-file.js";
import type { Results } from "./results.js";
import { CallError } from "./retry.js";
import { RunState } from "./run-state.js";
import { begin, fetchResults } from "./steps.js";
import { summarize } from "./summary.js";
import { conclude, nowS, printJson, tell, tellGoesOn } from "./tell.js";
import { Session } from "./watch.js";

export async function run(input: string, output: string, flags: SubmitFlags): Promise<void> {
  const file = await outputPath(output);
  const lock = await lockOutput(file);
  try {
    const state = await RunState.open(input, file);
    // A wrong address is told at once; later, a coordinator that is away is waited for.
    await fetchCluster(flags.url, clientKey(flags));
    await runToEnd(clientOf(flags), state, { input, output, file, flags });
  } finally {
    lock.close();
  }
}

async function runToEnd(
  client: BatchClient,
  state: RunState,
  { input, output, file, flags }: { input: string; output: string; file: string; flags: SubmitFlags },
): Promise<void> {
  const { submission } = state;
  if (submission.batchId !== null) tell(`going on with ${submission.batchId}`);
  const session = new Session();
  let batch: BatchObject | null = null;
  let results: Results | null;
  try {
    if (submission.batchId === null) {
      const made = await begin(client, session, input, flags, submission, () => state.save());
      session.print(`submitted as ${made.id}`);
    }
    batch = await session.follow(client, submission.batchId!);
    results = batch.status === "failed" ? null : await fetchResults(client, session, batch, file);
    session.end();
  } catch (error) {
    session.end();
    if (session.signal === null) throw await explain(error, state, batch !== null);
    const again = commandLine("run", [input, output], flags);
    if (submission.batchId === null)
      tell(`${session.signal}: nothing was submitted; this does it:\n  ${again}`);
    else tellGoesOn(session.signal, again, submission.batchId, flags);
    process.exitCode = exitStatus.failed;
    return;
  }
  await state.remove();
  if (flags.json) printJson({ ...summarize(batch, nowS()), output: results === null ? null : file });
  conclude(batch, `${input}:`, results, flags);
}

/**
 * What a failure leaves behind: a state that cannot go on is no use, or needs a word.
 * @param ended The batch was followed to its end.
 */
async function explain(error: unknown, state: RunState, ended: boolean): Promise<unknown> {
  if (!(error instanceof CallError) || error.passing) return error;
  const { batchId } = state.submission;
  if (batchId === null) {
    // It was refused, so the next run begins anew.
    await state.remove();
    return error;
  }
  if (error.httpStatus !== 404) return error;
  const what = ended
    ? `the answers of ${batchId} are gone (${error.message})`
    : `the coordinator does not know ${batchId} (any more)`;
  return new CommandError(`${what}: remove ${state.file} to begin anew`, error.code);
}
