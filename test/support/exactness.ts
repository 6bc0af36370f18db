/** The same 20 requests for any cluster, and what came back: tokens and logprobs to the last bit. */
import { isDeepStrictEqual } from "node:util";
import { engineInfo } from "../../native/index.js";
import { demoModel, TestCluster } from "./cluster.js";

/** What this machine has besides scalar, the reference; that alone where there is nothing else. */
const fastVariants = engineInfo().available.filter((name, _, all) => name !== "scalar" || all.length === 1);

/** They take turns (0, 1, ...). */
export const fastKernels = (turn: number): string => fastVariants[turn % fastVariants.length]!;

/** How weights, activations and KV cache are stored: names of what the coordinator's flags are. */
export const precisions = {
  float32: { dtype: "float32", flags: [] },
  float16: { dtype: "float16", flags: [] },
  "int4 in groups of 32": { dtype: "float16", flags: ["--quantization", "int4"] },
  "int4 in groups of 64, INT8 KV": {
    dtype: "bfloat16",
    flags: ["--quantization", "int4", "--group-size", "64", "--kv", "int8"],
  },
  "int4 in whole rows, int4 head": {
    dtype: "float16",
    flags: ["--quantization", "int4", "--group-size", "row", "--head", "int4", "--scales", "absmax"],
  },
  "int8 in groups of 128": { dtype: "float32", flags: ["--quantization", "int8", "--group-size", "128"] },
  "INT8 KV": { dtype: "float16", flags: ["--kv", "int8"] },
};
export type PrecisionName = keyof typeof precisions;

export interface Shape {
  stages: number;
  precision: PrecisionName;
  /** A variant of this machine; best: the one that runs where nobody says which. */
  kernels: string;
  /** Prompt tokens per step; null: the whole prompt. */
  chunk: number | null;
  /** Requests in flight at once: 1 is alone, 9 is beside eight others. */
  concurrency: 1 | 9;
  /** Default: as the coordinator has it. */
  speculation?: "off";
  /** What prompts should leave of the time between others' tokens: it says how large chunks are. */
  itlTargetMs?: number;
}

export interface Answer {
  tokens: string[];
  logprobs: number[];
  top: Record<string, number>[];
}

/** Small, fixed and good enough to spread prompts over the vocabulary (Numerical Recipes' LCG). */
function* randomNumbers(seed: number): Generator<number, never> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield state / 2 ** 32;
  }
}

/**
 * Prompts of 1 to 70 tokens, a quarter of which go round in a circle, so that speculation has something to guess
 * at; every second request samples with a seed, the others are greedy.
 */
export function requests(): Record<string, unknown>[] {
  const random = randomNumbers(7);
  const next = (bound: number) => Math.floor(random.next().value * bound);
  return Array.from({ length: 20 }, (_, index) => {
    const drawn = Array.from({ length: index === 0 ? 1 : 1 + next(70) }, () => next(1_500));
    const prompt = index % 8 < 6 ? drawn : drawn.map((_, place) => drawn[place % 5]!);
    const sampled = { temperature: 0.9, top_p: 0.95, top_k: 40, min_p: 0.01, seed: 1_000 + index };
    return {
      prompt,
      max_tokens: 10,
      ignore_eos: true,
      logprobs: 3,
      return_tokens_as_token_ids: true,
      ...(index % 2 === 0 ? { temperature: 0 } : sampled),
    };
  });
}

export async function collect(shape: Shape): Promise<Answer[]> {
  const { dtype, flags } = precisions[shape.precision];
  const cluster = await TestCluster.start({
    model: demoModel,
    stages: shape.stages,
    dtype,
    precision: flags,
    kernels: shape.kernels === "best" ? "" : shape.kernels,
    prefillChunk: shape.chunk ?? 512,
    speculation: shape.speculation,
    itlTargetMs: shape.itlTargetMs,
  });
  try {
    const all = requests();
    const answers: Answer[] = [];
    for (let begin = 0; begin < all.length; begin += shape.concurrency) {
      const some = all.slice(begin, begin + shape.concurrency);
      answers.push(...(await Promise.all(some.map((body) => ask(cluster, body)))));
    }
    return answers;
  } finally {
    await cluster.stop();
  }
}

async function ask(cluster: TestCluster, request: Record<string, unknown>): Promise<Answer> {
  const { status, body } = await cluster.post("/v1/completions", request);
  if (status !== 200) throw new Error(`status ${status}: ${JSON.stringify(body)}\n${cluster.log()}`);
  const { tokens, token_logprobs, top_logprobs } = body.choices[0].logprobs;
  if (tokens.length !== 10) throw new Error(`got ${tokens.length} tokens, expected 10`);
  return { tokens, logprobs: token_logprobs, top: top_logprobs };
}

export function describeShape(shape: Shape): string {
  const { stages, precision, kernels, chunk, concurrency, speculation, itlTargetMs } = shape;
  const load = concurrency === 1 ? "alone" : "beside 8 others";
  const guesses = speculation === "off" ? ", no speculation" : "";
  const target = itlTargetMs === undefined ? "" : `, ITL target ${itlTargetMs} ms`;
  return `${stages} stages, ${precision}, ${kernels}, ${chunk === null ? "whole prompt" : `chunks of ${chunk}`}, ${load}${guesses}${target}`;
}

/** Names the first difference, so that a failure says more than "not equal". */
export function firstDifference(got: Answer[], expected: Answer[]): string | null {
  for (const [index, answer] of expected.entries()) {
    if (isDeepStrictEqual(got[index], answer)) continue;
    return `request ${index}: got ${JSON.stringify(got[index])}, expected ${JSON.stringify(answer)}`;
  }
  return got.length === expected.length ? null : `${got.length} answers, expected ${expected.length}`;
}
