/**
 * What a coordinator can carry: tokens per second through HTTP, queue, scheduler, pipeline, gRPC and
 * server-sent events in front of workers that compute nothing, the time between tokens that is left when an
 * engine takes none, and ten thousand requests at once.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { integer } from "../cli/options.js";
import { NullCluster } from "./null/cluster.js";
import { ClientProcess } from "./null/load.js";
import { listOf, printJson } from "./options.js";
import { type CpuTimes, cpuTimesOf } from "./process-cpu.js";
import { note } from "./progress.js";
import { printMarkdown, printTable, type Table } from "./report.js";

/** What is promised of it (DESIGN.md). */
const target = { tokensPerSecond: 20_000, gapP99Ms: 20, queued: 10_000 };

const promptTokens = 32;
const warmUpMs = 3_000;
/** Answers of the requests that come all at once: it is their number that counts. */
const burstTokens = 8;

interface Flags {
  stages: number[];
  streams: number[];
  tokens: number;
  seconds: number;
  burst: number;
  profile?: string;
  json?: boolean;
  markdown?: boolean;
}

export interface StreamFigures {
  stages: number;
  streams: number;
  tokensPerSecond: number;
  gapMs: { p50: number; p99: number };
  /** The coordinator's. */
  cpuUsPerToken: { all: number; main: number };
  workerUsPerToken: number;
  rowsPerStep: number;
  stallMs: { cpu: number; wall: number };
}

export interface BurstFigures {
  stages: number;
  requests: number;
  statuses: Record<string, number>;
  seconds: number;
  mostWaiting: number;
  cpuMsPerRequest: number;
  stallMs: { cpu: number; wall: number };
}

export function addThroughputCommand(program: Command): void {
  const whole = (from: number, to: number) => listOf(integer(from, to));
  program
    .command("throughput")
    .description("Tokens per second through a cluster whose workers compute nothing.")
    .option("--stages <list>", "workers", whole(1, 8), [2, 4])
    .option("--streams <list>", "answers that are streamed at the same time", whole(1, 4_096), [64, 256])
    .option("--tokens <n>", "tokens of each answer", integer(2, 900), 256)
    .option("--seconds <n>", "how long each is measured", integer(1, 600), 10)
    .option("--burst <n>", "requests at once; 0: none", integer(0, 16_000), target.queued)
    .option("--profile <dir>", "writes a CPU profile of each coordinator there")
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(run);
}

