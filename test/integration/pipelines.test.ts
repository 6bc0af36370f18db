/** Two pipelines of two workers each under `glm-relay up`: who serves what, and what a killed worker costs. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ClusterView } from "../../coordinator/inference.js";
import { demoModel, until } from "../support/cluster.js";
import { TestUp } from "../support/up.js";

const headers = { "content-type": "application/json" };

describe("two pipelines", () => {
  let up: TestUp;
  let url: string;
  beforeAll(async () => {
    const args = ["--model", demoModel, "--stages", "2", "--pipelines", "2"];
    up = await TestUp.start([...args, "--threads-per-worker", "1", "--memory-per-worker", "512MiB"]);
    url = up.url;
    await bothReady();
  });
  afterAll(() => up?.stop());

  const view = async (): Promise<ClusterView> =>
    (await (await fetch(`${url}/api/cluster`)).json()) as ClusterView;
  const viewWhen = (what: string, check: (view: ClusterView) => boolean, limitMs = 60_000) =>
    until(
      what,
      async () => {
        const now = await view();
        return check(now) ? now : null;
      },
      limitMs,
      () => up.process.output,
    );
  const bothReady = () =>
    viewWhen("both pipelines", ({ pipelines }) => pipelines.every(({ state }) => state === "ready"));

  async function post(path: string, body: unknown) {
    const response = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, body: (await response.json()) as any };
  }

  async function stream(body: object): Promise<string> {
    const request = { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }) };
    const response = await fetch(`${url}/v1/completions`, request);
    expect(response.status).toBe(200);
    return response.text();
  }
  /** What a stream brought of its only choice. */
  const choicesOf = (text: string) =>
    text
      .split("\n\n")
      .filter((event) => event.startsWith("data: {"))
      .map((event) => JSON.parse(event.slice("data: ".length)).choices[0]);

  const request = (index: number) => ({
    prompt: [11 + index, 12, 13],
    max_tokens: 300,
    ignore_eos: true,
    temperature: index % 2,
    seed: index,
    logprobs: index % 3,
  });

  it("hold the model once each, on four workers", async () => {
    const { pipelines, stages, stageCount, blocks, state } = await view();
    expect([state, stageCount, stages.length]).toEqual(["ready", 4, 4]);
    for (const pipeline of pipelines) {
      expect(pipeline.stages.map((stage) => [stage.pipeline, stage.stage])).toEqual([
        [pipeline.pipeline, 0],
        [pipeline.pipeline, 1],
      ]);
      expect(pipeline.stages[1]!.layerBegin).toBe(pipeline.stages[0]!.layerEnd);
    }
    expect(new Set(stages.map(({ worker }) => worker)).size).toBe(4);
    expect(blocks.total).toBe(pipelines[0]!.blocks.total + pipelines[1]!.blocks.total);
    expect(pipelines[0]!.epoch).not.toEqual(pipelines[1]!.epoch);
    const page = await fetch(`${url}/metrics`).then((response) => response.text());
    expect(page).toMatch(/^glm_relay_pipelines\{model="[^"]+",state="ready"\} 2$/m);
    expect(page).toMatch(/^glm_relay_stages\{model="[^"]+",pipeline="1",state="placed"\} 2$/m);
  });

  it("share the requests, and lose nothing when a worker of one is killed under load", async () => {
    const indices = Array.from({ length: 8 }, (_, index) => index);
    /** Half of them are streamed. */
    const run = (index: number) =>
      index < 4
        ? stream(request(index)).then(choicesOf)
        : post("/v1/completions", request(index)).then(({ status, body }) => [status, body.choices]);
    const expected = [];
    for (const index of indices) expected.push(await run(index));

    for (const victim of [0, 1]) {
      const before = await bothReady();
      const running = indices.map(run);
      await viewWhen("both to have sequences", ({ pipelines }) =>
        pipelines.every(({ sequences }) => sequences.running >= 2),
      );
      const lost = before.pipelines[victim]!;
      const other = before.pipelines[1 - victim]!;
      const { worker } = lost.stages[victim]!;
      process.kill(before.workers.find(({ id }) => id === worker)!.pid, "SIGKILL");
      await viewWhen("the loss", ({ pipelines }) => pipelines[victim]!.state !== "ready");
      // Until it is back the other one answers, old requests and new ones.
      let meanwhile = 0;
      for (let now = await view(); now.pipelines[victim]!.state !== "ready"; now = await view()) {
        expect(now.state).toBe("ready");
        const short = await post("/v1/completions", { ...request(0), max_tokens: 3, logprobs: null });
        expect(short.status).toBe(200);
        meanwhile++;
      }
      expect(meanwhile).toBeGreaterThan(0);
      expect(await Promise.all(running)).toEqual(expected);
      const after = await bothReady();
      expect(after.pipelines[1 - victim]!.epoch).toEqual(other.epoch);
      expect(after.pipelines[victim]!.epoch!.plan).toBeGreaterThan(lost.epoch!.plan);
      expect(after.pipelines[victim]!.stages.map((stage) => stage.worker)).toEqual(
        lost.stages.map((stage) => stage.worker),
      );
      await viewWhen("all blocks to be back", ({ blocks }) => blocks.used === 0);
    }
  });

  it("continue a conversation where its first turn was computed", async () => {
    await bothReady();
    const chat = async (messages: unknown[]) => {
      const answer = await post("/v1/chat/completions", { messages, max_tokens: 20, temperature: 0 });
      expect(answer.status).toBe(200);
      return answer.body;
    };
    const question = (person: number) =>
      Array.from({ length: 40 }, (_, line) => `${person} + ${line} = ${person + line}`).join("\n");
    const people = Array.from({ length: 6 }, (_, person) => 100 * (person + 1));
    const conversations = await Promise.all(
      people.map(async (person) => {
        const first = [{ role: "user", content: question(person) }];
        const { choices } = await chat(first);
        return [...first, choices[0].message, { role: "user", content: "1 + 1 = ?" }];
      }),
    );
    const { pipelines } = await view();
    expect(pipelines.every(({ blocks }) => blocks.kept > 0)).toBe(true);
    for (const messages of conversations) {
      const { usage, choices } = await chat(messages);
      expect(usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(100);
      const alone = await post("/v1/chat/completions", {
        messages,
        max_tokens: 20,
        temperature: 0,
        cache_salt: "alone",
      });
      expect(alone.body.usage.prompt_tokens_details.cached_tokens).toBe(0);
      expect(choices).toEqual(alone.body.choices);
    }
  });

  it("come back both, on the same workers, when the coordinator was killed", async () => {
    const before = await bothReady();
    const workersOf = ({ pipelines }: ClusterView) =>
      pipelines.map(({ stages }) => stages.map(({ worker }) => worker));
    up.kill("coordinator");
    await until("the coordinator to be gone", async () => (await view().catch(() => null)) === null);
    await until(
      "both pipelines again",
      async () => {
        const now = await view().catch(() => null);
        return now?.pipelines.every(({ state }) => state === "ready");
      },
      60_000,
      () => up.process.output,
    );
    const after = await view();
    expect(after.epoch!.term).toBeGreaterThan(before.epoch!.term);
    expect(after.workers.map((worker) => worker.pid)).toEqual(before.workers.map((worker) => worker.pid));
    expect(workersOf(after).flat().sort()).toEqual(workersOf(before).flat().sort());
    expect((await post("/v1/completions", { ...request(1), max_tokens: 3 })).status).toBe(200);
  });
});
