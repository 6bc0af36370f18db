/**
 * A batch of many short requests through a whole local cluster, from the upload to the output file: lines per second,
 * the coordinator's memory while it runs, and what interactive requests beside it wait for their first token, against
 * the same cluster without a batch.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { integer } from "../cli/options.js";
import { formatBytes } from "../cli/text.js";
import { packageRoot } from "../common/package.js";
import { type BatchObject, isFinal } from "../coordinator/batches/batch.js";
import type { FileObject } from "../coordinator/files/file.js";
import { printJson } from "./options.js";
import { note } from "./progress.js";
import { percentile, printMarkdown, printTable } from "./report.js";
import { type BenchCluster, withCluster } from "./up.js";

const sampleMs = 250;
const interactivePrompt = "12 + 7 = ?";
const interactiveTokens = 8;

interface Flags {
  model: string;
  stages: number;
  lines: number;
  maxTokens: number;
  perSecond: number;
  idleSeconds: number;
  json?: boolean;
  markdown?: boolean;
}

export function addBatchesCommand(program: Command): void {
  program
    .command("batches")
    .description(
      "A batch of many lines beside interactive requests, through the files and batches of the API.",
    )
    .option("--model <dir>", "a model with a chat template", join(packageRoot, "models/demo"))
    .option("--stages <n>", "stages", integer(1, 64), 2)
    .option("--lines <n>", "lines of the batch", integer(1, 50_000), 50_000)
    .option("--max-tokens <n>", "of each answer", integer(1, 1_000), 4)
    .option("--per-second <n>", "interactive requests", integer(1, 100), 10)
    .option("--idle-seconds <n>", "how long they are measured without a batch", integer(1, 600), 20)
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(run);
}

async function run(flags: Flags): Promise<void> {
  const { model, stages } = flags;
  const result = await withCluster({ model, stages }, (cluster) => measure(cluster, flags));
  if (flags.json === true) {
    printJson({ name: "batches", ...flags, ...result });
    return;
  }
  const { idle, beside, alone, together } = result;
  const ms = (values: number[], percent: number) => percentile(values, percent).toFixed(1);
  const memory = ({ residentBytes }: BatchFigures) =>
    [1, 2].map((third) => formatBytes(percentile(thirdOf(residentBytes, third), 50)));
  const drift = ({ residentBytes }: BatchFigures) => {
    const [middle, last] = [1, 2].map((third) => percentile(thirdOf(residentBytes, third), 50)) as [
      number,
      number,
    ];
    return `${(100 * (last / middle - 1)).toFixed(1)} %`;
  };
  (flags.markdown === true ? printMarkdown : printTable)({
    title: `A batch of ${flags.lines} lines, ${flags.maxTokens} tokens each at most, in ${stages} stages; ${flags.perSecond} interactive requests per second of ${interactiveTokens} tokens`,
    head: ["", "lines/s", "seconds", "TTFT p50 (ms)", "p99 (ms)", "RSS, middle third", "last third", "drift"],
    rows: [
      ["interactive alone", "-", "-", ms(idle, 50), ms(idle, 99), "-", "-", "-"],
      [
        "batch alone",
        alone.linesPerSecond.toFixed(0),
        alone.seconds.toFixed(1),
        "-",
        "-",
        ...memory(alone),
        drift(alone),
      ],
      [
        "together",
        together.linesPerSecond.toFixed(0),
        together.seconds.toFixed(1),
        ms(beside, 50),
        ms(beside, 99),
        ...memory(together),
        drift(together),
      ],
    ],
  });
}

interface BatchFigures {
  /** From the request that creates it to its end. */
  seconds: number;
  linesPerSecond: number;
  /** Of the coordinator, sampled. */
  residentBytes: number[];
}

async function measure(cluster: BenchCluster, flags: Flags) {
  const input = await upload(cluster, linesOf(flags));
  await interactive(cluster, flags, sleep(2_000));
  note("interactive requests alone");
  const idle = await interactive(cluster, flags, sleep(1_000 * flags.idleSeconds));
  note("the batch alone");
  const alone = await batch(cluster, input, flags.lines);
  note("both");
  const running = batch(cluster, input, flags.lines);
  const beside = await interactive(cluster, flags, running);
  return { idle, alone, beside, together: await running };
}

function linesOf({ lines, maxTokens }: Flags): string {
  const line = (index: number) => ({
    custom_id: `line-${index}`,
    method: "POST",
    url: "/v1/chat/completions",
    body: {
      messages: [{ role: "user", content: `${index % 97} + ${index % 89} = ?` }],
      max_tokens: maxTokens,
      temperature: 0,
    },
  });
  return Array.from({ length: lines }, (_, index) => `${JSON.stringify(line(index))}\n`).join("");
}

async function upload({ url }: BenchCluster, content: string): Promise<string> {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", new Blob([content]), "input.jsonl");
  const response = await fetch(`${url}/v1/files`, { method: "POST", body: form });
  if (!response.ok) throw new Error(`status ${response.status}: ${await response.text()}`);
  return ((await response.json()) as FileObject).id;
}

async function batch(cluster: BenchCluster, input: string, lines: number): Promise<BatchFigures> {
  const began = performance.now();
  const residentBytes: number[] = [];
  const { id } = await cluster.post<BatchObject>("/v1/batches", {
    input_file_id: input,
    endpoint: "/v1/chat/completions",
    completion_window: "24h",
  });
  for (;;) {
    await sleep(sampleMs);
    const response = await fetch(`${cluster.url}/v1/batches/${id}`);
    const { status, request_counts: counts } = (await response.json()) as BatchObject;
    residentBytes.push(await residentOf(cluster));
    if (!isFinal(status)) continue;
    if (status !== "completed" || counts.completed !== lines) {
      throw new Error(`the batch is ${status}: ${JSON.stringify(counts)}`);
    }
    const seconds = (performance.now() - began) / 1_000;
    return { seconds, linesPerSecond: lines / seconds, residentBytes };
  }
}

async function residentOf({ url }: BenchCluster): Promise<number> {
  const page = await (await fetch(`${url}/metrics`)).text();
  const found = /^process_resident_memory_bytes (\S+)$/m.exec(page);
  if (found === null) throw new Error("no process_resident_memory_bytes in /metrics");
  return Number(found[1]);
}

/** Requests at a fixed rate until `end`. @returns Times to their first tokens in ms. */
async function interactive(
  cluster: BenchCluster,
  { perSecond }: Flags,
  end: Promise<unknown>,
): Promise<number[]> {
  let over = false;
  const ended = end.then(() => {
    over = true;
  });
  const times: number[] = [];
  const ask = async () => {
    const sentMs = performance.now();
    const body = {
      messages: [{ role: "user", content: interactivePrompt }],
      max_tokens: interactiveTokens,
      temperature: 0,
    };
    let first: number | null = null;
    for await (const { choices } of cluster.stream("/v1/chat/completions", body)) {
      if (choices.length > 0) first ??= performance.now() - sentMs;
    }
    times.push(first!);
  };
  const asked: Promise<void>[] = [];
  const beganMs = performance.now();
  for (let number = 1; !over; number++) {
    asked.push(ask());
    await Promise.race([ended, sleep(beganMs + (1_000 * number) / perSecond - performance.now())]);
  }
  await Promise.all(asked);
  return times;
}

const thirdOf = (values: readonly number[], third: number): number[] =>
  values.slice(Math.floor((third * values.length) / 3), Math.ceil(((third + 1) * values.length) / 3));
