/** `glm-relay batch run`: sends a file of requests to a running coordinator and collects the answers in another. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { fetchCluster } from "../api.js";
import { CommandError, exitStatus } from "../errors.js";
import { httpUrl, integer } from "../options.js";
import { listenForStop } from "../signals.js";
import { defaultUrl } from "../status.js";
import { formatCount, formatDuration, shellWord } from "../text.js";
import { BatchClient } from "./client.js";
import { type CheckedInput, checkInput, readRequests } from "./input.js";
import { lockOutput, OutputFile, outputPath } from "./output.js";
import { ProgressDisplay } from "./progress.js";
import { resume } from "./resume.js";
import { BatchRun, drainLimitMs, type RunPorts } from "./run.js";
import { formatSummary, summarize } from "./summary.js";

const concurrencyDefault = 64;
/** Each request that runs is held in memory, and is a connection to the coordinator. */
const concurrencyMax = 1_024;

interface Flags {
  url: string;
  concurrency: number;
  json?: boolean;
}

export function addBatchCommand(program: Command): void {
  const batch = program.command("batch").description("Works through files of requests.");
  batch
    .command("run")
    .summary("sends a file of requests and collects the answers")
    .description(
      "Sends every request of a JSONL file in the format of the OpenAI batch API to a running coordinator " +
        "and writes one line per custom_id to another file, in the order in which the answers arrive. " +
        "The requests are of class batch: interactive ones come before them. " +
        "Where the output file exists, an earlier run is continued: only what it left open is sent.",
    )
    .argument("<in>", 'file of lines {"custom_id", "method": "POST", "url", "body"}')
    .argument("<out>", "file of the answers")
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--concurrency <n>", "requests at the same time", integer(1, concurrencyMax), concurrencyDefault)
    .option("--json", "print the summary as one JSON object on standard output")
    .action(run);
}

const tell = (line: string) => process.stderr.write(`${line}\n`);

async function run(input: string, output: string, flags: Flags): Promise<void> {
  // Whoever watches may leave before the work is done.
  process.stderr.on("error", () => undefined);
  const file = await outputPath(output);
  const checked = await checkInput(input);
  refuseProblems(input, checked);
  const lock = await lockOutput(file);
  const client = new BatchClient(flags.url, flags.concurrency);
  try {
    const { lineOf } = checked;
    const earlier = await resume(file, input, lineOf);
    const { size } = earlier.settled;
    if (size > 0) tell(`${formatCount(size)} of ${formatCount(lineOf.size)} stand in ${output} already`);
    // A wrong address is told at once; later, a coordinator that is away is waited for.
    if (size < lineOf.size) await fetchCluster(flags.url);
    const answers = await OutputFile.open(file);
    const ports: RunPorts = {
      send: (request, signal) => client.send(request, signal),
      append: (line) => answers.append(line),
      pause: (ms, signal) => sleep(ms, undefined, { signal }),
    };
    const batch = new BatchRun(ports, earlier, flags.concurrency, lineOf.size);
    try {
      await watch(batch, () => batch.run(readRequests(input, lineOf)));
    } finally {
      await answers.close();
    }
    conclude(batch, input, output, flags);
  } finally {
    client.close();
    lock.close();
  }
}

function refuseProblems(input: string, { problems, problemCount }: CheckedInput): void {
  if (problemCount === 0) return;
  for (const problem of problems) tell(problem);
  if (problemCount > problems.length) tell(`and ${formatCount(problemCount - problems.length)} more`);
  const lines = problemCount === 1 ? "1 line" : `${formatCount(problemCount)} lines`;
  throw new CommandError(`${lines} of ${input} cannot be sent, so nothing was sent`);
}

/** Runs with the progress shown; the first signal drains, the second ends the process. */
async function watch(batch: BatchRun, work: () => Promise<void>): Promise<void> {
  const display = new ProgressDisplay(process.stderr, () => batch.progress());
  const stop = listenForStop(() => {
    display.stop();
    process.exit(exitStatus.failed);
  });
  void stop.requested.then((signal) => {
    const limit = formatDuration(drainLimitMs / 1_000);
    display.print(`${signal}: waiting up to ${limit} for requests that run; another signal ends at once`);
    batch.drain();
  });
  try {
    await work();
  } finally {
    stop.release();
    display.stop();
  }
}

function conclude(batch: BatchRun, input: string, output: string, flags: Flags): void {
  const { failures, outage } = batch;
  const summary = summarize(batch);
  const { total, failed, remaining } = summary;
  for (const [code, { count, customId, message }] of failures) {
    tell(`${formatCount(count)} failed with ${code}, the first is ${JSON.stringify(customId)}: ${message}`);
  }
  if (flags.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  else tell(formatSummary(summary));
  if (outage !== null) tell(`ended early, because nothing was answered any more: ${outage}`);
  if (remaining > 0) {
    tell(`${formatCount(remaining)} of ${formatCount(total)} are left; this continues:`);
    tell(`  ${commandLine(input, output, flags)}`);
  }
  if (failed > 0 || remaining > 0) process.exitCode = exitStatus.failed;
}

function commandLine(input: string, output: string, { url, concurrency, json }: Flags): string {
  return [
    "glm-relay batch run",
    shellWord(input),
    shellWord(output),
    ...(url === defaultUrl ? [] : ["--url", shellWord(url)]),
    ...(concurrency === concurrencyDefault ? [] : ["--concurrency", String(concurrency)]),
    ...(json ? ["--json"] : []),
  ].join(" ");
}
