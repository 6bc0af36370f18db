/**
 * Drawing behind the rows of a draft is drawing one token after the other: the same tokens, logprobs, ranks and
 * alternatives to the last bit, whatever the draft guesses, at any temperature, alone and in company.
 */

import { join } from "node:path";
import { afterAll, afterEach, expect, test, vi } from "vitest";
import {
  engineInfo,
  type SampleRequest,
  type Stage,
  type StepInput,
  type TokenResult,
} from "../../native/index.js";
import {
  greedy,
  INT4,
  INT8,
  randomModel,
  rows,
  type StageOptions,
  seededRandom,
  type Tensors,
  TestPipeline,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);
afterEach(() => {
  vi.unstubAllEnvs();
});

const REPLY = 40;
const PROMPT = [5, 9, 2, 2, 7];
const shape = { ...TINY, vocabSize: 101, tokenCount: 97, maxPositions: 128 };
const options: StageOptions = { maxRows: 64, blockCount: 16 };

function model(name: string): Tensors {
  return writeTensors(join(folder.path, `${name}.bin`), randomModel(shape, "float32", 17), true);
}

const visible = ({ token, logprob, rank, finite, topTokens, topLogprobs }: TokenResult) => ({
  token,
  logprob,
  rank,
  finite,
  top: [...topTokens],
  logprobs: [...topLogprobs],
});
type Visible = ReturnType<typeof visible>;

const requestAt = (row: number, position: number, changes: Partial<SampleRequest>): SampleRequest => ({
  ...greedy(row, position, 3),
  ...changes,
});

/** One token per step. */
async function alone(
  pipeline: Pick<TestPipeline, "step">,
  blocks: number[],
  changes: Partial<SampleRequest>,
) {
  const input = tokenStep([rows(0, PROMPT.length, blocks)], PROMPT);
  input.samples = [requestAt(PROMPT.length - 1, PROMPT.length, changes)];
  const results: Visible[] = (await pipeline.step(input)).samples.map(visible);
  while (results.length < REPLY) {
    const position = PROMPT.length + results.length;
    const next = tokenStep([rows(position - 1, 1, blocks)], [results.at(-1)!.token]);
    next.samples = [requestAt(0, position, changes)];
    results.push(...(await pipeline.step(next)).samples.map(visible));
  }
  return results;
}

/** What a draft guesses, knowing what is right. */
type Guess = (right: number[], random: () => number) => number[];

const guesses: Record<string, Guess> = {
  right: (right) => right,
  wrong: (right) => right.map((token) => (token + 1) % shape.tokenCount),
  "right at first": (right, random) => {
    const from = Math.floor(random() * (right.length + 1));
    return right.map((token, i) => (i < from ? token : (token + 3) % shape.tokenCount));
  },
  "right but for one": (right, random) => {
    const at = Math.floor(random() * right.length);
    return right.map((token, i) => (i === at ? (token + 2) % shape.tokenCount : token));
  },
  "of any length": (right, random) => right.slice(0, Math.floor(random() * (right.length + 1))),
};

/** The same reply with drafts; each step truncates to what was drawn, as the coordinator's headers do. */
async function drafted(
  pipeline: Pick<TestPipeline, "step">,
  blocks: number[],
  changes: Partial<SampleRequest>,
  expected: Visible[],
  guess: Guess,
  company: (input: StepInput) => void = () => {},
) {
  const random = seededRandom(23);
  const results: Visible[] = [];
  let steps = 0;
  let start = 0;
  let decided = PROMPT;
  while (results.length < REPLY) {
    const length = Math.min(1 + Math.floor(random() * 15), REPLY - results.length - 1);
    const right = expected.slice(results.length, results.length + length).map(({ token }) => token);
    const draft = guess(right, random);
    const ids = [...decided, ...draft];
    const input = tokenStep([rows(start, ids.length, blocks)], ids);
    const position = start + decided.length;
    input.samples = [requestAt(decided.length - 1, position, { ...changes, draft: Int32Array.from(draft) })];
    company(input);
    const drawn = (await pipeline.step(input)).samples.map(visible);
    // Whatever company there is comes behind it.
    let count = 1;
    while (count <= draft.length && drawn[count - 1]!.token === draft[count - 1]) count++;
    results.push(...drawn.slice(0, count));
    start = position + count - 1;
    decided = [results.at(-1)!.token];
    steps++;
  }
  return { results, steps };
}

const ways: [string, Partial<SampleRequest>][] = [
  ["greedy", {}],
  ["sampled", { temperature: 0.9, topK: 20, topP: 0.95, minP: 0.01, seed: 77n }],
  ["at a high temperature", { temperature: 3, seed: 5n }],
  ["with banned tokens", { temperature: 1, seed: 9n, bannedTokens: Int32Array.of(0, 3, 8, 11) }],
];

