/** The choices of a request share the work for its prompt, and each is what it would be in a request of its own. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { deriveSeed } from "../../coordinator/api/seeds.js";
import { fixtureFolder } from "../golden/support.js";
import { TestCluster } from "../support/cluster.js";

/** Ids below the special ones of the fixtures. */
const text = (length: number, salt: number): number[] =>
  Array.from({ length }, (_, i) => 5 + ((i * 7 + salt * 13) % 100));
/** With the end of the context and the start of the reply, of the fixture's config.json. */
const context = (length: number, salt: number): number[] => [...text(length - 2, salt), 111, 114];

describe.each([
  { model: "chatglm-6b-tiny", prompt: context, args: ["--kv", "int8"] },
  {
    model: "chatglm-6b-tiny",
    prompt: context,
    args: ["--prefix-encoder", fixtureFolder("chatglm-6b-tiny-ptuning")],
  },
  { model: "chatglm3-tiny", prompt: text, args: [] },
])("$model $args.0", ({ model, prompt, args: precision }) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    const options = { stages: 2, dtype: "float32", prefillChunk: 16 };
    cluster = await TestCluster.start({ model: fixtureFolder(model), ...options, precision });
  });
  afterAll(() => cluster?.stop());

  async function choices(body: Record<string, unknown>): Promise<any[]> {
    const fields = { max_tokens: 12, temperature: 1, ignore_eos: true, return_token_ids: true, logprobs: 3 };
    const answer = await cluster.post("/v1/completions", { ...fields, ...body });
    expect(answer.status, JSON.stringify(answer.body)).toBe(200);
    return answer.body.choices.map(({ index: _, ...choice }: any) => choice);
  }

  async function reusedRows(): Promise<number> {
    const page = await fetch(`${cluster.url}/metrics`).then((response) => response.text());
    return Number(/^glm_relay_prefix_cache_hits_total\{.*\} (\d+)$/m.exec(page)![1]);
  }

  it.each([[6], [18], [33], [50]])("has the same choices of a prompt of %i tokens", async (length) => {
    const asked = [1, 2].map((salt) => ({ prompt: prompt(length, salt), seed: 20 + salt }));
    const together = await Promise.all(asked.map((body) => choices({ ...body, n: 5 })));
    for (const [index, { prompt, seed }] of asked.entries()) {
      for (const [choice, got] of together[index]!.entries()) {
        const own = { seed: `${deriveSeed(BigInt(seed), choice)}`, cache_salt: `${choice}` };
        expect([got]).toEqual(await choices({ prompt, ...own }));
      }
    }
    expect((await cluster.view()).blocks.used).toBe(0);
  });

  it("computes the prompt once", async () => {
    const before = await reusedRows();
    await choices({ prompt: prompt(50, 3), n: 5, cache_salt: "once" });
    const reused = (await reusedRows()) - before;
    // The others compute the row of its last token; a causal one may compute its last block as well.
    expect(reused).toBeGreaterThanOrEqual(4 * 48);
    expect(reused).toBeLessThanOrEqual(4 * 49);
  });
});
