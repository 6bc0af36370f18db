/** What a second turn takes over from the first changes its cost, not its answer. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, TestCluster } from "../support/cluster.js";

describe.each([["float16"], ["int8"]])("a conversation with a KV cache of %s", (kv) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    const precision = kv === "int8" ? ["--kv", "int8"] : [];
    cluster = await TestCluster.start({ model: demoModel, stages: 3, precision, prefillChunk: 24 });
  });
  afterAll(() => cluster?.stop());

  const words = Array.from({ length: 60 }, (_, i) => `${(i * 37) % 100} + ${i} = ?`).join("\n");
  const sampling = {
    max_tokens: 30,
    temperature: 1,
    seed: 11,
    logprobs: true,
    top_logprobs: 3,
    ignore_eos: true,
  };

  async function chat(messages: unknown[], more: Record<string, unknown> = {}) {
    const answer = await cluster.post("/v1/chat/completions", { messages, ...sampling, ...more });
    expect(answer.status, JSON.stringify(answer.body)).toBe(200);
    return answer.body;
  }

  it("is answered alike with shared blocks and without, to the last logprob", async () => {
    const first = [{ role: "user", content: words }];
    const begun = await chat(first);
    expect(begun.usage.prompt_tokens_details.cached_tokens).toBe(0);
    const second = [
      ...first,
      { role: "assistant", content: begun.choices[0].message.content },
      { role: "user", content: "1 + 1 = ?" },
    ];
    const shared = await chat(second);
    const alone = await chat(second, { cache_salt: "nobody else's" });
    expect(alone.usage.prompt_tokens_details.cached_tokens).toBe(0);
    expect(shared.usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(100);
    expect(shared.usage.prompt_tokens_details.cached_tokens % 16).toBe(0);
    expect(shared.choices).toEqual(alone.choices);
  });

  it("shares its prompt among choices and requests that come at once", async () => {
    const messages = [{ role: "user", content: `all at once\n${words}` }];
    const [many, ...others] = await Promise.all([
      chat(messages, { n: 4 }),
      ...Array.from({ length: 5 }, () => chat(messages)),
    ]);
    const alone = await chat(messages, { n: 4, cache_salt: "alone" });
    expect(many.choices).toEqual(alone.choices);
    for (const other of others) expect(other.choices[0]).toEqual(alone.choices[0]);
  });

  it("is counted", async () => {
    const page = await fetch(`${cluster.url}/metrics`).then((response) => response.text());
    const value = (name: string) => Number(new RegExp(`^${name}\\{[^}]*\\} (\\d+)$`, "m").exec(page)?.[1]);
    expect(value("glm_relay_prefix_cache_hits_total")).toBeGreaterThan(100);
    expect(value("vllm:prefix_cache_queries_total")).toBeGreaterThan(value("vllm:prefix_cache_hits_total"));
    const { blocks } = await cluster.view();
    expect(blocks.used).toBe(0);
    expect(blocks.kept).toBeGreaterThan(0);
  });
});
