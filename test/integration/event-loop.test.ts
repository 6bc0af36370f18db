/**
 * The coordinator never stands still: a timer in its main thread notes the CPU time that the thread used
 * between two firings, so a busy machine does not count. Each case is held against a control, the same
 * work done in one go here: were it done on the coordinator's main thread, the stall would be no shorter.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LoopStall, threadCpuClock } from "../../bench/loop-watch.js";
import { packageRoot } from "../../common/package.js";
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { openTokenizer, type Tokenizer } from "../../coordinator/prompt/tokenizer.js";
import { chatglm3 } from "../../models/chatglm3.js";
import { inferenceDefinition } from "../../proto/public.js";
import { batchUntil, createBatch, hasEnded, requestLine, upload } from "../support/batches.js";
import { demoModel, TestCluster } from "../support/cluster.js";
import { GrpcClient, trailers } from "../support/grpc-client.js";

/** What DESIGN.md promises of this machine; a slower one may take longer, and its control does too. */
const sectionLimitMs = 20;
/** What the code does in one go it does every time; a full collection of garbage falls into few attempts. */
const attemptsMax = 3;
const cpuMs = threadCpuClock();

let directory: string;
let cluster: TestCluster;
let client: GrpcClient;
let tokenizer: Tokenizer;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "glm-relay-loop-"));
  tokenizer = (await openTokenizer(demoModel, chatglm3))!;
  const outer = process.env.NODE_OPTIONS;
  process.env.NODE_OPTIONS = `--import=${join(packageRoot, "dist/bench/event-loop-probe.js")}`;
  process.env.EVENT_LOOP_PROBE = join(directory, "probe");
  try {
    const data = join(directory, "data");
    cluster = await TestCluster.start({ model: demoModel, stages: 1, grpc: true, data });
    client = new GrpcClient(await cluster.grpcAddress());
  } finally {
    if (outer === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = outer;
  }
  // Code that runs for the first time is slow, and not what is looked for.
  await cluster.post("/v1/completions", { prompt: "hello", max_tokens: 8, logprobs: 1, echo: true });
  await cluster.post("/v1/completions", { prompt: "hello ".repeat(4_000) });
  await client.generate({ prompt: "hello", max_tokens: 8, logprobs: 1, echo: true });
  await client.generate({ prompt: "hello ".repeat(4_000) });
});
afterAll(async () => {
  delete process.env.EVENT_LOOP_PROBE;
  client?.close();
  await cluster?.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** Since the last call. */
function stall(): Promise<LoopStall> {
  return new Promise((resolve, reject) => {
    let text = "";
    connect(join(directory, "probe"))
      .setEncoding("utf8")
      .on("data", (data: string) => {
        text += data;
      })
      .on("error", reject)
      .on("close", () => resolve(JSON.parse(text) as LoopStall));
  });
}

function controlMs(work: () => unknown): number {
  const begun = cpuMs();
  work();
  return cpuMs() - begun;
}

/** Posts the body and holds the longest stall meanwhile against the control. */
function expectNoStall(
  path: string,
  body: string,
  control: (answer: { status: number; body: any }) => unknown,
): Promise<{ status: number; body: any }> {
  return expectNoStallIn(() => cluster.post(path, body), control);
}

async function expectNoStallIn<T>(ask: () => Promise<T>, control: (answer: T) => unknown): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    await stall();
    const answer = await ask();
    const { cpuMs: stalledMs, ticks } = await stall();
    const wholeMs = controlMs(() => control(answer));
    const limitMs = Math.max(sectionLimitMs, wholeMs / 3);
    expect(ticks).toBeGreaterThan(1);
    if (stalledMs >= limitMs && attempt < attemptsMax) continue;
    expect(stalledMs, `in one go it takes ${wholeMs} ms`).toBeLessThan(limitMs);
    return answer;
  }
}

const text = (bytes: number) => "hello world, how are you? ".repeat(bytes / 26);
const encode = (content: string) => tokenizer.encodeText(content, { addSpecialTokens: false });

