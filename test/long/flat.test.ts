/**
 * Ten thousand requests of every kind, a third of them cancelled at random points, and nothing is left of
 * them: no block, no ledger record, no job, no memory. The workers compute nothing (bench/null), so what grows is
 * ours. GLM_RELAY_SEED replays a run's choices (not its timing).
 */
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Redis } from "ioredis";
import { afterAll, beforeAll, expect, it } from "vitest";
import { NullCluster } from "../../bench/null/cluster.js";
import { nullNextToken } from "../../bench/null/engine.js";
import { uniform } from "../../bench/random-values.js";
import { percentile } from "../../bench/report.js";
import { readServerSentEvents } from "../../cli/sse.js";
import { packageRoot } from "../../common/package.js";
import { until } from "../support/cluster.js";
import { type HeldMemory, probeSocket } from "../support/heap-probe.js";

const seed = Number(process.env.GLM_RELAY_SEED ?? 20_261_125);
const rounds = 20;
const requestsPerRound = 500;
const clients = 48;
/**
 * How far the median of the last quarter's rounds may lie above that of the quarter before it, 2,500 requests
 * earlier: a leak of 200 bytes per request is found. Undisturbed it was 150 to 270 KB in a coordinator, whose
 * code is still being compiled. Resident memory goes up and down by 10 MB with the garbage between collections, so
 * there the second half is held against the first.
 */
const heapGrowthBytes = 500_000;
const residentGrowthBytes = 16_000_000;

const random = uniform(seed);
const below = (bound: number) => Math.floor(random() * bound);
const ids = (count: number) => Array.from({ length: count }, () => 300 + below(1_000));
/** Prompts that begin alike share blocks. */
const beginnings = Array.from({ length: 24 }, () => ids(1 + below(160)));

interface Asked {
  path: string;
  body: Record<string, unknown>;
  stream: boolean;
  /** What each choice answers; null where the ids of the prompt are not known here. */
  expected: number[] | null;
  choices: number;
  /** Leaves after so many events, or so many milliseconds; null stays. */
  leave: { events: number; ms: number } | null;
}

function draw(): Asked {
  const max_tokens = 1 + below(60);
  const choices = 1 + below(3);
  const stream = random() < 0.5;
  const common = { max_tokens, n: choices, ignore_eos: true, stream, return_token_ids: true };
  const sampling = random() < 0.5 ? { temperature: 0 } : { temperature: 0.8, top_p: 0.9, seed: below(1_000) };
  const leave = random() < 1 / 3 ? { events: below(max_tokens), ms: below(60) } : null;
  const asked = { stream, choices, leave };
  const kind = random();
  if (kind < 0.1) {
    const messages = [{ role: "user", content: `what is ${below(100)} and ${below(100)}?` }];
    const body = { ...common, ...sampling, messages };
    return { ...asked, path: "/v1/chat/completions", body, expected: null };
  }
  if (kind < 0.2) {
    const prompt = "once upon a time ".repeat(1 + below(8));
    return { ...asked, path: "/v1/completions", body: { ...common, ...sampling, prompt }, expected: null };
  }
  const own = ids(1 + below(120));
  const prompt = random() < 0.5 ? own : [...beginnings[below(beginnings.length)]!, ...own];
  const expected = following(prompt.at(-1)!, max_tokens);
  return { ...asked, path: "/v1/completions", body: { ...common, ...sampling, prompt }, expected };
}

function following(token: number, count: number): number[] {
  const tokens: number[] = [];
  for (let last = token; tokens.length < count; tokens.push(last)) last = nullNextToken(last);
  return tokens;
}

interface Choice {
  index: number;
  token_ids?: number[];
}

const folder = mkdtempSync(join(tmpdir(), "glm-relay-flat-"));
let cluster: NullCluster;
let redis: Redis;

