/** What speed.ts asks of each engine that it compares, so that all of them do the same work in the same order. */
import { uniform } from "./random-values.js";
import { decodeRate } from "./report.js";

export interface SpeedTask {
  /** Prompts are drawn from ids below this. */
  tokenCount: number;
  prefillLengths: readonly number[];
  /** Sequences that decode at once. */
  sequenceCounts: readonly number[];
  decodePromptLength: number;
  /** Tokens that each sequence decodes. */
  tokens: number;
}

/**
 * An engine that is ready.
 * @returns When each of the `tokens` tokens after the prompt came, in ms.
 */
export type Generate = (prompt: number[], tokens: number) => Promise<number[]>;

/** Tokens per second, by number of sequences and by length of the prompt. */
export interface RoundSpeeds {
  decode: Record<number, number>;
  prefill: Record<number, number>;
}

/** @param round Gives every round prompts of its own, the same ones to every engine. */
export async function runTask(generate: Generate, task: SpeedTask, round: number): Promise<RoundSpeeds> {
  const random = uniform(round);
  const prompt = (length: number) => Array.from({ length }, () => Math.floor(random() * task.tokenCount));
  // Pages of weights and workspace are touched for the first time.
  await generate(prompt(Math.max(...task.prefillLengths)), 1);
  const speeds: RoundSpeeds = { decode: {}, prefill: {} };
  for (const length of task.prefillLengths) {
    const ids = prompt(length);
    const started = performance.now();
    await generate(ids, 1);
    speeds.prefill[length] = (length * 1_000) / (performance.now() - started);
  }
  for (const sequences of task.sequenceCounts) {
    const prompts = Array.from({ length: sequences }, () => prompt(task.decodePromptLength));
    const arrivals = await Promise.all(prompts.map((ids) => generate(ids, task.tokens)));
    speeds.decode[sequences] = decodeRate(arrivals);
  }
  return speeds;
}
