/** Guesses change how many tokens a step brings, and not one byte of an answer: through any number of stages. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type ClusterOptions, demoModel, TestCluster } from "../support/cluster.js";

/** Text that a model is likely to go on repeating, told apart by its numbers. */
const loops = (count: number): string[] =>
  Array.from({ length: count }, (_, i) =>
    `${i} + ${i} = ${2 * i}\n${i} + ${i + 1} = ${2 * i + 1}\n`.repeat(6),
  );

const prompts = [...loops(3), "The sun", "1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1,", "a b c d ".repeat(8)];

/** Every prompt greedily, sampled, with rules that end it within a guess, and as several choices. */
function requests(): Record<string, unknown>[] {
  const base = { max_tokens: 48, logprobs: 3, return_tokens_as_token_ids: true };
  return prompts.flatMap((prompt, index) => [
    { ...base, prompt, temperature: 0, ignore_eos: true },
    { ...base, prompt, temperature: 0.7, top_p: 0.9, seed: index, ignore_eos: true },
    { ...base, prompt, temperature: 0, stop: ["+ 3", "3,", "d a"], min_tokens: 5 },
    { ...base, prompt, temperature: 0.4, seed: 7 * index, min_tokens: 20, stop: ["\n"] },
    { ...base, prompt, temperature: 0.5, seed: index, n: 2, max_tokens: 20, echo: true },
  ]);
}

interface Run {
  answers: unknown[];
  drafted: number;
  accepted: number;
  steps: number;
}

async function run(options: ClusterOptions, concurrency: number): Promise<Run> {
  const cluster = await TestCluster.start({ model: demoModel, ...options });
  try {
    const answers: unknown[] = [];
    const all = requests();
    for (let begin = 0; begin < all.length; begin += concurrency) {
      const some = all.slice(begin, begin + concurrency);
      answers.push(...(await Promise.all(some.map((request) => ask(cluster, request)))));
    }
    const { blocks, counters } = await cluster.view();
    expect(blocks.used).toBe(0);
    return {
      answers,
      drafted: counters.draftedTokens,
      accepted: counters.acceptedTokens,
      steps: counters.steps,
    };
  } finally {
    await cluster.stop();
  }
}

async function ask(cluster: TestCluster, request: Record<string, unknown>): Promise<unknown> {
  const { status, body } = await cluster.post("/v1/completions", request);
  if (status !== 200) throw new Error(`status ${status}: ${JSON.stringify(body)}\n${cluster.log()}`);
  const { prompt_tokens, completion_tokens } = body.usage;
  return { choices: body.choices, prompt_tokens, completion_tokens };
}

const int4: Partial<ClusterOptions> = {
  dtype: "float16",
  precision: ["--quantization", "int4", "--kv", "int8"],
};

/** By name how numbers are stored, and the stages and requests at once to be compared with one by one on one. */
const runs: [string, Partial<ClusterOptions>, [number, number][]][] = [
  [
    "float32",
    { dtype: "float32" },
    [
      [1, 1],
      [2, 8],
      [4, 1],
    ],
  ],
  [
    "int4 with an INT8 KV cache",
    int4,
    [
      [2, 1],
      [4, 5],
    ],
  ],
];

describe.each(runs)("answers in %s with speculation", (_, precision, shapes) => {
  let off: Run;
  beforeAll(async () => {
    off = await run({ ...precision, stages: 1, speculation: "off" }, 1);
  });

  it("are compared with some that were drawn one by one", () => {
    expect(off.drafted).toBe(0);
    expect(new Set(off.answers.map((answer) => JSON.stringify(answer))).size).toBeGreaterThan(20);
  });

  it.each(shapes)(
    "are the same with logprobs and usage: %i stages, %i at once",
    async (stages, concurrency) => {
      const on = await run({ ...precision, stages, prefillChunk: 24 }, concurrency);
      for (const [index, answer] of on.answers.entries()) {
        expect(answer, JSON.stringify(requests()[index])).toEqual(off.answers[index]);
      }
      // How many depends on measured times.
      expect(on.accepted).toBeGreaterThan(30);
      expect(on.drafted).toBeGreaterThanOrEqual(on.accepted);
      if (concurrency === 1) expect(on.steps).toBeLessThan(off.steps);
    },
  );
});

describe("a cluster that speculates", () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: demoModel, stages: 3 });
  });
  afterAll(() => cluster?.stop());

  it("streams one event per token and counts its guesses", async () => {
    const request = { prompt: prompts[0], max_tokens: 40, temperature: 0, ignore_eos: true, stream: true };
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...request, return_token_ids: true }),
    });
    const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: {"));
    const counts = lines.flatMap((line) => {
      const [choice] = JSON.parse(line.slice(6)).choices;
      return choice?.token_ids?.length > 0 ? [choice.token_ids.length] : [];
    });
    expect(counts).toEqual(Array(40).fill(1));
    const page = await fetch(`${cluster.url}/metrics`).then((answer) => answer.text());
    const value = (name: string) => Number(new RegExp(`^${name}\\{[^}]*\\} (\\d+)$`, "m").exec(page)?.[1]);
    const drafted = value("glm_relay_speculation_drafted_tokens_total");
    const accepted = value("glm_relay_speculation_accepted_tokens_total");
    expect(accepted).toBeGreaterThan(0);
    expect(drafted).toBeGreaterThanOrEqual(accepted);
  });
});