test.each(ways)(
  "%s: with a draft the tokens and logprobs are those of one row after the other",
  async (_, changes) => {
    const tensors = model("drafts");
    const blocks = [3, 0, 5];
    const pipeline = await TestPipeline.create(tensors, shape, [1, 3], options);
    const expected = await alone(pipeline, blocks, changes);
    expect(new Set(expected.map(({ token }) => token)).size).toBeGreaterThan(3);
    for (const [name, guess] of Object.entries(guesses)) {
      const { results, steps } = await drafted(pipeline, [7, 2, 6], changes, expected, guess);
      expect(results, name).toEqual(expected);
      if (name === "right") expect(steps).toBeLessThan(REPLY / 3);
      if (name === "wrong") expect(steps).toBe(REPLY);
    }
    await pipeline.close();
  },
);

test.each([
  ["INT8 KV", { dtype: "float16", kvType: "int8" }],
  ["int4, INT8 KV", { dtype: "float16", kvType: "int8", weights: INT4, headWeights: INT8 }],
] as [string, StageOptions][])("%s: rows that did not hold leave no trace", async (name, rounded) => {
  const tensors = model(name);
  const changes = { temperature: 0.8, seed: 3n };
  for (const variant of engineInfo().available) {
    vi.stubEnv("GLM_RELAY_KERNELS", variant);
    const pipeline = await TestPipeline.create(tensors, shape, [2], { ...options, ...rounded, threads: 2 });
    const expected = await alone(pipeline, [3, 0, 5], changes);
    for (const guess of Object.values(guesses)) {
      const { results } = await drafted(pipeline, [7, 2, 6], changes, expected, guess);
      expect(results, variant).toEqual(expected);
    }
    await pipeline.close();
  }
});

test("drafts of several sequences in one step do not know of each other, over more than a tile of logits", async () => {
  const tensors = model("company");
  const pipeline = await TestPipeline.create(tensors, shape, [], { ...options, threads: 2 });
  const changes = { temperature: 0.9, seed: 12n };
  const expected = await alone(pipeline, [3, 0, 5], changes);
  // 15 rows of others' drafts beside each of ours: their logits lie in the next tile, scores between them.
  const company = (input: StepInput) => {
    const others = [1, 4].map((block) => rows(0, 16, [block]));
    const first = input.sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
    input.sequences.push(...others);
    const ids = Array.from({ length: 32 }, (_, i) => (i * 5) % shape.tokenCount);
    input.tokenIds = Int32Array.from([...input.tokenIds!, ...ids]);
    for (const [index] of others.entries()) {
      const row = first + 16 * index;
      const draft = Int32Array.from(ids.slice(16 * index + 1, 16 * index + 16));
      input.samples.push({ ...greedy(row, 1), draft });
      input.scores.push({ row: row + 7, token: 2, topLogprobs: 0 });
    }
  };
  for (const guess of Object.values(guesses)) {
    const { results } = await drafted(pipeline, [7, 2, 6], changes, expected, guess, company);
    expect(results).toEqual(expected);
  }
  await pipeline.close();
});

test("a guess that computes to NaN is refuted like any other, and its rows harm nobody", async () => {
  const poison = 96;
  const changes = { bannedTokens: Int32Array.of(poison), temperature: 0.7 };
  const pipeline = await TestPipeline.create(model("poison"), shape, [2], options);
  const [first, last] = pipeline.stages as [Stage, Stage];
  /** What the first stage sends on for that token is not finite. */
  const poisoned: Pick<TestPipeline, "step"> = {
    step: async (input) => {
      const { activations } = await first.step({ ...input, samples: [], scores: [] });
      const rowBytes = activations!.length / input.tokenIds!.length;
      for (const [row, token] of input.tokenIds!.entries()) {
        if (token === poison) activations!.fill(0xff, row * rowBytes, (row + 1) * rowBytes);
      }
      return last.step({ ...input, tokenIds: null, activations });
    },
  };
  const expected = await alone(poisoned, [3, 0, 5], changes);
  const guess: Guess = (right, random) => {
    const at = Math.floor(random() * right.length);
    return right.map((token, i) => (i === at ? poison : token));
  };
  const { results } = await drafted(poisoned, [7, 2, 6], changes, expected, guess);
  expect(results).toEqual(expected);
  // Where the guess is right, what is drawn behind it is not finite, and nothing is drawn behind that.
  const input = tokenStep([rows(0, 3, [1])], [1, 2, poison]);
  const other = Int32Array.from([...Array(shape.tokenCount).keys()].filter((token) => token !== poison));
  input.samples = [{ ...greedy(1, 2), bannedTokens: other, draft: Int32Array.of(poison) }];
  const { samples } = await poisoned.step(input);
  expect(samples.map(({ token, finite }) => (finite ? token : null))).toEqual([poison, null]);
  await pipeline.close();
});

test.each([
  [[1, 2, 3], "samples[0].draft: 3 tokens behind row 1 are more than the 2 rows that follow it"],
  [[1, shape.tokenCount], `samples[0].draft[1]: token ${shape.tokenCount} is outside the vocabulary`],
  [[1, -1], "samples[0].draft[1]: token -1 is outside the vocabulary"],
])("a draft %s that does not fit is refused", async (draft, message) => {
  const pipeline = await TestPipeline.create(model("refused"), shape, [], options);
  const input = tokenStep([rows(0, 4, [0])], [1, 2, 3, 4]);
  input.samples = [{ ...greedy(1, 2), draft: Int32Array.from(draft) }];
  await expect(pipeline.step(input)).rejects.toThrow(message);
  await pipeline.close();
});
