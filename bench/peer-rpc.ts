/**
 * llama.cpp's own way of computing a model in several processes: each server holds some of the layers and the last one
 * the head; the client holds the embedding, drives the servers, and carries every activation from one to the next. The
 * client is llama-batched-bench: it draws its tokens at random, feeds all prompts at once, and never samples.
 */
import { readFileSync } from "node:fs";
import { createConnection } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { CommandError } from "../cli/errors.js";
import { freePort } from "../cli/redis.js";
import { parseResident, type ResidentBytes } from "./memory.js";
import { OwnedProcess } from "./owned-process.js";
import type { PeerFigures } from "./peer.js";
import type { RpcPrograms } from "./peer-rpc-build.js";
import { decodeKey, type RoundSpeeds, type SpeedTask } from "./speed-task.js";

export const serverCount = 2;
const host = "127.0.0.1";
const startLimitMs = 10_000;
const startPollMs = 20;

export interface RpcRun {
  programs: RpcPrograms;
  file: string;
  threadsPerServer: number;
  task: SpeedTask;
}

/** What is read of a line of llama-batched-bench. */
export interface BatchedLine {
  /** Tokens per prompt, tokens that each sequence decodes, sequences. */
  pp: number;
  tg: number;
  pl: number;
  /** Seconds, and tokens per second of all sequences together. */
  t_pp: number;
  speed_pp: number;
  t_tg: number;
  speed_tg: number;
}

/** @throws CommandError when a server or the client fails; none of them is left. */
export async function runRpc({ programs, file, threadsPerServer, task }: RpcRun): Promise<PeerFigures> {
  const startedMs = performance.now();
  const ports: number[] = [];
  while (ports.length < serverCount) ports.push(await freePort());
  const started: OwnedProcess[] = [];
  const start = (program: string, args: readonly string[]) => {
    const owned = new OwnedProcess(program, args);
    started.push(owned);
    return owned;
  };
  try {
    const servers = ports.map((port) =>
      start(programs.server, [
        ...["--host", host, "--port", String(port)],
        ...["--threads", String(threadsPerServer)],
      ]),
    );
    const failed = Promise.race(servers.map(failureOf));
    await Promise.race([Promise.all(ports.map(listening)), failed]);
    const memory = new MemoryWatch(servers);
    const clientArguments = [
      ...["--model", file, "--rpc", ports.map((port) => `${host}:${port}`).join(",")],
      // Without a split by hand the layers go where memory is free; the output layer counts as one.
      ...["--n-gpu-layers", "all", "--tensor-split", ports.map(() => "1").join(",")],
      ...["--threads", "1", "--output-format", "jsonl"],
    ];
    const measure = async (args: readonly string[]): Promise<Measured> => {
      const client = start(programs.bench, [...clientArguments, ...args]);
      return await Promise.race([linesOf(client, memory), failed]);
    };
    const prefill = await measure(prefillArguments(task));
    const decode = await measure(decodeArguments(task));
    return {
      ...speedsOf(task, prefill.lines, decode.lines),
      loadSeconds: (prefill.readyMs - startedMs) / 1_000,
      ...memory.sum(),
    };
  } finally {
    for (const each of started) each.kill();
    await Promise.all(started.map(({ ended }) => ended));
  }
}

/** The longest prompt comes first once more, uncounted: pages are touched for the first time. */
export function prefillArguments({ prefillLengths }: SpeedTask): string[] {
  const longest = Math.max(...prefillLengths);
  return [...batchedArguments([longest, ...prefillLengths], 1, [1]), "--ubatch-size", String(prefillPart)];
}

export function decodeArguments({ contexts, tokens, sequenceCounts }: SpeedTask): string[] {
  return batchedArguments(contexts, tokens, sequenceCounts);
}

/** Tokens of a prompt that go to the servers at once: with 512, as by default, only one of them computes at a time. */
const prefillPart = 64;
/** Of less llama-batched-bench makes no use: it fails. */
const contextMin = 256;

