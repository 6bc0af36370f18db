/** What peers.ts asks of each engine that it compares, so that all of them do the same work in the same order. */
import type { Model } from "../checkpoint/index.js";
import { uniform } from "./random-values.js";
import { decodeRate } from "./report.js";
import type { BenchCluster } from "./up.js";

export interface SpeedTask {
  /** Prompts are drawn from ids below this. */
  tokenCount: number;
  /** Tokens that end every prompt, of its length: a prefix-LM reads what is in front of them as a whole. */
  promptEnd?: readonly number[];
  prefillLengths: readonly number[];
  /** Sequences that decode at once. */
  sequenceCounts: readonly number[];
  /** Tokens of their prompts. */
  contexts: readonly number[];
  /** Tokens that each sequence decodes. */
  tokens: number;
}

/** What prompts of a model are made of. */
export function promptsOf({
  shape,
  card,
  prefixModel,
}: Pick<Model, "shape" | "card" | "prefixModel">): Pick<SpeedTask, "tokenCount" | "promptEnd"> {
  const fill = card.tokenizer.fill;
  if (prefixModel === null || fill === undefined) return { tokenCount: shape.tokenCount };
  const { masks, start } = prefixModel.fill;
  // Ids below all masks are text; the mask for what is at the end and the start token close the context.
  const mask = masks[fill.masks.indexOf(fill.append)]!;
  return { tokenCount: Math.min(...masks, start), promptEnd: [mask, start] };
}

/**
 * An engine that is ready.
 * @returns When each of the `tokens` tokens after the prompt came, in ms.
 */
export type Generate = (prompt: number[], tokens: number) => Promise<number[]>;

/** Tokens per second, of decode by decodeKey and of prefill by the length of the prompt. */
export interface RoundSpeeds {
  decode: Record<string, number>;
  prefill: Record<number, number>;
}

export const decodeKey = (sequences: number, context: number): string => `${sequences}@${context}`;

/** @param round Gives every round prompts of its own, the same ones to every engine. */
export async function runTask(generate: Generate, task: SpeedTask, round: number): Promise<RoundSpeeds> {
  const random = uniform(round);
  const end = task.promptEnd ?? [];
  const prompt = (length: number) => [
    ...Array.from({ length: length - end.length }, () => Math.floor(random() * task.tokenCount)),
    ...end,
  ];
  // Pages of weights and workspace are touched for the first time.
  await generate(prompt(Math.max(...task.prefillLengths)), 1);
  const speeds: RoundSpeeds = { decode: {}, prefill: {} };
  for (const length of task.prefillLengths) {
    const ids = prompt(length);
    const started = performance.now();
    await generate(ids, 1);
    speeds.prefill[length] = (length * 1_000) / (performance.now() - started);
  }
  for (const context of task.contexts) {
    for (const sequences of task.sequenceCounts) {
      const prompts = Array.from({ length: sequences }, () => prompt(context));
      const arrivals = await Promise.all(prompts.map((ids) => generate(ids, task.tokens)));
      speeds.decode[decodeKey(sequences, context)] = decodeRate(arrivals);
    }
  }
  return speeds;
}

/** A cluster as an engine, through its HTTP API. */
export function clusterEngine(cluster: BenchCluster): Generate {
  return async (prompt, tokens) => {
    const body = { prompt, max_tokens: tokens, ignore_eos: true, temperature: 0, return_token_ids: true };
    const times: number[] = [];
    for await (const { choices } of cluster.stream("/v1/completions", body)) {
      for (const _ of choices[0]?.token_ids ?? []) times.push(performance.now());
    }
    if (times.length !== tokens) throw new Error(`${times.length} tokens came, expected ${tokens}`);
    return times;
  };
}
