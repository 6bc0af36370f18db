/**
 * What a type of weights, activations or KV cache costs in quality: the demo model's held-out questions
 * through a running cluster of two stages, and the likelihood of the right answers, per configuration.
 * Greedy and exact, so a second run gives the same table.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import type { ChatMessage } from "../cli/api.js";
import { CommandError } from "../cli/errors.js";
import { packageRoot } from "../common/package.js";
import { listOf, nameIn, printJson } from "./options.js";
import { note, Progress } from "./progress.js";
import {
  answerNats,
  type ConfigurationScore,
  draw,
  type HeldOutLine,
  type Likelihood,
  qualityTable,
  replaceBetween,
} from "./quality-score.js";
import { uniform } from "./random-values.js";
import { type BenchCluster, withCluster } from "./up.js";

const modelDir = join(packageRoot, "models/demo");
const readmeFile = join(modelDir, "README.md");
const markers = { begin: "<!-- quality: begin -->", end: "<!-- quality: end -->" };

const stages = 2;
const concurrency = 64;
/** The longest answer has 33 characters. */
const maxAnswerTokens = 64;
/** Lines whose answers are scored: drawn uniformly without replacement, the same in every configuration. */
const scoredLines = 2_000;
const drawSeed = 1;
/** The tokens that are scored must be those the model writes: so many of these greedy answers at least. */
const checkedLines = 16;
const checkedEqual = 12;

const int4 = (groupSize: string) => ["--quantization", "int4", "--group-size", groupSize];
const half = ["--dtype", "float16"];

/** Flags of `up` by the name of a column. float16 is the file as it is. */
const configurations: Record<string, readonly string[]> = {
  float32: ["--dtype", "float32"],
  float16: half,
  bfloat16: ["--dtype", "bfloat16"],
  int8: [...half, "--quantization", "int8"],
  "int4-32": [...half, ...int4("32")],
  "int4-32-absmax": [...half, ...int4("32"), "--scales", "absmax"],
  "int4-64": [...half, ...int4("64")],
  "int4-128": [...half, ...int4("128")],
  "int4-row": [...half, ...int4("row")],
  "float16-kv8": [...half, "--kv", "int8"],
  "int4-32-kv8": [...half, ...int4("32"), "--kv", "int8"],
};
const reference = "float16";

/** A line as token ids. */
interface ScoredLine {
  promptTokens: number[];
  /** As the model writes them: metadata line, content, stop token. */
  answerTokens: number[];
}

interface QualityReport {
  markdown: string;
  configurations: {
    name: string;
    flags: readonly string[];
    numericsId: string | null;
    likelihood: Likelihood;
    seconds: number;
  }[];
}

export function addQualityCommand(program: Command): void {
  const names = Object.keys(configurations);
  program
    .command("quality")
    .description("Accuracy and likelihood of the demo model's held-out answers per type of weights.")
    .option("--only <names>", `some of ${names.join(",")}`, listOf(nameIn(configurations)), names)
    .option("--write", "put the table into models/demo/README.md")
    .option("--json", "print JSON")
    .action(async (flags: { only: string[]; write?: boolean; json?: boolean }) => {
      const report = await measure(flags.only);
      if (flags.write === true) writeTable(report.markdown);
      if (flags.json === true) printJson({ name: "quality", ...report });
      else process.stdout.write(`${report.markdown}\n`);
    });
}

function writeTable(markdown: string): void {
  const text = readFileSync(readmeFile, "utf8");
  writeFileSync(readmeFile, replaceBetween(text, markers.begin, markers.end, markdown));
  note(`written into ${readmeFile}`);
}

/** @param names Of `configurations`. */
async function measure(names: readonly string[]): Promise<QualityReport> {
  const lines = readHeldOut();
  const drawn = draw(lines, scoredLines, uniform(drawSeed));
  let scored: ScoredLine[] | null = null;
  const scores: ConfigurationScore[] = [];
  const report: QualityReport["configurations"] = [];
  for (const name of names) {
    const flags = configurations[name]!;
    const started = performance.now();
    await withCluster(
      { model: modelDir, stages, flags: [...flags, "--threads-per-worker", "1"] },
      async (cluster) => {
        const { numericsId } = await cluster.view();
        note(`${name}: ${numericsId}`);
        if (scored === null) {
          scored = await tokenize(cluster, drawn);
          await requireOwnTokens(cluster, scored);
        }
        const answers = await ask(cluster, name, lines);
        const likelihood = await score(cluster, name, scored);
        scores.push({ name, answers, likelihood });
        const seconds = (performance.now() - started) / 1_000;
        report.push({ name, flags, numericsId, likelihood, seconds });
      },
    );
  }
  return { markdown: qualityTable(lines, scores, reference), configurations: report };
}

