/**
 * Real workers and their weight cache: a worker that comes back maps what the first one has made, whatever cut it gets,
 * and nothing that happens to the files in between changes an answer or keeps a cluster from starting.
 */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type CheckpointShape, writeRandomCheckpoint } from "../../bench/random-checkpoint.js";
import { demoModel, TestCluster, type TestProcess } from "../support/cluster.js";
import { TestUp } from "../support/up.js";

const folder = mkdtempSync(join(tmpdir(), "glm-relay-weights-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let clusters: TestCluster[] = [];
afterEach(async () => {
  for (const cluster of clusters) await cluster.stop();
  clusters = [];
});

let directories = 0;
const newData = () => join(folder, `data-${directories++}`);
const weightsOf = (data: string) => join(data, "weights");
const filesIn = (data: string, end: string) =>
  existsSync(weightsOf(data)) ? readdirSync(weightsOf(data)).filter((name) => name.endsWith(end)) : [];

async function start(
  data: string | undefined,
  stages: number,
  model: string = demoModel,
): Promise<TestCluster> {
  const cluster = await TestCluster.start({
    model,
    stages,
    precision: ["--quantization", "int4"],
    probes: true,
    weights: data,
    memory: "1GiB",
  });
  clusters.push(cluster);
  return cluster;
}

async function answer(cluster: TestCluster): Promise<unknown> {
  const request = { prompt: [11, 42, 7, 9], max_tokens: 16, ignore_eos: true, temperature: 0, logprobs: 5 };
  const { status, body } = await cluster.post("/v1/completions", request);
  expect(status).toBe(200);
  return body.choices[0];
}

/** What the worker's log says of its latest load. */
async function read(worker: TestProcess): Promise<{ hits: number; misses: number; mappedBytes: number }> {
  await worker.line(/"weight cache read"/);
  const lines = worker.output.split("\n").filter((line) => line.includes("weight cache read"));
  return JSON.parse(lines.at(-1)!);
}

async function metric(cluster: TestCluster, worker: string, name: string): Promise<number> {
  const { workers } = await cluster.view();
  const { probeAddress } = workers.find(({ id }) => id === worker)!;
  const page = await (await fetch(`http://${probeAddress}/metrics`)).text();
  return Number(new RegExp(`^glm_relay_weight_cache_${name} (\\S+)$`, "m").exec(page)?.[1]);
}

const written = (worker: TestProcess) => worker.line(/"filesWritten":\d+.*"weight cache written"/);

describe("a worker that comes back", () => {
  let plain: unknown;
  let layers: number;
  beforeAll(async () => {
    const cluster = await start(undefined, 2);
    plain = await answer(cluster);
    layers = (await cluster.view()).stages.at(-1)!.layerEnd;
    expect(cluster.workers[0]!.output).not.toContain("weight cache");
  });

  it("maps what the first one has made, and answers the same; so do workers of another cut", async () => {
    const data = newData();
    const cluster = await start(data, 2);
    expect(await answer(cluster)).toEqual(plain);
    for (const worker of cluster.workers) {
      expect(await read(worker)).toMatchObject({ hits: 0, mappedBytes: 0 });
      await written(worker);
    }
    expect(filesIn(data, ".weights")).toHaveLength(layers + 1);
    expect(await metric(cluster, "worker-0", "misses_total")).toBeGreaterThan(0);
    expect(await metric(cluster, "worker-0", "written_bytes_total")).toBeGreaterThan(0);

    cluster.workers[0]!.kill("SIGKILL");
    await cluster.workers[0]!.exited;
    await cluster.revive();
    const back = await read(cluster.workers[0]!);
    expect(back).toMatchObject({ misses: 0 });
    expect(back.hits).toBeGreaterThan(0);
    expect(await answer(cluster)).toEqual(plain);
    expect(await metric(cluster, "worker-0", "hits_total")).toBe(back.hits);
    expect(await metric(cluster, "worker-0", "misses_total")).toBe(0);
    expect(await metric(cluster, "worker-0", "mapped_bytes")).toBe(back.mappedBytes);
    await cluster.stop();

    const other = await start(data, 3);
    const loads = await Promise.all(other.workers.map(read));
    expect(loads.reduce((sum, { hits }) => sum + hits, 0)).toBe(layers + 1);
    expect(loads.every(({ misses }) => misses === 0)).toBe(true);
    expect(await answer(other)).toEqual(plain);
  });

  it("makes a damaged file anew, and says which", async () => {
    const data = newData();
    const cluster = await start(data, 1);
    await written(cluster.workers[0]!);
    const [name] = filesIn(data, ".weights");
    const file = join(weightsOf(data), name!);
    const content = readFileSync(file);
    content[content.length - 1]! ^= 1;
    cluster.workers[0]!.kill("SIGKILL");
    await cluster.workers[0]!.exited;
    writeFileSync(file, content);
    await cluster.revive();
    expect(await read(cluster.workers[0]!)).toMatchObject({ hits: layers, misses: 1 });
    await written(cluster.workers[0]!);
    expect(cluster.workers[0]!.output).toContain(`weight cache: ${file} is not used and made anew`);
    expect(await answer(cluster)).toEqual(plain);
  });

  it("starts without its cache where none can be", async () => {
    const data = newData();
    writeFileSync(data, "a file, not a directory");
    const cluster = await start(data, 1);
    await written(cluster.workers[0]!);
    expect(cluster.workers[0]!.output.match(/weight cache: nothing more is kept/g)).toHaveLength(1);
    expect(await answer(cluster)).toEqual(plain);
  });
});

it("a worker that is killed while it writes leaves nothing that is used", async () => {
  const model = join(folder, "model");
  mkdirSync(model);
  const shape: CheckpointShape = {
    layerCount: 3,
    hiddenSize: 1024,
    headCount: 8,
    kvHeadCount: 2,
    headDim: 128,
    ffnSize: 8192,
    vocabSize: 4096,
    contextLength: 64,
  };
  await writeRandomCheckpoint({ directory: model, shape });
  const plain = await answer(await start(undefined, 1, model));
  const data = newData();
  const cluster = await TestCluster.start({
    model,
    stages: 1,
    precision: ["--quantization", "int4"],
    weights: data,
    memory: "1GiB",
    workers: false,
  });
  clusters.push(cluster);
  cluster.startWorker(0);
  while (filesIn(data, ".unfinished").length === 0) await nextTurn();
  cluster.workers[0]!.kill("SIGKILL");
  await cluster.workers[0]!.exited;
  expect(filesIn(data, ".unfinished")).toHaveLength(1);
  const finished = filesIn(data, ".weights").length;
  expect(finished).toBeLessThan(shape.layerCount + 1);
  cluster.startWorker(0);
  await cluster.ready();
  expect(await answer(cluster)).toEqual(plain);
  await written(cluster.workers[0]!);
  expect(await read(cluster.workers[0]!)).toMatchObject({ hits: finished });
  expect(filesIn(data, ".unfinished")).toEqual([]);
  expect(filesIn(data, ".weights")).toHaveLength(shape.layerCount + 1);
});

describe("glm-relay up", () => {
  const flags = ["--model", demoModel, "--stages", "2", "--quantization", "int4"];
  const logged = (up: TestUp) => up.log("worker-0") + up.log("worker-1");

  it("keeps weights in a directory that was named, unless it is told not to", async () => {
    const data = newData();
    const none = await TestUp.start([...flags, "--cache-bytes", "0"], data);
    expect(logged(none)).not.toContain("weight cache");
    await none.stop();
    expect(existsSync(weightsOf(data))).toBe(false);
    const first = await TestUp.start(flags, data);
    expect(logged(first).match(/"hits":0/g)).toHaveLength(2);
    await first.stop();
    const second = await TestUp.start(flags, data);
    expect(logged(second)).toMatch(/"hits":[1-9]\d*,"misses":0/);
    await second.stop();
  });
});
