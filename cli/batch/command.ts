/** `glm-relay batch`: files of requests that the coordinator works through, and what comes of them. */
import type { Command } from "commander";
import { isFinal } from "../../coordinator/batches/batch.js";
import { CommandError, exitStatus } from "../errors.js";
import { integer } from "../options.js";
import { formatCount, formatTable } from "../text.js";
import {
  addCommonOptions,
  addSubmitOptions,
  type CommonFlags,
  clientOf,
  commandLine,
  inputHelp,
  type SubmitFlags,
} from "./options.js";
import { outputPath } from "./output-file.js";
import type { Results } from "./results.js";
import { run } from "./run.js";
import { begin, fetchResults } from "./steps.js";
import { newSubmission } from "./submit.js";
import { formatBatch, formatTime, summarize } from "./summary.js";
import { conclude, nowS, printJson, tell, tellGoesOn, tellProblems } from "./tell.js";
import { Session } from "./watch.js";

const listLimitMax = 100;

export function addBatchCommand(program: Command): void {
  const batch = program
    .command("batch")
    .summary("Works through files of requests.")
    .description(
      "Works through files of requests: the coordinator keeps the file, answers its lines behind interactive " +
        "requests, and keeps the answers until they are fetched. A coordinator that ends, or is killed, goes on when it is back.",
    );
  addCommonOptions(
    addSubmitOptions(
      batch.command("submit").description("Sends a file of requests and prints the batch's id."),
    ),
  )
    .argument("<in>", inputHelp)
    .action(runSubmit);
  addCommonOptions(batch.command("status").description("Shows one batch."))
    .argument("<batch>", "its id")
    .action(runStatus);
  addCommonOptions(
    batch
      .command("wait")
      .description(
        "Shows the progress of a batch until it has ended. Ctrl-C ends the watching, not the batch.",
      ),
  )
    .argument("<batch>", "its id")
    .action(runWait);
  addCommonOptions(
    batch
      .command("results")
      .description("Writes what an ended batch has answered, errors included, in the order of its input."),
  )
    .argument("<batch>", "its id")
    .argument("<out>", "file of the answers, - for standard output")
    .action(runResults);
  addCommonOptions(
    batch.command("cancel").description("Begins no more lines of a batch; what is answered can be fetched."),
  )
    .argument("<batch>", "its id")
    .action(runCancel);
  addCommonOptions(batch.command("list").description("Lists batches, newest first."))
    .option("--limit <n>", "batches of a page", integer(1, listLimitMax), 20)
    .option("--after <batch>", "id of the last batch of the page before")
    .action(runList);
  addCommonOptions(
    addSubmitOptions(
      batch
        .command("run")
        .summary("Submits a file, waits, and writes the answers to another.")
        .description(
          "Submits a JSONL file in the format of the OpenAI batch API, waits for its end, and writes one line per " +
            "custom_id to another file, in the order of the input. Run again after whatever ended it, " +
            "it goes on with the same batch, whose id stands in OUT.batch.json until OUT is there.",
        ),
    ),
  )
    .argument("<in>", inputHelp)
    .argument("<out>", "file of the answers; must not exist")
    .action(run);
}

async function runSubmit(input: string, flags: SubmitFlags): Promise<void> {
  const session = new Session();
  try {
    const batch = await begin(clientOf(flags), session, input, flags, newSubmission(), async () => {});
    session.end();
    if (flags.json) printJson(batch);
    else process.stdout.write(`${batch.id}\n`);
  } catch (error) {
    session.end();
    if (session.signal === null) throw error;
    throw new CommandError(`${session.signal}: nothing was submitted`);
  }
}

async function runStatus(id: string, flags: CommonFlags): Promise<void> {
  const batch = await clientOf(flags).get(id, never());
  if (flags.json) printJson(batch);
  else process.stdout.write(formatBatch(batch, nowS()));
  if (!flags.json) tellProblems(batch, "line ");
}

async function runWait(id: string, flags: CommonFlags): Promise<void> {
  const client = clientOf(flags);
  // A wrong address or id is told at once; later, a coordinator that is away is waited for.
  let batch = await client.get(id, never());
  const session = new Session();
  try {
    batch = await session.follow(client, id);
    session.end();
  } catch (error) {
    session.end();
    if (session.signal === null) throw error;
    tellGoesOn(session.signal, commandLine("wait", [id], flags), batch.id, flags);
    process.exitCode = exitStatus.failed;
    return;
  }
  if (flags.json) printJson(batch);
  conclude(batch, "line ", null, flags);
}

async function runResults(id: string, output: string, flags: CommonFlags): Promise<void> {
  const client = clientOf(flags);
  const toStdout = output === "-";
  if (toStdout && flags.json) throw new CommandError("--json and - both want standard output", null, 2);
  const batch = await client.get(id, never());
  if (!isFinal(batch.status)) {
    throw new CommandError(
      `${id} is ${batch.status}: its answers are there when it has ended, which this waits for: ` +
        commandLine("wait", [id], flags),
    );
  }
  const file = toStdout ? null : await outputPath(output);
  const session = new Session();
  let results: Results | null;
  try {
    results = await fetchResults(client, session, batch, file);
    session.end();
  } catch (error) {
    session.end();
    // Whoever reads standard output wanted no more.
    if (toStdout && (error as NodeJS.ErrnoException).code === "EPIPE") return;
    throw session.signal === null ? error : new CommandError(`${session.signal}: not everything was written`);
  }
  if (flags.json) printJson({ ...summarize(batch, nowS()), output: results === null ? null : file });
  conclude(batch, "line ", results, flags);
}

async function runCancel(id: string, flags: CommonFlags): Promise<void> {
  const batch = await clientOf(flags).cancel(id, never());
  if (flags.json) printJson(batch);
  else process.stdout.write(`${batch.id} ${batch.status}\n`);
}

interface ListFlags extends CommonFlags {
  limit: number;
  after?: string;
}

async function runList(flags: ListFlags): Promise<void> {
  const { json, limit, after } = flags;
  const page = await clientOf(flags).list({ after: after ?? null, limit }, never());
  if (json) {
    printJson(page);
    return;
  }
  const rows = page.data.map((batch) => {
    const { total, completed, failed } = batch.request_counts;
    const counts = [completed, failed, total].map(formatCount);
    return [batch.id, batch.status, ...counts, String(batch.priority), formatTime(batch.created_at)];
  });
  const head = ["batch", "status", "done", "failed", "lines", "priority", "made"];
  const table = await formatTable(head, rows);
  process.stdout.write(table === "" ? "no batches\n" : `${table}\n`);
  if (!page.has_more) return;
  tell(`more: ${commandLine("list", [], flags)} --limit ${limit} --after ${page.data.at(-1)!.id}`);
}

/** Of a call that nobody ends early. */
function never(): AbortSignal {
  return new AbortController().signal;
}