describe("the coordinator's event loop keeps turning while", () => {
  it("a prompt of 1 MB is tokenized", async () => {
    const prompt = text(1_000_000);
    const { status, body } = await expectNoStall("/v1/completions", JSON.stringify({ prompt }), () =>
      encode(prompt),
    );
    expect(status).toBe(400);
    expect(body.error.code).toBe("context_length_exceeded");
    expect(body.error.n_prompt_tokens).toBe(encode(prompt).length + 2);
  });

  it("a chat of 1 MB is tokenized", async () => {
    const content = text(1_000_000);
    const messages = [{ role: "user", content }];
    const { body } = await expectNoStall("/v1/chat/completions", JSON.stringify({ messages }), () =>
      encode(content),
    );
    expect(body.error).toMatchObject({ code: "context_length_exceeded", param: "messages" });
  });

  it("4 MB of brackets are parsed", async () => {
    const json = `{"prompt":"a","max_tokens":1,"x":${"[".repeat(2_000_000)}${"]".repeat(2_000_000)}}`;
    const { status } = await expectNoStall("/v1/completions", json, () => JSON.parse(json));
    expect(status).toBe(200);
  });

  it("a million lists of ids are refused", async () => {
    const json = `{"prompt":[${"[1],".repeat(999_999)}[1]]}`;
    const { status, body } = await expectNoStall("/v1/completions", json, () => JSON.parse(json));
    expect(status).toBe(400);
    expect(body.error.message).toBe("prompt: a list of 1000000, expected at most 256 prompts");
  });

  it("1 MB is tokenized and every piece written", async () => {
    const content = text(1_000_000);
    const json = JSON.stringify({ content, with_pieces: true });
    const { status, body } = await expectNoStall("/tokenize", json, () => encode(content));
    expect(status).toBe(200);
    expect(body.tokens.map(({ id }: { id: number }) => id)).toEqual(encode(content));
  });

  it("half a million ids become text", async () => {
    const tokens = Array.from({ length: 500_000 }, (_, i) => 300 + (i % 1_000));
    const decode = () => tokenizer.decode(tokens, { skipSpecialTokens: false });
    const { body } = await expectNoStall("/detokenize", JSON.stringify({ tokens }), decode);
    expect(body.content).toBe(decode());
  });

  it("prompts are scored and an answer with 20 alternatives per token is written", async () => {
    const prompt = Array.from({ length: 24 }, (_, i) => Array.from({ length: 900 }, (_, j) => 300 + i + j));
    const json = JSON.stringify({ prompt, max_tokens: 1, echo: true, logprobs: 20, ignore_eos: true });
    const { status, body } = await expectNoStall("/v1/completions", json, (answer) =>
      JSON.stringify(answer.body),
    );
    expect(status).toBe(200);
    expect(body.choices).toHaveLength(24);
    for (const { logprobs } of body.choices) {
      for (const list of Object.values(logprobs)) expect(list).toHaveLength(901);
    }
  });

  it("many long choices with 20 alternatives per token are written", async () => {
    const json = JSON.stringify({
      messages: [{ role: "user", content: "hello" }],
      ...{ n: 64, max_tokens: 150, logprobs: true, top_logprobs: 20, ignore_eos: true, seed: 1 },
    });
    const { body } = await expectNoStall("/v1/chat/completions", json, (answer) =>
      JSON.stringify(answer.body),
    );
    expect(body.choices).toHaveLength(64);
    for (const { logprobs } of body.choices) expect(logprobs.content).toHaveLength(150);
  });

  it("a prompt of 1 MB comes over gRPC", async () => {
    const prompt = text(1_000_000);
    const { status } = await expectNoStallIn(
      () => client.generate({ prompt }),
      () => encode(prompt),
    );
    expect(trailers(status)).toMatchObject({
      "glm-relay-code": "context_length_exceeded",
      "glm-relay-n-prompt-tokens": String(encode(prompt).length + 2),
    });
  });

  it("4 MB of empty messages come over gRPC", async () => {
    const messages = Array.from({ length: 2_000_000 }, () => ({}));
    const { requestSerialize, requestDeserialize } = inferenceDefinition.Generate;
    const bytes = requestSerialize({ messages });
    const { status } = await expectNoStallIn(
      () => client.generate({ messages }),
      () => requestDeserialize(bytes),
    );
    expect(status.details).toBe("messages: a list of 2000000, expected a list of 1 to 4096 messages");
  });

  it("prompts are scored over gRPC with 20 alternatives per token", async () => {
    const prompt_token_ids = Array.from({ length: 900 }, (_, j) => 300 + j);
    const request = { prompt_token_ids, n: 24, seed: 1, max_tokens: 1, echo: true, logprobs: 20 };
    const { responseSerialize } = inferenceDefinition.Generate;
    const { messages } = await expectNoStallIn(
      () => client.generate({ ...request, ignore_eos: true }),
      (answer) => answer.messages.map((message) => responseSerialize(message)),
    );
    const scored = messages.flatMap(({ prompt }) => prompt?.logprobs ?? []);
    expect(scored).toHaveLength(24 * 900);
  });

  /** A batch from its upload until `check` holds. */
  const batch = async (lines: string[], check: (batch: BatchObject) => boolean) => {
    const file = await upload(cluster.url, lines.join("\n"));
    const { id } = await createBatch(cluster.url, file.id, { endpoint: "/v1/completions" });
    return batchUntil(cluster.url, id, check);
  };
  const lines = (count: number, body: object) =>
    Array.from({ length: count }, (_, i) => requestLine(`${i}`, body, "/v1/completions"));

  it("a batch of thousands of lines is checked, run and merged", async () => {
    const all = lines(6_000, { prompt: [5, 6, 7], max_tokens: 2 });
    // Code that runs for the first time is slow, and not what is looked for.
    await batch(all.slice(0, 3_000), hasEnded);
    const { request_counts } = await expectNoStallIn(
      () => batch(all, hasEnded),
      () => all.map((line) => JSON.parse(line)),
    );
    expect(request_counts.completed).toBe(6_000);
  });

  it("lines of 4 MB are read and refused", async () => {
    const all = lines(8, { prompt: text(4_000_000) });
    const { request_counts } = await expectNoStallIn(
      () => batch(all, hasEnded),
      () => all.map((line) => JSON.parse(line)),
    );
    expect(request_counts.failed).toBe(8);
  });

  it("a batch of which a thousand lines run is cancelled", async () => {
    const all = lines(3_000, { prompt: [5, 6, 7], max_tokens: 900, ignore_eos: true });
    const cancelled = async () => {
      const { id } = await batch(all, ({ status }) => status === "in_progress");
      await cluster.until("lines to run", ({ sequences }) => sequences.running + sequences.waiting > 900);
      await stall();
      await cluster.post(`/v1/batches/${id}/cancel`, {});
      return batchUntil(cluster.url, id, hasEnded);
    };
    await cancelled();
    const { status } = await expectNoStallIn(cancelled, () => all.map((line) => JSON.parse(line)));
    expect(status).toBe("cancelled");
  });
});
