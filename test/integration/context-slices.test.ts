/**
 * Long contexts of a prefix-LM beside running streams, through real processes: the tokens of all are those of a
 * request that is alone, the streams get steps while a context is read, and nothing stays behind.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readServerSentEvents } from "../../cli/sse.js";
import { fixtureFolder } from "../golden/support.js";
import { TestCluster } from "../support/cluster.js";
import { writeDeeperModel } from "../support/deeper-model.js";

const layerCount = 8;
/** Of the fixture's config.json. */
const [gmask, sop] = [111, 114];

const directory = mkdtempSync(join(tmpdir(), "glm-relay-slices-"));
beforeAll(() => writeDeeperModel(fixtureFolder("chatglm-6b-tiny"), directory, layerCount, 2_048));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Ids below the special ones. */
const context = (length: number, salt: number): number[] => [
  ...Array.from({ length: length - 1 }, (_, i) => 5 + ((i * 7 + salt * 13) % 100)),
  gmask,
  sop,
];

interface Body {
  prompt: number[];
  max_tokens: number;
  temperature: number;
  seed: number;
}

/** Streams with short contexts, and long contexts that come while these run. */
const streams: Body[] = [1, 2, 3].map((n) => ({
  prompt: context(6 + n, n),
  max_tokens: 800,
  temperature: n % 2,
  seed: n,
}));
const readers: Body[] = [400, 37, 1_900, 250].map((length, n) => ({
  prompt: context(length, n),
  max_tokens: 6,
  temperature: 1,
  seed: 10 + n,
}));

interface Answer {
  tokens: number[];
  logprobs: unknown;
}

async function complete(cluster: TestCluster, body: Body): Promise<Answer> {
  const fields = { ...body, ignore_eos: true, return_token_ids: true, logprobs: 3 };
  const { status, body: answer } = await cluster.post("/v1/completions", fields);
  expect(status, JSON.stringify(answer)).toBe(200);
  const [{ token_ids: tokens, logprobs }] = answer.choices;
  expect(tokens).toHaveLength(body.max_tokens);
  return { tokens, logprobs };
}

/** A stream whose steps are counted as they come: without speculation each brings a token. */
class Stream {
  steps = 0;
  readonly done: Promise<void>;
  readonly #cancel = new AbortController();

  constructor(cluster: TestCluster, body: Body) {
    this.done = this.#read(cluster, body);
  }

  stop(): void {
    this.#cancel.abort();
  }

  async #read(cluster: TestCluster, body: Body): Promise<void> {
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, ignore_eos: true, return_token_ids: true, stream: true }),
      signal: this.#cancel.signal,
    });
    for await (const data of readServerSentEvents(response.body!)) {
      if (data === "[DONE]") return;
      if (JSON.parse(data).choices[0]?.token_ids?.length > 0) this.steps++;
    }
  }
}

const idle = (cluster: TestCluster) =>
  cluster.until("nothing to run", ({ sequences }) => sequences.running + sequences.waiting === 0);

describe.each([
  // Before times are known a slice is a chunk's work; later, no target is met and a slice is one layer.
  { stages: 1, prefillChunk: 64 },
  { stages: 2, prefillChunk: 64, speculation: "off" },
  { stages: 4, prefillChunk: 256, microBatches: 3 },
])(
  "in $stages stages with chunks of $prefillChunk",
  ({ stages, prefillChunk, microBatches, speculation = "auto" }) => {
    let cluster: TestCluster;
    let alone: Answer[];
    beforeAll(async () => {
      cluster = await TestCluster.start({
        model: directory,
        stages,
        prefillChunk,
        dtype: "float16",
        itlTargetMs: 1,
        precision: ["--speculation", speculation],
        ...(microBatches !== undefined && { microBatches }),
      });
      alone = [];
      for (const body of [...streams, ...readers]) alone.push(await complete(cluster, body));
    }, 120_000);
    afterAll(() => cluster?.stop());

    const slices = async () => (await cluster.view()).counters.contextSlices;

    it("one request alone reads its context whole, and requests differ", async () => {
      expect(await slices()).toBe(0);
      expect(new Set(alone.map(({ logprobs }) => JSON.stringify(logprobs))).size).toBe(alone.length);
    });

    it("tokens and logprobs of all are the same together", async () => {
      const running = streams.map((body) => complete(cluster, body));
      await cluster.until("the streams to run", ({ sequences }) => sequences.running > 0);
      const reading = readers.map((body) => complete(cluster, body));
      expect(await Promise.all([...running, ...reading])).toEqual(alone);
      expect(await slices()).toBeGreaterThan(2 * layerCount);
      expect((await idle(cluster)).blocks.used).toBe(0);
    });

    // With speculation a token is no step.
    if (speculation === "off")
      it("a stream gets a step for every second slice of a context at least", async () => {
        const stream = new Stream(cluster, { ...streams[0]!, max_tokens: 1_500 });
        await cluster.until("the stream", ({ sequences }) => sequences.running === 1);
        while (stream.steps < 5) await new Promise((resolve) => setTimeout(resolve, 5));
        const [sliced, before] = [await slices(), stream.steps];
        await complete(cluster, { ...readers[2]!, max_tokens: 1 });
        const count = (await slices()) - sliced;
        expect(count).toBe(layerCount);
        // Slices and steps of the stream travel together or in turns; the answer may overtake the last step.
        expect(stream.steps - before).toBeGreaterThanOrEqual(count / 2 - 1);
        stream.stop();
        await expect(stream.done).rejects.toThrow();
        expect((await idle(cluster)).blocks.used).toBe(0);
      });

    it("a client that leaves while its context is read gives everything back, and the next context is right", async () => {
      const stream = new Stream(cluster, { ...streams[0]!, max_tokens: 1_500 });
      await cluster.until("the stream", ({ sequences }) => sequences.running === 1);
      const sliced = await slices();
      const reader = new Stream(cluster, { ...readers[2]!, seed: 99, max_tokens: 100 });
      await cluster.until("a slice", ({ counters }) => counters.contextSlices > sliced);
      reader.stop();
      await expect(reader.done).rejects.toThrow();
      await cluster.until("it to leave", ({ sequences }) => sequences.running === 1);
      expect(await complete(cluster, readers[0]!)).toEqual(alone[streams.length]);
      stream.stop();
      // On a busy machine it may have come to its end by itself.
      await stream.done.catch(() => {});
      const { blocks, sequences, microBatchesInFlight } = await idle(cluster);
      expect({ used: blocks.used, sequences, microBatchesInFlight }).toEqual({
        used: 0,
        sequences: { running: 0, waiting: 0 },
        microBatchesInFlight: 0,
      });
    });

    it("a worker that is lost between slices costs time and nothing else", async () => {
      const sliced = await slices();
      const running = streams.map((body) => complete(cluster, body));
      await cluster.until("the streams to run", ({ sequences }) => sequences.running > 0);
      const reading = readers.map((body) => complete(cluster, body));
      await cluster.until("a slice", ({ counters }) => counters.contextSlices > sliced + 2);
      const lost = stages - 1;
      cluster.workers[lost]!.kill("SIGKILL");
      await cluster.workers[lost]!.exited;
      cluster.startWorker(lost);
      expect(await Promise.all([...running, ...reading])).toEqual(alone);
      expect((await idle(cluster)).blocks.used).toBe(0);
    }, 60_000);
  },
);