beforeAll(async () => {
  const outer = process.env.NODE_OPTIONS;
  const probe = pathToFileURL(join(packageRoot, "dist/test/support/heap-probe.js")).href;
  process.env.NODE_OPTIONS = `${outer ?? ""} --import=${probe}`;
  process.env.HEAP_PROBE_FOLDER = folder;
  try {
    cluster = await NullCluster.start({ stages: 2 });
  } finally {
    if (outer === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = outer;
    delete process.env.HEAP_PROBE_FOLDER;
  }
  redis = new Redis(cluster.redisUrl);
});

afterAll(async () => {
  redis?.disconnect();
  await cluster?.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** @returns Whether it left before the end. */
async function ask({ path, body, stream, expected, choices, leave }: Asked): Promise<boolean> {
  const client = new AbortController();
  const timer = leave === null ? undefined : setTimeout(() => client.abort(), leave.ms);
  const tokens = Array.from({ length: choices }, (): number[] => []);
  try {
    const response = await fetch(cluster.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: client.signal,
    });
    if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
    if (stream) {
      let events = 0;
      for await (const data of readServerSentEvents(response.body!)) {
        if (data === "[DONE]") break;
        if (events++ === leave?.events) client.abort();
        const event = JSON.parse(data) as { choices: Choice[]; error?: unknown };
        if (event.error !== undefined) throw new Error(data);
        for (const { index, token_ids = [] } of event.choices) tokens[index]!.push(...token_ids);
      }
    } else {
      const answer = (await response.json()) as { choices: Choice[] };
      for (const { index, token_ids = [] } of answer.choices) tokens[index]!.push(...token_ids);
    }
  } catch (error) {
    if (client.signal.aborted) return true;
    throw error;
  } finally {
    clearTimeout(timer);
  }
  for (const got of tokens) {
    if (expected === null) expect(got).toHaveLength(body.max_tokens as number);
    else expect(got, `seed ${seed}, ${JSON.stringify(body)}`).toEqual(expected);
  }
  return false;
}

async function round(): Promise<{ left: number }> {
  let begun = 0;
  let left = 0;
  const client = async () => {
    while (begun < requestsPerRound) {
      begun++;
      if (await ask(draw())) left++;
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  return { left };
}

async function isEmpty(): Promise<boolean> {
  const { blocks, sequences } = await cluster.view();
  return blocks.used === 0 && sequences.running === 0 && sequences.waiting === 0;
}

const processes = () => [
  { name: "coordinator", pid: cluster.coordinator.pid! },
  ...cluster.workers.map(({ pid }, stage) => ({ name: `worker ${stage}`, pid: pid! })),
];

function heldBy(pid: number): Promise<HeldMemory> {
  return new Promise((resolve, reject) => {
    let text = "";
    connect(probeSocket(folder, pid))
      .on("data", (data) => {
        text += data.toString();
      })
      .on("error", reject)
      .on("close", () => resolve(JSON.parse(text) as HeldMemory));
  });
}

it(`${rounds * requestsPerRound} requests leave nothing behind`, async () => {
  const samples = new Map(processes().map(({ name }) => [name, [] as HeldMemory[]]));
  let left = 0;
  for (let count = 0; count < rounds; count++) {
    left += (await round()).left;
    await until("all blocks to be back", isEmpty);
    for (const { name, pid } of processes()) samples.get(name)!.push(await heldBy(pid));
  }
  // Those that only meant to leave and were answered before are not counted.
  expect(left).toBeGreaterThan((rounds * requestsPerRound) / 10);

  // Records are deleted behind the answers.
  const keys = () => redis.keys("glm-relay:*");
  const leftover = /:ledger:|:requests:(?!meta$|events$|marker$|pc$|id$|stalled-check$)/;
  await until("the ledger to be empty", async () => (await keys()).every((key) => !leftover.test(key)));
  expect((await cluster.view()).counters.workersLost).toBe(0);

  const median = (values: number[]) => percentile(values, 50);
  const growth: Record<string, { heap: number; rss: number }> = {};
  for (const [name, all] of samples) {
    const [heap, rss] = [all.map((sample) => sample.heap), all.map((sample) => sample.rss)];
    const [half, quarter] = [rounds / 2, rounds / 4];
    growth[name] = {
      heap: median(heap.slice(-quarter)) - median(heap.slice(-half, -quarter)),
      rss: median(rss.slice(-half)) - median(rss.slice(0, half)),
    };
  }
  console.log(`${left} of ${rounds * requestsPerRound} left before the end; grown by`, growth);
  for (const [name, { heap, rss }] of Object.entries(growth)) {
    expect(heap, `heap of ${name}`).toBeLessThan(heapGrowthBytes);
    expect(rss, `resident memory of ${name}`).toBeLessThan(residentGrowthBytes);
  }
});
