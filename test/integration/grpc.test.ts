/** The public gRPC service on clusters of real processes, with a plain grpc-js client. */
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, TestCluster, until } from "../support/cluster.js";
import { answerOf, GrpcClient, trailers } from "../support/grpc-client.js";

/** Long enough to be in the middle of it, also on a fast machine. */
const long = { prompt_token_ids: [11, 12, 13], max_tokens: 900, ignore_eos: true, temperature: 0 };

describe("the gRPC service of a cluster of two workers", () => {
  let cluster: TestCluster;
  let client: GrpcClient;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: demoModel, stages: 2, grpc: true });
    client = new GrpcClient(await cluster.grpcAddress());
  });
  afterAll(async () => {
    client?.close();
    await cluster?.stop();
  });

  const idle = () =>
    cluster.until("nothing to run", (view) => view.sequences.running === 0 && view.blocks.used === 0);

  it("generates the tokens and logprobs that HTTP gives for the same request", async () => {
    const shared = { max_tokens: 24, temperature: 1.2, top_p: 0.9, seed: 4711, ignore_eos: true, n: 2 };
    const { body } = await cluster.post("/v1/completions", {
      ...shared,
      ...{ prompt: "What is the capital of France?", logprobs: 2, return_token_ids: true },
    });
    const answer = await client.generate({
      ...shared,
      ...{ prompt: "What is the capital of France?", logprobs: 2 },
    });
    expect(answer.status.code).toBe(status.OK);
    for (const [index, choice] of body.choices.entries()) {
      const deltas = answer.deltas.filter((delta) => delta.choice === index);
      expect(deltas.map(({ text }) => text).join("")).toBe(choice.text);
      expect(deltas.flatMap(({ token_ids }) => token_ids)).toEqual(choice.token_ids);
      const scores = deltas.flatMap(({ logprobs }) => logprobs);
      expect(scores.map(({ logprob }) => logprob)).toEqual(choice.logprobs.token_logprobs);
      expect(scores.map(({ token }) => token)).toEqual(choice.logprobs.tokens);
      expect(answer.finished!.choices[index]!.finish_reason).toBe(choice.finish_reason);
    }
    const { prompt_tokens, completion_tokens, total_tokens } = body.usage;
    expect(answer.finished!.usage).toEqual({ prompt_tokens, completion_tokens, total_tokens });
    expect(answer.messages[0]!.accepted).toMatchObject({
      ...{ model: body.model, prompt_tokens, system_fingerprint: body.system_fingerprint },
    });
  });

  it("answers a conversation as HTTP does, in order and token by token", async () => {
    const messages = [{ role: "user", content: "法国的首都是哪里？" }];
    const { body } = await cluster.post("/v1/chat/completions", { messages, temperature: 0 });
    const { messages: parts, text, finished, deltas } = await client.generate({ messages, temperature: 0 });
    expect(text).toBe(body.choices[0].message.content);
    expect(text).toMatch(/巴黎/);
    expect(deltas.length).toBeGreaterThan(2);
    expect(parts[0]!.event).toBe("accepted");
    expect(parts.slice(1, -1).every(({ event }) => event === "delta")).toBe(true);
    expect(finished!.choices[0]!.finish_reason).toBe("stop");
  });

  it("scores a prompt as HTTP does", async () => {
    const prompt = { max_tokens: 0, echo: true, logprobs: 1 };
    const { body } = await cluster.post("/v1/completions", { ...prompt, prompt: [5, 6, 7, 8] });
    const { messages } = await client.generate({ ...prompt, prompt_token_ids: [5, 6, 7, 8] });
    const scores = messages.flatMap((message) => message.prompt?.logprobs ?? []);
    expect(scores.map(({ logprob }) => logprob ?? null)).toEqual(body.choices[0].logprobs.token_logprobs);
  });

  it("ends a request whose call is cancelled, and frees what it held", async () => {
    const call = client.inference.Generate(long);
    const first = new Promise((resolve) => call.once("data", resolve));
    const ended = answerOf(call);
    await first;
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    call.cancel();
    expect((await ended).status.code).toBe(status.CANCELLED);
    await idle();
  });

  it("ends a request by Cancel with its id, once", async () => {
    const call = client.inference.Generate(long);
    const first = new Promise<any>((resolve) => call.once("data", resolve));
    const ended = answerOf(call);
    const { id } = (await first).accepted;
    expect(await client.cancel(id)).toBeNull();
    const { status: how } = await ended;
    expect(how).toMatchObject({ code: status.CANCELLED, details: "the request was cancelled" });
    await idle();
    expect(await client.cancel(id)).toMatchObject({ code: status.NOT_FOUND });
  });

  it("ends a request at the deadline of its call", async () => {
    const { status: how, messages } = await client.generate(
      { ...long, n: 8, seed: 1 },
      {},
      { deadline: Date.now() + 150 },
    );
    expect(how.code).toBe(status.DEADLINE_EXCEEDED);
    expect(messages.at(-1)?.finished ?? null).toBeNull();
    await idle();
  });

  it("tells errors as HTTP does", async () => {
    const tooLong = { prompt: "a", max_tokens: 1_000_000 };
    const { body } = await cluster.post("/v1/completions", tooLong);
    const { status: how } = await client.generate(tooLong);
    expect(how).toMatchObject({ code: status.INVALID_ARGUMENT, details: body.error.message });
    expect(trailers(how)).toMatchObject({
      "glm-relay-code": "context_length_exceeded",
      "glm-relay-param": "max_tokens",
      "glm-relay-n-ctx": String(body.error.n_ctx),
    });
    const other = await client.generate({ prompt: "a", model: "nope" });
    expect(other.status.code).toBe(status.NOT_FOUND);
  });

  it("lists the model and, by reflection, its services", async () => {
    const view = await cluster.view();
    expect((await client.listModels()).models.map(({ id }) => id)).toEqual([view.model]);
    expect(await client.services()).toContain("glm.relay.v1.Inference");
  });

  it("names a request by the client's id in the logs, and counts it", async () => {
    await client.generate({ prompt: "a", max_tokens: 1 }, { "x-request-id": "over-grpc" });
    const line = await cluster.coordinator.line(/^.*"requestId":"over-grpc".*"response".*$/m);
    expect(JSON.parse(line[0])).toMatchObject({
      ...{ route: "/glm.relay.v1.Inference/Generate", grpcStatus: "OK", completionTokens: 1 },
    });
    const page = await (await fetch(`${cluster.url}/metrics`)).text();
    expect(page).toMatch(/glm_relay_grpc_requests_total\{method="Generate",status="OK"\} \d+/);
  });
});

