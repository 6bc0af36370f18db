/**
 * Models of every kind of attention and feed-forward part through a cluster of real processes: the tokens of
 * their references, all cases at once, and the blanks of prefix-LMs.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ClusterView } from "../../coordinator/inference.js";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { TestCluster } from "../support/cluster.js";

interface Served {
  fixture: string;
  /** Whose expected values are this one's. */
  as?: string;
  prefix?: string;
  stages: number;
  dtype?: string;
}

const served: Served[] = [
  { fixture: "glm45-tiny", stages: 3 },
  { fixture: "chatglm-6b-tiny", stages: 2 },
  { fixture: "chatglm-6b-tiny", prefix: "chatglm-6b-tiny-ptuning", stages: 2 },
  { fixture: "glm-130b-tiny-shards", as: "glm-130b-tiny", stages: 3 },
  { fixture: "glm-10b-tiny", stages: 1 },
];

describe.each(served)("$fixture $prefix in $stages stages", ({ fixture, as, prefix, stages }) => {
  const expected = readExpected(prefix ?? as ?? fixture);
  const { ids } = expected;
  let cluster: TestCluster;

  beforeAll(async () => {
    const set = (field: string, id: number | undefined) =>
      id === undefined ? [] : ["--set", `${field}=${id}`];
    cluster = await TestCluster.start({
      model: fixtureFolder(fixture),
      stages,
      dtype: "float32",
      precision: [
        ...set("mask_token_id", ids?.mask),
        ...set("gmask_token_id", ids?.gmask),
        ...set("sop_token_id", ids?.sop),
        ...(prefix === undefined ? [] : ["--prefix-encoder", fixtureFolder(prefix)]),
      ],
    });
  });
  afterAll(() => cluster?.stop());

  const complete = async (prompt: number[], more: Record<string, unknown> = {}) => {
    const body = { prompt, temperature: 0, ignore_eos: true, max_tokens: 9, ...more };
    const answer = await cluster.post("/v1/completions", body);
    expect(answer.status, JSON.stringify(answer.body)).toBe(200);
    return answer.body.choices[0];
  };

  it("draws the reference's tokens, whoever travels along", async () => {
    const answers = await Promise.all(
      expected.cases.map(({ prompt, contextLength, tokens }) =>
        complete(prompt, {
          max_tokens: tokens.length,
          ...(contextLength === 0 ? { attention_mode: "causal" } : {}),
        }),
      ),
    );
    expect(answers.map(({ token_ids }) => token_ids)).toEqual(expected.cases.map(({ tokens }) => tokens));
  });

  it("scores the tokens that the context does not see", async () => {
    const [example] = expected.cases.slice(ids === undefined ? 0 : 3);
    const { prompt, promptLogprobs } = example!;
    const { logprobs } = await complete(prompt, { echo: true, logprobs: 0, max_tokens: 0 });
    const [first, ...scores] = logprobs.token_logprobs;
    expect(first).toBeNull();
    expect(scores.map((score: number | null) => score === null)).toEqual(
      promptLogprobs.map((score) => score === null),
    );
    for (const [i, score] of scores.entries()) {
      if (score !== null) expect(score).toBeCloseTo(promptLogprobs[i]!, 3);
    }
  });

  it.runIf(ids !== undefined)("fills several blanks from left to right and says which is which", async () => {
    const { mask, sop } = ids!;
    const two = [5, 6, mask, 7, 8, 9, mask, 10, sop];
    const answer = await complete(two, { max_tokens: 4 });
    const first = await complete(two.slice(0, -1).concat(sop), { max_tokens: 4 });
    expect(first.blanks).toHaveLength(2);
    const [filled] = [answer.token_ids.slice(0, 4)];
    const then = await complete([5, 6, ...filled, 7, 8, 9, mask, 10, sop], { max_tokens: 4 });
    expect(answer.token_ids).toEqual([...filled, ...then.token_ids]);
    expect(answer.blanks).toEqual([
      { index: 0, mask: `token_id:${mask}`, finish_reason: "length", text: "" },
      { index: 1, mask: `token_id:${mask}`, finish_reason: "length", text: "" },
    ]);
    expect(answer.finish_reason).toBe("length");
  });

  it.runIf(ids !== undefined)("asks for the token that starts a reply", async () => {
    const { status, body } = await cluster.post("/v1/completions", { prompt: [5, 6, 7] });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "invalid_value", param: "prompt" });
    expect(body.error.message).toContain("sop");
  });

  it("leaves no block behind", async () => {
    const view = await fetch(`${cluster.url}/api/cluster`).then((response) => response.json());
    expect((view as ClusterView).blocks.used).toBe(0);
  });
});