function readHeldOut(): HeldOutLine[] {
  return readFileSync(join(modelDir, "heldout.jsonl"), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as HeldOutLine)
    .filter(({ split }) => split === "heldout");
}

interface ChatBody {
  choices: { message: { content: string }; finish_reason: string }[];
}

function ask(
  cluster: BenchCluster,
  name: string,
  lines: HeldOutLine[],
): Promise<ConfigurationScore["answers"]> {
  const progress = new Progress(`${name}, questions`, lines.length);
  return mapBounded(lines, concurrency, async ({ messages }) => {
    const body = { messages, temperature: 0, max_tokens: maxAnswerTokens };
    const { choices } = await cluster.post<ChatBody>("/v1/chat/completions", body);
    progress.add();
    return { text: choices[0]!.message.content, finishReason: choices[0]!.finish_reason };
  });
}

interface CompletionBody {
  choices: { logprobs: { token_logprobs: (number | null)[] }; token_ids: number[] }[];
}

async function score(cluster: BenchCluster, name: string, lines: ScoredLine[]): Promise<Likelihood> {
  const progress = new Progress(`${name}, scored answers`, lines.length);
  const nats = await mapBounded(lines, concurrency, async ({ promptTokens, answerTokens }) => {
    const { choices } = await cluster.post<CompletionBody>("/v1/completions", {
      prompt: [...promptTokens, ...answerTokens],
      max_tokens: 0,
      echo: true,
      logprobs: 0,
    });
    progress.add();
    return answerNats(choices[0]!.logprobs.token_logprobs, answerTokens.length);
  });
  return {
    // In the lines' order, so that the sum does not depend on who answered first.
    nats: nats.reduce((sum, value) => sum + value, 0),
    tokens: lines.reduce((sum, { answerTokens }) => sum + answerTokens.length, 0),
  };
}

/** The answer stands where the chat format puts it when the conversation goes on: its end is the next role. */
async function tokenize(cluster: BenchCluster, lines: HeldOutLine[]): Promise<ScoredLine[]> {
  const encode = async (messages: ChatMessage[], generate: boolean): Promise<number[]> => {
    const body = { messages, add_generation_prompt: generate };
    return (await cluster.post<{ tokens: number[] }>("/tokenize", body)).tokens;
  };
  return mapBounded(lines, concurrency, async ({ messages, answer }) => {
    const answered: ChatMessage[] = [...messages, { role: "assistant", content: answer }];
    const [promptTokens, history, longer] = await Promise.all([
      encode(messages, true),
      encode(answered, false),
      encode([...answered, { role: "user", content: "" }], false),
    ]);
    return { promptTokens, answerTokens: longer.slice(promptTokens.length, history.length + 1) };
  });
}

async function requireOwnTokens(cluster: BenchCluster, lines: ScoredLine[]): Promise<void> {
  const checked = lines.slice(0, checkedLines);
  const equal = await mapBounded(checked, concurrency, async ({ promptTokens, answerTokens }) => {
    const { choices } = await cluster.post<CompletionBody>("/v1/completions", {
      prompt: promptTokens,
      max_tokens: answerTokens.length,
      ignore_eos: true,
      temperature: 0,
      return_token_ids: true,
    });
    return String(choices[0]!.token_ids) === String(answerTokens);
  });
  const count = equal.filter(Boolean).length;
  note(`greedy decoding writes exactly the scored tokens in ${count} of ${checked.length} examples`);
  if (count >= checkedEqual) return;
  throw new CommandError(
    `only ${count} of ${checked.length} greedy answers are the tokens to be scored, expected ${checkedEqual}`,
  );
}

/** Runs `work` on every item, at most `limit` at a time. @returns Results in the items' order. */
async function mapBounded<T, R>(
  items: readonly T[],
  limit: number,
  work: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results: R[] = new Array<R>(items.length);
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]!, index);
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, lane));
  return results;
}
