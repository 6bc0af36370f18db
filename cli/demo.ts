/**
 * `make run`: starts the demo model on four workers, shows one answer and one batch, and serves until
 * Ctrl-C. With ONCE=1 in the environment it ends after the answers.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packageRoot } from "../common/package.js";
import { fetchCluster, streamChat } from "./api.js";
import { BatchClient } from "./batch/client.js";
import { follow } from "./batch/follow.js";
import { BatchTracker, ProgressDisplay } from "./batch/progress.js";
import { writeResults } from "./batch/results.js";
import { Patience } from "./batch/retry.js";
import { newSubmission, submit } from "./batch/submit.js";
import { LocalCluster } from "./cluster.js";
import { CommandError, formatFailure, statusOfFailure } from "./errors.js";
import { judge, type Question, readQuestions, tally, type Verdict } from "./questions.js";
import { formatPrecision, formatStages } from "./status.js";
import { StatusLine } from "./status-line.js";
import { formatTable } from "./text.js";
import { serve, statusLogMs } from "./up.js";

const stages = 4;
const modelDir = join(packageRoot, "models/demo");
const chatQuestion = "What is the capital of Japan?";

/** Somebody is watching: a coordinator that is away for longer is a failure. */
const patienceMs = 60_000;

const print = (line = "") => process.stdout.write(`${line}\n`);

async function show(url: string, questions: Question[]): Promise<boolean> {
  const view = await fetchCluster(url);
  print(`\nThe plan: ${view.model} in ${formatPrecision(view)} on ${view.stages.length} workers`);
  print(await formatStages(view.stages));

  print(`\nOne question, its answer token by token through all ${view.stages.length} workers:`);
  print(`> ${chatQuestion}`);
  const messages = [{ role: "user" as const, content: chatQuestion }];
  await streamChat(url, { messages, temperature: 0 }, (piece) => process.stdout.write(piece));
  print();

  print(`\n${questions.length} questions as one batch:`);
  const beginMs = performance.now();
  const { verdicts, tokens } = await askAll(url, questions);
  const seconds = (performance.now() - beginMs) / 1000;
  print(await formatTable(["task", "right", "wrong", "failed"], tally(verdicts)));
  for (const verdict of verdicts) if (verdict.kind !== "right") print(describe(verdict));
  print(`${tokens} tokens in ${seconds.toFixed(1)} s: ${Math.round(tokens / seconds)} tokens per second`);

  const failed = verdicts.filter((verdict) => verdict.kind === "failed").length;
  if (process.env.ONCE === "1") {
    if (failed > 0) throw new CommandError(`${failed} of ${questions.length} requests failed`);
    return false;
  }
  print(whatNext(url));
  return true;
}

/** As one batch: the coordinator gets a file of them, and gives one of the answers. */
async function askAll(url: string, questions: Question[]): Promise<{ verdicts: Verdict[]; tokens: number }> {
  const folder = mkdtempSync(join(tmpdir(), "glm-relay-demo-"));
  const tracker = new BatchTracker();
  const display = new ProgressDisplay(process.stdout, () => tracker.progress(performance.now()));
  try {
    const input = join(folder, "questions.jsonl");
    writeFileSync(input, questions.map(requestLine).join(""));
    const client = new BatchClient(url);
    const { signal } = new AbortController();
    const patience = new Patience(signal, (reason) => tracker.away(reason), patienceMs);
    const ports = { patience, save: async () => {} };
    let batch = await submit(client, input, { completion_window: "1h" }, newSubmission(), ports);
    for await (batch of follow(client, batch.id, patience)) tracker.note(batch, performance.now());
    const output = join(folder, "answers.jsonl");
    await writeResults(client, batch, output, patience);
    const answers = readFileSync(output, "utf8").trimEnd().split("\n");
    return {
      verdicts: questions.map((question, index) => verdictOf(question, answers[index]!)),
      tokens: batch.usage.output_tokens,
    };
  } finally {
    display.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

function requestLine({ messages }: Question, index: number): string {
  const body = { messages, temperature: 0 };
  return `${JSON.stringify({ custom_id: `${index}`, method: "POST", url: "/v1/chat/completions", body })}\n`;
}

interface AnswerLine {
  response: {
    body: { choices?: { message: { content: string | null } }[]; error?: { message: string } };
  } | null;
  error: { message: string } | null;
}

function verdictOf(question: Question, line: string): Verdict {
  const { response, error } = JSON.parse(line) as AnswerLine;
  const choice = response?.body.choices?.[0];
  if (choice !== undefined) return judge(question, choice.message.content ?? "");
  const reason = error?.message ?? response?.body.error?.message ?? "no answer";
  return { kind: "failed", question, reason };
}

function describe(verdict: Exclude<Verdict, { kind: "right" }>): string {
  const { question } = verdict;
  const asked = JSON.stringify(question.messages.at(-1)?.content ?? "");
  if (verdict.kind === "failed") return `failed: ${question.task}: ${asked}: ${verdict.reason}`;
  const expected = JSON.stringify(question.answer);
  return `wrong: ${question.task}: ${asked}: ${JSON.stringify(verdict.text)}, expected ${expected}`;
}

function whatNext(url: string): string {
  return `
Serving at ${url} until Ctrl-C. In another terminal:

  curl ${url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "${chatQuestion}"}]}'

  node dist/cli/main.js chat --url ${url}
  node dist/cli/main.js status --url ${url}
  node dist/cli/main.js batch list --url ${url}

Or with any OpenAI client: baseURL "${url}/v1", any apiKey, model "default".
`;
}

try {
  // Read first: a missing file should not cost the start of a cluster.
  const questions = readQuestions(join(modelDir, "questions.jsonl"));
  const cluster = new LocalCluster(
    { model: modelDir, stages, port: 0 },
    new StatusLine(process.stdout, statusLogMs),
  );
  await serve(cluster, (url) => show(url, questions));
} catch (error) {
  process.stderr.write(`${formatFailure(error)}\n`);
  process.exit(statusOfFailure(error));
}
