import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { describe, expect, it, onTestFinished } from "vitest";
import type { ClusterView } from "../../../coordinator/inference.js";
import { glmRelay } from "./support.js";

interface ChatBody {
  messages: { role: string; content: string }[];
  stream: boolean;
}

/** A server that answers like the API; `chat` gets each parsed body. */
async function serve(
  chat: (body: ChatBody, response: ServerResponse) => void,
  cluster?: ClusterView,
): Promise<string> {
  const server = createServer(async (request: IncomingMessage, response) => {
    if (request.url === "/api/cluster") {
      response.setHeader("content-type", "application/json").end(JSON.stringify(cluster));
      return;
    }
    let text = "";
    for await (const chunk of request) text += chunk;
    chat(JSON.parse(text) as ChatBody, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`;
}

function streamAnswer(response: ServerResponse, pieces: string[], last = "data: [DONE]\n\n"): void {
  response.setHeader("content-type", "text/event-stream");
  for (const content of pieces) {
    response.write(`: ping\n\ndata: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`);
  }
  response.end(last);
}

function refuse(response: ServerResponse, status: number, code: string, message: string): void {
  response.statusCode = status;
  response.end(JSON.stringify({ error: { message, code } }));
}

describe("chat", () => {
  it("prints one answer and ends", async () => {
    const bodies: ChatBody[] = [];
    const url = await serve((body, response) => {
      bodies.push(body);
      streamAnswer(response, ["To", "kyo"]);
    });
    const result = await glmRelay(["chat", "--url", url, "--system", "Be short.", "Capital of Japan?"]);
    expect(result).toEqual({ status: 0, stdout: "Tokyo\n", stderr: "" });
    expect(bodies[0]!.messages).toEqual([
      { role: "system", content: "Be short." },
      { role: "user", content: "Capital of Japan?" },
    ]);
    expect(bodies[0]!.stream).toBe(true);
  });

  it("holds a conversation over lines from a pipe", async () => {
    const asked: string[][] = [];
    const url = await serve((body, response) => {
      asked.push(body.messages.map((message) => message.content));
      streamAnswer(response, [`answer ${asked.length}`]);
    });
    const result = await glmRelay(["chat", "--url", url], { input: "one\n\ntwo\n" });
    expect(result.stdout).toBe("answer 1\nanswer 2\n");
    expect(asked).toEqual([["one"], ["one", "answer 1", "two"]]);
  });

  it("forgets the oldest turn when the context is full", async () => {
    const asked: string[][] = [];
    const url = await serve((body, response) => {
      asked.push(body.messages.map((message) => message.content));
      if (body.messages.length > 2) refuse(response, 400, "context_length_exceeded", "too long");
      else streamAnswer(response, ["yes"]);
    });
    const result = await glmRelay(["chat", "--url", url], { input: "one\ntwo\n" });
    expect(result.status).toBe(0);
    expect(asked).toEqual([["one"], ["one", "yes", "two"], ["two"]]);
  });

  it("tells what the server says, before the answer and in the middle of it", async () => {
    const url = await serve((body, response) => {
      if (body.messages[0]!.content === "early")
        refuse(response, 503, "model_loading", "the model is loading");
      else
        streamAnswer(
          response,
          ["Tok"],
          'data: {"error":{"message":"a worker is gone","code":"worker_lost"}}\n\n',
        );
    });
    const early = await glmRelay(["chat", "--url", url, "early"]);
    expect(early).toEqual({ status: 1, stdout: "", stderr: "error: the model is loading [model_loading]\n" });
    const late = await glmRelay(["chat", "--url", url, "late"]);
    expect(late).toEqual({ status: 1, stdout: "Tok\n", stderr: "error: a worker is gone [worker_lost]\n" });
  });

  it("does not take a cut stream for an answer", async () => {
    const url = await serve((_, response) => streamAnswer(response, ["Tok"], ""));
    const result = await glmRelay(["chat", "--url", url, "hello"]);
    expect(result.stderr).toMatch(/^error: .* broke off in the middle of an answer\n$/);
    expect(result.status).toBe(1);
  });
});

describe("status", () => {
  const view: ClusterView = {
    model: "demo",
    state: "ready",
    reason: "",
    epoch: { term: 3, plan: 2 },
    numericsId: "cpu-1-float32",
    dtype: "float32",
    kvType: "float32",
    quantization: { weights: "stored", head: "stored" },
    stageCount: 1,
    stages: [
      {
        pipeline: 0,
        stage: 0,
        worker: "worker-0",
        layerBegin: 0,
        layerEnd: 8,
        weightBytes: 9 * 2 ** 20,
        kvBytes: 2 ** 20,
        workspaceBytes: 4096,
        planned: { weightBytes: 1, kvBytes: 1, workspaceBytes: 1, processBytes: 1 },
        memoryBytes: 2 ** 30,
        steps: 17,
        busySeconds: 1.25,
        idleSeconds: 3.5,
      },
    ],
    workers: [
      {
        id: "worker-0",
        pid: 4711,
        address: "127.0.0.1:9001",
        probeAddress: "127.0.0.1:9101",
        state: "linked",
        detail: "",
        loadedRatio: 1,
        heartbeatAgeMs: 120,
        memoryBytes: 2 ** 30,
        residentBytes: 50 * 2 ** 20,
        threads: 2,
        kernels: "avx2",
      },
    ],
    blocks: { size: 16, total: 100, used: 3, kept: 0 },
    sequences: { running: 1, waiting: 2 },
    classes: { interactive: { running: 1, waiting: 0 }, batch: { running: 0, waiting: 2 } },
    microBatchesInFlight: 1,
    pipelines: [],
    timing: {
      itlTargetMs: 200,
      microBatchTarget: 2,
      rowBudget: 96,
      hopMs: 1.5,
      stationMs: 0,
      stages: [{ baseMs: 4, rowMs: 0.5, keyMs: 0.001 }],
    },
    oldestWaitMs: 0,
    probeAddress: "127.0.0.1:9100",
    grpcAddress: "127.0.0.1:9200",
    redisUp: true,
    counters: {
      placements: 1,
      placementsByReason: { start: 1 },
      workersLost: 0,
      workersLostByReason: { left: 0, disconnected: 0, lease_over: 0, replaced: 0 },
      staleMessages: 0,
      preemptions: 0,
      prefixCacheQueries: 0,
      prefixCacheHits: 0,
      contextSlices: 0,
      draftedTokens: 0,
      acceptedTokens: 0,
      steps: 17,
    },
  };

  it("shows layers, bytes and load of every stage", async () => {
    const url = await serve(() => undefined, view);
    const result = await glmRelay(["status", "--url", url]);
    expect(result.status).toBe(0);
    for (const text of [
      "ready",
      "3.2",
      "0..7",
      "9.0 MiB",
      "1.3 s",
      "4711",
      "1 running, 2 waiting",
      "3 of 100",
      "127.0.0.1:9100",
      "127.0.0.1:9200",
      "127.0.0.1:9101",
    ]) {
      expect(result.stdout).toContain(text);
    }
  });

  it("shows each of several pipelines, and to which one a stage belongs", async () => {
    const [stage] = view.stages;
    const pipeline = {
      pipeline: 0,
      state: "ready" as const,
      reason: "",
      epoch: { term: 3, plan: 2 },
      stageCount: 1,
      stages: [stage!],
      blocks: { size: 16, total: 50, used: 3, kept: 7 },
      sequences: { running: 1, waiting: 2 },
      microBatchesInFlight: 1,
      timing: view.timing,
    };
    const lost = {
      ...pipeline,
      pipeline: 1,
      state: "waiting" as const,
      reason: "waiting for workers: 0 of 1 have joined",
      epoch: null,
      stages: [],
    };
    const other = { ...stage!, pipeline: 2, worker: "worker-2" };
    const third = { ...pipeline, pipeline: 2, epoch: { term: 3, plan: 4 }, stages: [other] };
    const pipelines = [pipeline, lost, third];
    const url = await serve(() => undefined, { ...view, pipelines, stages: [stage!, other] });
    const { stdout } = await glmRelay(["status", "--url", url]);
    const cells = stdout.replaceAll(/ +│ /g, " ");
    expect(cells).toMatch(/0 +ready +3\.2 +1 of 1 +1 +2 +3 of 50 +7/);
    expect(cells).toMatch(/1 +waiting: waiting for workers: 0 of 1 have joined +none +0 of 1/);
    expect(cells).toMatch(/2 +ready +3\.4 +1 of 1/);
    expect(cells).toMatch(/0\.0 +worker-0/);
    expect(cells).toMatch(/2\.0 +worker-2/);
  });

  it("prints the JSON unchanged with --json", async () => {
    const url = await serve(() => undefined, view);
    const result = await glmRelay(["status", "--json", "--url", url]);
    expect(JSON.parse(result.stdout)).toEqual(view);
  });
});