describe("the health that gRPC tells", () => {
  let cluster: TestCluster;
  let client: GrpcClient;
  const told: string[] = [];
  const toldLast = (now: string, count: number) =>
    until(`${now} to be told`, () => told.length === count && told.at(-1) === now);
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: demoModel, stages: 2, grpc: true, workers: false });
    client = new GrpcClient(await cluster.grpcAddress());
  });
  afterAll(async () => {
    client?.close();
    await cluster?.stop();
  });

  it("is serving from the first token on, and not while a worker is missing", async () => {
    client.watchHealth("", (now) => told.push(now));
    await toldLast("NOT_SERVING", 1);
    const early = (await client.generate({ prompt: "a" })).status;
    expect(early.code).toBe(status.UNAVAILABLE);
    expect(trailers(early)).toMatchObject({ "glm-relay-code": "model_loading", "retry-after": "1" });
    for (const index of [0, 1]) cluster.startWorker(index);
    await toldLast("SERVING", 2);
    expect(await client.health("glm.relay.v1.Inference")).toBe("SERVING");

    const asked = { ...long, n: 4, seed: 1 };
    const undisturbed = await client.generate(asked);
    const running = client.generate(asked);
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    cluster.workers[1]!.kill("SIGKILL");
    await toldLast("NOT_SERVING", 3);
    await cluster.revive();
    await toldLast("SERVING", 4);
    const { status: how, text, tokens } = await running;
    expect([how.code, text, tokens]).toEqual([status.OK, undisturbed.text, undisturbed.tokens]);
  });

  it("is over first when the coordinator drains; what runs is answered, nothing new is taken", async () => {
    const running = client.generate({ ...long, max_tokens: 300 });
    await cluster.until("the request to run", (view) => view.sequences.running > 0);
    cluster.coordinator.kill("SIGTERM");
    await toldLast("NOT_SERVING", 5);
    const refused = (await client.generate({ prompt: "a" })).status;
    expect([refused.code, trailers(refused)["glm-relay-code"]]).toEqual([status.UNAVAILABLE, "draining"]);
    const { status: how, tokens } = await running;
    expect([how.code, tokens.length]).toEqual([status.OK, 300]);
    const begun = performance.now();
    expect((await cluster.coordinator.exited).code).toBe(0);
    // The stream of the watch, which never ends, does not hold it up.
    expect(performance.now() - begun).toBeLessThan(3_000);
  });
});