/** Every sequence has an equal part of the context, also when fewer run. */
function batchedArguments(
  prompts: readonly number[],
  tokens: number,
  sequences: readonly number[],
): string[] {
  const context = Math.max(contextMin, Math.max(...sequences) * (Math.max(...prompts) + tokens));
  return [
    ...["--ctx-size", String(context), "-npp", prompts.join(","), "-ntg", String(tokens)],
    ...["-npl", sequences.join(",")],
  ];
}

/** @throws CommandError when something was not measured: what does not fit the context is left out. */
export function speedsOf(
  task: SpeedTask,
  prefillLines: readonly BatchedLine[],
  decodeLines: readonly BatchedLine[],
): RoundSpeeds {
  const find = (lines: readonly BatchedLine[], prompt: number, sequences: number): BatchedLine => {
    const line = lines.findLast(({ pp, pl }) => pp === prompt && pl === sequences);
    if (line !== undefined) return line;
    throw new CommandError(`llama-batched-bench did not measure ${sequences} prompts of ${prompt} tokens`);
  };
  const speeds: RoundSpeeds = { decode: {}, prefill: {} };
  for (const length of task.prefillLengths) speeds.prefill[length] = find(prefillLines, length, 1).speed_pp;
  for (const context of task.contexts) {
    for (const sequences of task.sequenceCounts) {
      speeds.decode[decodeKey(sequences, context)] = find(decodeLines, context, sequences).speed_tg;
    }
  }
  return speeds;
}

interface Measured {
  lines: BatchedLine[];
  /** When the first measurement began, after a warm-up of its own. */
  readyMs: number;
}

async function linesOf(client: OwnedProcess, memory: MemoryWatch): Promise<Measured> {
  const lines: BatchedLine[] = [];
  let readyMs = 0;
  createInterface({ input: client.stdout }).on("line", (text) => {
    if (!text.startsWith("{")) return;
    memory.look(client);
    const line = JSON.parse(text) as BatchedLine;
    if (lines.length === 0) readyMs = performance.now() - (line.t_pp + line.t_tg) * 1_000;
    lines.push(line);
  });
  if (!(await client.ended)) throw client.failure();
  return { lines, readyMs };
}

/** Servers run for ever: one that ends has failed. */
async function failureOf(server: OwnedProcess): Promise<never> {
  await server.ended;
  throw server.failure();
}

/** @throws CommandError when nobody listens in time. */
async function listening(port: number): Promise<void> {
  const giveUpMs = performance.now() + startLimitMs;
  while (!(await connects(port))) {
    if (performance.now() > giveUpMs)
      throw new CommandError(`no RPC server on port ${port} in ${startLimitMs} ms`);
    await sleep(startPollMs);
  }
}

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ host, port });
    const done = (connected: boolean) => {
      socket.destroy();
      resolve(connected);
    };
    socket.once("connect", () => done(true));
    socket.once("error", () => done(false));
  });
}

/**
 * The memory of the servers and of one client after the other. The most of what was seen of each: a client frees it all
 * just after its last line.
 */
class MemoryWatch {
  readonly #servers: readonly OwnedProcess[];
  readonly #most = new Map<string, ResidentBytes>();

  constructor(servers: readonly OwnedProcess[]) {
    this.#servers = servers;
  }

  look(client: OwnedProcess): void {
    this.#note("client", client);
    for (const [index, server] of this.#servers.entries()) this.#note(`server ${index}`, server);
  }

  sum(): Pick<PeerFigures, "anonymousBytes" | "mappedBytes" | "peakBytes"> {
    const total = (field: keyof ResidentBytes) =>
      [...this.#most.values()].reduce((sum, resident) => sum + resident[field], 0);
    return { anonymousBytes: total("anon"), mappedBytes: total("file"), peakBytes: total("peak") };
  }

  #note(role: string, { pid }: OwnedProcess): void {
    const now = residentOf(pid!);
    if (now === null) return;
    const before = this.#most.get(role) ?? now;
    const most = (field: keyof ResidentBytes) => Math.max(before[field], now[field]);
    this.#most.set(role, { rss: most("rss"), anon: most("anon"), file: most("file"), peak: most("peak") });
  }
}

/** @returns null for a process that has just ended. */
function residentOf(pid: number): ResidentBytes | null {
  try {
    return parseResident(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return null;
  }
}
