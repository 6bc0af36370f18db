/**
 * The longest time for which a coordinator stood still, case by case, in a real cluster of the demo model:
 * whatever large things a client can send, since each of them once was a way to stop the heartbeats.
 * And reading a real tokenizer at the start, where GLM_RELAY_TOKENIZERS names a folder with chatglm3-6b.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { LocalCluster } from "../cli/cluster.js";
import { silent } from "../cli/status-line.js";
import { packageRoot } from "../common/package.js";
import { createPromptService } from "../coordinator/prompt/service.js";
import { chatglm3 } from "../models/chatglm3.js";
import { stallSinceLast } from "./loop-stall.js";
import { type LoopStall, LoopWatch } from "./loop-watch.js";
import type { Table } from "./report.js";

const stages = 2;
const rounds = 3;
const idleMs = 1_000;
const MB = 1_000_000;

interface Case {
  name: string;
  run(url: string): Promise<string>;
}

const post = async (url: string, path: string, body: string): Promise<string> => {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body,
  });
  await response.arrayBuffer();
  return String(response.status);
};

/** A case that posts the same body every time; the body is made before the clock runs. */
function posting(name: string, path: string, make: () => unknown): Case {
  let body: string | null = null;
  return {
    name,
    run(url) {
      if (body === null) {
        const made = make();
        body = typeof made === "string" ? made : JSON.stringify(made);
      }
      return post(url, path, body);
    },
  };
}

const ids = (count: number): number[] => Array.from({ length: count }, (_, i) => 300 + (i % 1_000));
const words = (bytes: number): string => "hello world, how are you? ".repeat(bytes / 26);
const messages = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content: "hello" }));
const deep = (depth: number): string => `${"[".repeat(depth)}${"]".repeat(depth)}`;
const score = { max_tokens: 1, echo: true, logprobs: 20, temperature: 0 };

const cases: Case[] = [
  { name: "idle", run: () => sleep(idleMs, "-") },
  posting("completions: 1 MB of text", "/v1/completions", () => ({ prompt: words(MB) })),
  posting("completions: 1 MB of digits", "/v1/completions", () => ({ prompt: "0123456789".repeat(MB / 10) })),
  posting("chat: 1 MB of text", "/v1/chat/completions", () => ({
    messages: [{ role: "user", content: words(MB) }],
  })),
  posting("chat: 4,096 messages", "/v1/chat/completions", () => ({ messages: messages(4_096) })),
  posting("chat: 100,000 text parts", "/v1/chat/completions", () => ({
    messages: [
      { role: "user", content: Array.from({ length: 100_000 }, () => ({ type: "text", text: "a" })) },
    ],
  })),
  posting("completions: 4 MB of text", "/v1/completions", () => ({ prompt: words(4 * MB) })),
  posting("completions: 10^6 ids", "/v1/completions", () => ({
    prompt: Array.from({ length: MB }, (_, i) => i % 10),
  })),
  posting("completions: 10^6 small lists of ids", "/v1/completions", () => ({
    prompt: Array.from({ length: MB }, () => [1]),
  })),
  posting("completions: 256 prompts of 1,000 ids", "/v1/completions", () => ({
    prompt: Array.from({ length: 256 }, () => ids(1_000)),
    max_tokens: 1,
  })),
  posting("completions: 1,000 ids, n = 128", "/v1/completions", () => ({
    prompt: ids(1_000),
    n: 128,
    max_tokens: 1,
    return_token_ids: true,
  })),
  posting("4 MB of brackets", "/v1/completions", () => `{"prompt":"a","x":${deep(2_000_000)}}`),
  posting("4 MB of unknown fields", "/v1/completions", () =>
    Object.fromEntries(Array.from({ length: 200_000 }, (_, i) => [`field${i}`, i])),
  ),
  posting("10^5 stop strings", "/v1/completions", () => ({
    prompt: "a",
    stop: Array.from({ length: 100_000 }, (_, i) => `stop ${i}`),
  })),
  posting("echo with 20 logprobs, 1,000 tokens", "/v1/completions", () => ({ prompt: ids(1_000), ...score })),
  posting("echo with 20 logprobs, 32 x 1,000 tokens", "/v1/completions", () => ({
    prompt: Array.from({ length: 32 }, () => ids(1_000)),
    ...score,
  })),
  posting("64 choices of 500 tokens with 20 logprobs", "/v1/chat/completions", () => ({
    messages: [{ role: "user", content: "hello" }],
    n: 64,
    max_tokens: 500,
    logprobs: true,
    top_logprobs: 20,
    ignore_eos: true,
  })),
  posting("tokenize: 1 MB", "/tokenize", () => ({ prompt: words(MB), return_token_strs: true })),
  posting("tokenize: 1 MB with pieces", "/tokenize", () => ({ content: words(MB), with_pieces: true })),
  posting("detokenize: 800,000 ids", "/detokenize", () => ({ tokens: ids(800_000) })),
  {
    name: "256 small tokenize calls at once",
    run: (url) => burst(url, 256, "/tokenize", (i) => ({ prompt: `hello ${i}` })),
  },
  {
    name: "64 requests at once",
    run: (url) => burst(url, 64, "/v1/completions", (i) => ({ prompt: `hello ${i}`, max_tokens: 64 })),
  },
];