async function run(flags: Flags): Promise<void> {
  const streams: StreamFigures[] = [];
  const bursts: BurstFigures[] = [];
  for (const stages of flags.stages) {
    const nodeFlags = flags.profile === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${flags.profile}`];
    const cluster = await NullCluster.start({ stages, nodeFlags });
    const clients = new ClientProcess(cluster.url);
    try {
      for (const count of flags.streams) {
        note(`${stages} workers, ${count} streams, ${flags.seconds} s`);
        streams.push(await measureStreams(cluster, clients, stages, count, flags));
      }
      if (flags.burst > 0) {
        note(`${stages} workers, ${flags.burst} requests at once`);
        bursts.push(await measureBurst(cluster, clients, stages, flags.burst));
      }
    } finally {
      clients.end();
      await cluster.stop();
    }
  }
  if (flags.json === true) {
    printJson({ name: "throughput", target, streams, bursts });
    return;
  }
  const print = flags.markdown === true ? printMarkdown : printTable;
  print(streamTable(streams, flags.tokens));
  if (bursts.length > 0) print(burstTable(bursts));
}

async function measureStreams(
  cluster: NullCluster,
  clients: ClientProcess,
  stages: number,
  streams: number,
  { tokens, seconds }: Flags,
): Promise<StreamFigures> {
  await clients.start(streams, { promptTokens, tokens });
  await sleep(warmUpMs);
  await clients.count();
  await cluster.longestStall();
  const before = await sample(cluster);
  await sleep(seconds * 1_000);
  const report = await clients.count();
  const after = await sample(cluster);
  const stall = await cluster.longestStall();
  await clients.stop();
  await emptied(cluster);
  const used = (pid: number) => difference(before.cpu.get(pid)!, after.cpu.get(pid)!);
  const perToken = (ms: number) => (ms * 1_000) / report.tokens;
  const own = used(cluster.coordinator.pid!);
  const workersMs = cluster.workers.reduce((sum, { pid }) => sum + used(pid!).allMs, 0);
  return {
    stages,
    streams,
    tokensPerSecond: report.tokens / report.seconds,
    gapMs: report.gapMs,
    cpuUsPerToken: { all: perToken(own.allMs), main: perToken(own.mainMs) },
    workerUsPerToken: perToken(workersMs),
    rowsPerStep: report.tokens / (after.steps - before.steps),
    stallMs: { cpu: stall.cpuMs, wall: stall.wallMs },
  };
}

async function measureBurst(
  cluster: NullCluster,
  clients: ClientProcess,
  stages: number,
  requests: number,
): Promise<BurstFigures> {
  await cluster.longestStall();
  const before = await sample(cluster);
  let mostWaiting = 0;
  const watch = setInterval(async () => {
    const { sequences } = await cluster.view();
    mostWaiting = Math.max(mostWaiting, sequences.waiting + sequences.running);
  }, 250);
  const { seconds, statuses } = await clients
    .burst(requests, { promptTokens, tokens: burstTokens })
    .finally(() => clearInterval(watch));
  const after = await sample(cluster);
  const stall = await cluster.longestStall();
  await emptied(cluster);
  const { allMs } = difference(
    before.cpu.get(cluster.coordinator.pid!)!,
    after.cpu.get(cluster.coordinator.pid!)!,
  );
  return {
    stages,
    requests,
    statuses,
    seconds,
    mostWaiting,
    cpuMsPerRequest: allMs / requests,
    stallMs: { cpu: stall.cpuMs, wall: stall.wallMs },
  };
}

async function sample(cluster: NullCluster): Promise<{ steps: number; cpu: Map<number, CpuTimes> }> {
  const { counters } = await cluster.view();
  const pids = [cluster.coordinator, ...cluster.workers].map(({ pid }) => pid!);
  return { steps: counters.steps, cpu: new Map(pids.map((pid) => [pid, cpuTimesOf(pid)])) };
}

const difference = (from: CpuTimes, to: CpuTimes): CpuTimes => ({
  allMs: to.allMs - from.allMs,
  mainMs: to.mainMs - from.mainMs,
});

const emptyLimitMs = 10_000;

/** What was left is cancelled; the next figures are not to hold its end. */
async function emptied(cluster: NullCluster): Promise<void> {
  for (const until = performance.now() + emptyLimitMs; ; await sleep(50)) {
    const { blocks, sequences } = await cluster.view();
    if (blocks.used === 0 && sequences.running + sequences.waiting === 0) return;
    if (performance.now() < until) continue;
    throw new Error(`${blocks.used} KV blocks are still used ${emptyLimitMs} ms after everybody left`);
  }
}

function streamTable(figures: readonly StreamFigures[], tokens: number): Table {
  return {
    title:
      `Workers that compute nothing, answers of ${tokens} tokens after prompts of ${promptTokens}: ` +
      `promised are ${target.tokensPerSecond} tokens per second, and ${target.gapP99Ms} ms between tokens (p99)`,
    head: [
      "workers",
      "streams",
      "tokens/s",
      "of promised",
      "p50 ms",
      "p99 ms",
      "CPU us/token",
      "main thread",
      "workers' CPU",
      "rows/step",
      "stall ms, CPU",
      "clock",
    ],
    rows: figures.map((each) => [
      String(each.stages),
      String(each.streams),
      each.tokensPerSecond.toFixed(0),
      (each.tokensPerSecond / target.tokensPerSecond).toFixed(2),
      each.gapMs.p50.toFixed(1),
      each.gapMs.p99.toFixed(1),
      each.cpuUsPerToken.all.toFixed(1),
      each.cpuUsPerToken.main.toFixed(1),
      each.workerUsPerToken.toFixed(1),
      each.rowsPerStep.toFixed(1),
      each.stallMs.cpu.toFixed(1),
      each.stallMs.wall.toFixed(1),
    ]),
  };
}

function burstTable(figures: readonly BurstFigures[]): Table {
  return {
    title: `Requests of ${burstTokens} tokens, all at once: promised are ${target.queued}`,
    head: [
      "workers",
      "requests",
      "answers",
      "seconds",
      "most held",
      "CPU ms/request",
      "stall ms, CPU",
      "clock",
    ],
    rows: figures.map((each) => [
      String(each.stages),
      String(each.requests),
      Object.entries(each.statuses)
        .map(([status, count]) => `${status}: ${count}`)
        .join(", "),
      each.seconds.toFixed(1),
      String(each.mostWaiting),
      each.cpuMsPerRequest.toFixed(2),
      each.stallMs.cpu.toFixed(1),
      each.stallMs.wall.toFixed(1),
    ]),
  };
}
