/** A cluster whose KV cache holds few sequences to their ends answers as one that holds them all. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { demoModel, memoryFor, TestCluster } from "../support/cluster.js";

const stages = 2;
/** Blocks of the small cluster: one long request takes most of them. */
const fewBlocks = 30;

describe("a cluster that is short of KV blocks", () => {
  let roomy: TestCluster;
  let tight: TestCluster;
  beforeAll(async () => {
    roomy = await TestCluster.start({ model: demoModel, stages });
    const memory = memoryFor(await roomy.view(), fewBlocks);
    tight = await TestCluster.start({ model: demoModel, stages, memory });
  });
  afterAll(async () => {
    await roomy?.stop();
    await tight?.stop();
  });

  const bodies = Array.from({ length: 16 }, (_, n) => ({
    prompt: Array.from({ length: 10 + 7 * (n % 5) }, (_, i) => 300 + ((n * 31 + i * 7) % 100)),
    max_tokens: 20 + ((n * 53) % 280),
    ignore_eos: true,
    temperature: n % 2,
    seed: n,
    logprobs: n % 3 === 0 ? 2 : undefined,
    echo: n % 6 === 0,
    n: 1 + (n % 2),
  }));

  const answers = (cluster: TestCluster) =>
    Promise.all(
      bodies.map(async (body) => {
        const { status, body: answer } = await cluster.post("/v1/completions", body);
        expect(status, JSON.stringify(answer)).toBe(200);
        return { choices: answer.choices, tokens: answer.usage.completion_tokens };
      }),
    );

  it("gives the same tokens, logprobs and scores, and has every block back", async () => {
    expect((await tight.view()).blocks.total).toBeGreaterThanOrEqual(fewBlocks);
    expect((await tight.view()).blocks.total).toBeLessThan(2 * fewBlocks);
    const expected = await answers(roomy);
    for (let round = 0; round < 2; round++) expect(await answers(tight)).toEqual(expected);
    const { counters, blocks, sequences } = await tight.view();
    expect(counters.preemptions).toBeGreaterThan(0);
    expect((await roomy.view()).counters.preemptions).toBe(0);
    expect(blocks.used).toBe(0);
    expect(sequences).toEqual({ running: 0, waiting: 0 });
  });
});