async function burst(url: string, count: number, path: string, body: (i: number) => object): Promise<string> {
  const calls = Array.from({ length: count }, (_, i) => post(url, path, JSON.stringify(body(i))));
  return [...new Set(await Promise.all(calls))].join(" ");
}

export async function eventLoopBench(): Promise<Table> {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-bench-"));
  const socket = join(directory, "probe");
  const outer = process.env.NODE_OPTIONS;
  process.env.NODE_OPTIONS = `--import=${new URL("./event-loop-probe.js", import.meta.url).href}`;
  process.env.EVENT_LOOP_PROBE = socket;
  const cluster = new LocalCluster({ model: join(packageRoot, "models/demo"), stages, port: 0 }, silent);
  const rows: string[][] = [];
  try {
    const url = await cluster.start();
    await post(url, "/v1/completions", JSON.stringify({ prompt: "hello", max_tokens: 100 }));
    for (const { name, run } of cases) {
      const stalls: LoopStall[] = [];
      let status = "";
      for (let round = 0; round < rounds; round++) {
        await stallSinceLast(socket);
        status = await run(url);
        stalls.push(await stallSinceLast(socket));
      }
      rows.push([name, status, ...figures(stalls)]);
    }
  } finally {
    if (outer === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = outer;
    delete process.env.EVENT_LOOP_PROBE;
    await cluster.stop(true);
    rmSync(directory, { recursive: true, force: true });
  }
  rows.push(await tokenizerRow());
  return {
    title: `Demo model, ${stages} stages: longest time the coordinator's event loop stood still (ms), ${rounds} rounds`,
    head: ["case", "status", "own CPU, least", "own CPU, most", "clock, least", "clock, most"],
    rows,
  };
}

async function tokenizerRow(): Promise<string[]> {
  const name = "start: reading the tokenizer of ChatGLM3-6B";
  const folder = process.env.GLM_RELAY_TOKENIZERS;
  if (folder === undefined) return [name, "skipped: GLM_RELAY_TOKENIZERS is not set", "", "", "", ""];
  const stalls: LoopStall[] = [];
  for (let round = 0; round < rounds; round++) {
    const watch = new LoopWatch(1);
    const prompt = await createPromptService(join(folder, "chatglm3-6b"), chatglm3);
    stalls.push(watch.stop());
    await prompt.close();
  }
  return [name, "-", ...figures(stalls)];
}

function figures(stalls: LoopStall[]): string[] {
  const range = (values: number[]) => [Math.min(...values).toFixed(1), Math.max(...values).toFixed(1)];
  return [...range(stalls.map(({ cpuMs }) => cpuMs)), ...range(stalls.map(({ wallMs }) => wallMs))];
}
