/** `glm-relay batch`: files of requests that the coordinator works through, and what comes of them. */
import { type Command, InvalidArgumentError } from "commander";
import { type BatchObject, isFinal } from "../../coordinator/batches/batch.js";
import { fetchCluster } from "../api.js";
import { CommandError, exitStatus } from "../errors.js";
import { httpUrl, integer } from "../options.js";
import { defaultUrl } from "../status.js";
import { formatCount, formatTable, shellWord } from "../text.js";
import { BatchClient } from "./client.js";
import { lockOutput, outputPath } from "./output-file.js";
import { uploadProgress } from "./progress.js";
import { copyResults, type Results, writeResults } from "./results.js";
import { CallError } from "./retry.js";
import { RunState } from "./run-state.js";
import { type BatchOptions, newSubmission, type Submission, submit } from "./submit.js";
import { formatBatch, formatSummary, formatTime, summarize } from "./summary.js";
import { Session } from "./watch.js";

const priorityMax = 100;
const listLimitMax = 100;

interface CommonFlags {
  url: string;
  json?: boolean;
}

interface SubmitFlags extends CommonFlags {
  endpoint?: string;
  window: string;
  metadata?: Record<string, string>;
  priority?: number;
  tokenBudget?: number;
  webhook?: string;
}

export function addBatchCommand(program: Command): void {
  const batch = program
    .command("batch")
    .summary("Works through files of requests.")
    .description(
      "Works through files of requests: the coordinator keeps the file, answers its lines behind interactive " +
        "requests, and keeps the answers until they are fetched. A coordinator that ends, or is killed, goes on when it is back.",
    );
  common(
    submitOptions(batch.command("submit").description("Sends a file of requests and prints the batch's id.")),
  )
    .argument("<in>", inputHelp)
    .action(runSubmit);
  common(batch.command("status").description("Shows one batch."))
    .argument("<batch>", "its id")
    .action(runStatus);
  common(
    batch
      .command("wait")
      .description(
        "Shows the progress of a batch until it has ended. Ctrl-C ends the watching, not the batch.",
      ),
  )
    .argument("<batch>", "its id")
    .action(runWait);
  common(
    batch
      .command("results")
      .description("Writes what an ended batch has answered, errors included, in the order of its input."),
  )
    .argument("<batch>", "its id")
    .argument("<out>", "file of the answers, - for standard output")
    .action(runResults);
  common(
    batch.command("cancel").description("Begins no more lines of a batch; what is answered can be fetched."),
  )
    .argument("<batch>", "its id")
    .action(runCancel);
  common(batch.command("list").description("Lists batches, newest first."))
    .option("--limit <n>", "batches of a page", integer(1, listLimitMax), 20)
    .option("--after <batch>", "id of the last batch of the page before")
    .action(runList);
  common(
    submitOptions(
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
    .action(runRun);
}

const inputHelp = 'file of lines {"custom_id", "method": "POST", "url", "body"}, gzip or not';

function common(command: Command): Command {
  return command
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--json", "print one JSON object on standard output");
}

function submitOptions(command: Command): Command {
  return command
    .option("--endpoint <path>", "what every line asks (default: the url of the first line)")
    .option("--window <time>", "time from now after which no more lines are answered, 1s to 30d", "24h")
    .option("--metadata <key=value>", "pair that stays with the batch; can be repeated", addPair)
    .option("--priority <n>", "batches of a lower number go first (default: 0)", readPriority)
    .option(
      "--token-budget <n>",
      "begins no line once the batch has used so many tokens",
      integer(1, 1e15 - 1),
    )
    .option(
      "--webhook <url>",
      "where the batch's end is told (see the coordinator's --webhook-hosts)",
      webUrl,
    );
}

function addPair(text: string, pairs: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("Expected KEY=VALUE.");
  return { ...pairs, [text.slice(0, at)]: text.slice(at + 1) };
}

function readPriority(text: string): number {
  const value = /^[+-]?\d{1,3}$/.test(text) ? Number(text) : Number.NaN;
  if (Math.abs(value) <= priorityMax) return value;
  throw new InvalidArgumentError(`Expected a whole number from -${priorityMax} to ${priorityMax}.`);
}

/** As it was written: a receiver's query is its own business. */
function webUrl(text: string): string {
  httpUrl(text);
  return text;
}

const tell = (line: string) => process.stderr.write(`${line}\n`);
const printJson = (value: object) => process.stdout.write(`${JSON.stringify(value)}\n`);
const nowS = () => Date.now() / 1_000;

async function runSubmit(input: string, flags: SubmitFlags): Promise<void> {
  const session = new Session();
  try {
    const batch = await begin(
      new BatchClient(flags.url),
      session,
      input,
      flags,
      newSubmission(),
      async () => {},
    );
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
  const batch = await new BatchClient(flags.url).get(id, never());
  if (flags.json) printJson(batch);
  else process.stdout.write(formatBatch(batch, nowS()));
  if (!flags.json) tellProblems(batch, "line ");
}

async function runWait(id: string, flags: CommonFlags): Promise<void> {
  const client = new BatchClient(flags.url);
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
  const client = new BatchClient(flags.url);
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
  if (flags.json) printJson({ ...summarize(batch, nowS()), output: file });
  conclude(batch, "line ", results, flags);
}

async function runCancel(id: string, flags: CommonFlags): Promise<void> {
  const batch = await new BatchClient(flags.url).cancel(id, never());
  if (flags.json) printJson(batch);
  else process.stdout.write(`${batch.id} ${batch.status}\n`);
}

interface ListFlags extends CommonFlags {
  limit: number;
  after?: string;
}

async function runList({ url, json, limit, after }: ListFlags): Promise<void> {
  const page = await new BatchClient(url).list({ after: after ?? null, limit }, never());
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
  if (page.has_more) tell(`more: glm-relay batch list --after ${page.data.at(-1)!.id}`);
}

async function runRun(input: string, output: string, flags: SubmitFlags): Promise<void> {
  const file = await outputPath(output);
  const lock = await lockOutput(file);
  try {
    const state = await RunState.open(input, file);
    // A wrong address is told at once; later, a coordinator that is away is waited for.
    await fetchCluster(flags.url);
    await runState(new BatchClient(flags.url), state, { input, output, file, flags });
  } finally {
    lock.close();
  }
}

async function runState(
  client: BatchClient,
  state: RunState,
  { input, output, file, flags }: { input: string; output: string; file: string; flags: SubmitFlags },
): Promise<void> {
  const { submission } = state;
  if (submission.batchId !== null) tell(`going on with ${submission.batchId}`);
  const session = new Session();
  let batch: BatchObject;
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
    if (session.signal === null) throw await explain(error, state);
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

/** What a failure leaves behind: a state that cannot go on is no use, or needs a word. */
async function explain(error: unknown, state: RunState): Promise<unknown> {
  if (!(error instanceof CallError) || error.passing) return error;
  const { batchId } = state.submission;
  if (batchId === null) {
    // It was refused, so the next run begins anew.
    await state.remove();
    return error;
  }
  if (error.httpStatus !== 404) return error;
  return new CommandError(
    `the coordinator does not know ${batchId} (any more): remove ${state.file} to begin anew`,
    error.code,
  );
}

async function begin(
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

/** @param file Null: standard output. */
function fetchResults(
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

/** Tells what a batch has come to, and ends with 1 when not every line was answered well. */
function conclude(batch: BatchObject, place: string, results: Results | null, flags: CommonFlags): void {
  for (const [code, { count, customId, message }] of results?.failures ?? []) {
    tell(`${formatCount(count)} failed with ${code}, the first is ${JSON.stringify(customId)}: ${message}`);
  }
  tellProblems(batch, place);
  const summary = summarize(batch, nowS());
  if (!flags.json) tell(formatSummary(summary));
  if (batch.status !== "completed" || summary.failed > 0) process.exitCode = exitStatus.failed;
}

/**
 * The coordinator tells a bounded number of them.
 * @param place What stands in front of the number of a line.
 */
function tellProblems(batch: BatchObject, place: string): void {
  for (const { line, message } of batch.errors?.data ?? []) {
    tell(line === null ? message : `${place}${line}: ${message}`);
  }
}

function tellGoesOn(signal: NodeJS.Signals, again: string, id: string, flags: CommonFlags): void {
  tell(`${signal}: the batch goes on without this command`);
  tell(`this continues to watch it:\n  ${again}`);
  tell(`this cancels it:\n  ${commandLine("cancel", [id], { url: flags.url })}`);
}

function commandLine(name: string, args: string[], flags: CommonFlags & Partial<SubmitFlags>): string {
  const { url, endpoint, window, metadata, priority, tokenBudget, webhook, json } = flags;
  return [
    `glm-relay batch ${name}`,
    ...args.map(shellWord),
    ...(url === defaultUrl ? [] : ["--url", shellWord(url)]),
    ...(endpoint === undefined ? [] : ["--endpoint", shellWord(endpoint)]),
    ...(window === undefined || window === "24h" ? [] : ["--window", shellWord(window)]),
    ...Object.entries(metadata ?? {}).flatMap(([key, value]) => ["--metadata", shellWord(`${key}=${value}`)]),
    ...(priority === undefined ? [] : ["--priority", String(priority)]),
    ...(tokenBudget === undefined ? [] : ["--token-budget", String(tokenBudget)]),
    ...(webhook === undefined ? [] : ["--webhook", shellWord(webhook)]),
    ...(json ? ["--json"] : []),
  ].join(" ");
}

/** Of a call that nobody ends early. */
function never(): AbortSignal {
  return new AbortController().signal;
}
