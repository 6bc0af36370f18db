/**
 * `make run`: starts the demo model on four workers, shows one answer and one batch, and serves until
 * Ctrl-C. With ONCE=1 in the environment it ends after the answers.
 */
import { join } from "node:path";
import { packageRoot } from "../common/package.js";
import { fetchCluster, streamChat } from "./api.js";
import { LocalCluster } from "./cluster.js";
import { CommandError, formatFailure, statusOfFailure } from "./errors.js";
import { judge, type Question, readQuestions, tally, type Verdict } from "./questions.js";
import { formatPrecision, formatStages } from "./status.js";
import { StatusLine } from "./status-line.js";
import { formatBar, formatTable } from "./text.js";
import { serve, statusLogMs } from "./up.js";

const stages = 4;
const modelDir = join(packageRoot, "models/demo");
const chatQuestion = "What is the capital of Japan?";
/** Without a terminal a line appears after so many answers. */
const linesEvery = 10;
const barWidth = 30;

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

  print(`\n${questions.length} questions at once, through the queue:`);
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

async function askAll(url: string, questions: Question[]): Promise<{ verdicts: Verdict[]; tokens: number }> {
  let done = 0;
  let tokens = 0;
  showProgress(done, questions.length);
  const verdicts = await Promise.all(
    questions.map(async (question): Promise<Verdict> => {
      try {
        const answer = await streamChat(
          url,
          { messages: question.messages, temperature: 0 },
          () => undefined,
        );
        tokens += answer.completionTokens;
        return judge(question, answer.text);
      } catch (error) {
        return { kind: "failed", question, reason: (error as Error).message };
      } finally {
        done += 1;
        showProgress(done, questions.length);
      }
    }),
  );
  return { verdicts, tokens };
}

function showProgress(done: number, total: number): void {
  if (process.stdout.isTTY) {
    process.stdout.write(`\r${formatBar(done / total, barWidth)} ${done}/${total}`);
    if (done === total) print();
  } else if (done > 0 && (done % linesEvery === 0 || done === total)) {
    print(`${done}/${total} answered`);
  }
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
