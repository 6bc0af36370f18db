/** How answers are judged and scored, and how the scores become a table: the arithmetic of quality.ts. */
import type { ChatMessage } from "../cli/api.js";
import { markdownTable } from "./report.js";

export interface HeldOutLine {
  task: string;
  split: string;
  messages: ChatMessage[];
  /** The one right answer. */
  answer: string;
}

export interface Answer {
  text: string;
  finishReason: string;
}

/** Negative log-likelihood of many answers' tokens. */
export interface Likelihood {
  /** Sum of -ln p over the tokens. */
  nats: number;
  tokens: number;
}

export interface ConfigurationScore {
  name: string;
  /** In the order of the lines that were asked. */
  answers: Answer[];
  likelihood: Likelihood;
}

/** The text is exactly right, and the model then stopped by itself. */
export function isRight(line: HeldOutLine, { text, finishReason }: Answer): boolean {
  return text === line.answer && finishReason === "stop";
}

/**
 * The negative log-likelihood of the last `count` tokens of a scored prompt.
 * @param logprobs One per token of the prompt; the first has none.
 * @throws Error when one of the tokens has no log-probability.
 */
export function answerNats(logprobs: readonly (number | null)[], count: number): number {
  if (logprobs.length <= count) {
    throw new Error(`${logprobs.length} log-probabilities, expected more than the answer's ${count} tokens`);
  }
  return logprobs.slice(logprobs.length - count).reduce<number>((sum, logprob) => {
    if (logprob === null) throw new Error("a token of the answer has no log-probability");
    return sum - logprob;
  }, 0);
}

/**
 * Accuracy in per cent per task and the mean negative log-likelihood, one column per configuration,
 * with the differences to the configuration named `reference` where that is among them.
 */
export function qualityTable(
  lines: readonly HeldOutLine[],
  scores: readonly ConfigurationScore[],
  reference: string,
): string {
  const tasks = [...new Set(lines.map(({ task }) => task))];
  const accuracy = scores.map(({ answers }) => tasks.map((task) => taskAccuracy(lines, answers, task)));
  const means = accuracy.map((column) => sum(column) / tasks.length);
  const nats = scores.map(({ likelihood }) => likelihood.nats / likelihood.tokens);
  const base = scores.findIndex(({ name }) => name === reference);
  const differences = (values: number[], digits: number) =>
    values.map((value) => signed(value - values[base]!, digits));

  const rows = tasks.map((task, index) => [
    task,
    String(lines.filter((line) => line.task === task).length),
    ...accuracy.map((column) => column[index]!.toFixed(1)),
  ]);
  rows.push(["mean", "", ...means.map((mean) => mean.toFixed(2))]);
  if (base >= 0) rows.push([`mean, against ${reference}`, "", ...differences(means, 2)]);
  if (base >= 0) rows.push([`answers unlike ${reference}'s`, "", ...unlike(scores, scores[base]!)]);
  rows.push([
    "NLL per answer token",
    String(scores[0]?.likelihood.tokens ?? 0),
    ...nats.map((nat) => nat.toFixed(5)),
  ]);
  if (base >= 0) rows.push([`NLL, against ${reference}`, "", ...differences(nats, 5)]);
  return markdownTable(["task", "n", ...scores.map(({ name }) => name)], rows);
}

function taskAccuracy(lines: readonly HeldOutLine[], answers: readonly Answer[], task: string): number {
  const right = lines.flatMap((line, index) => (line.task === task ? [isRight(line, answers[index]!)] : []));
  return (100 * right.filter(Boolean).length) / right.length;
}

function unlike(scores: readonly ConfigurationScore[], base: ConfigurationScore): string[] {
  return scores.map(({ answers }) =>
    String(answers.filter(({ text }, index) => text !== base.answers[index]!.text).length),
  );
}

/** @throws Error when a marker is missing. */
export function replaceBetween(text: string, begin: string, end: string, content: string): string {
  const from = text.indexOf(begin);
  const to = text.indexOf(end, from);
  if (from < 0 || to < 0) throw new Error(`expected a line ${begin} and after it a line ${end}`);
  return `${text.slice(0, from + begin.length)}\n\n${content}\n\n${text.slice(to)}`;
}

/** `count` of the items, each as likely as any other, in the order drawn. @param random Uniform in [0, 1). */
export function draw<T>(items: readonly T[], count: number, random: () => number): T[] {
  const pool = [...items];
  const drawn = Math.min(count, pool.length);
  for (let index = 0; index < drawn; index++) {
    const other = index + Math.floor(random() * (pool.length - index));
    [pool[index], pool[other]] = [pool[other]!, pool[index]!];
  }
  return pool.slice(0, drawn);
}

function signed(value: number, digits: number): string {
  const text = value.toFixed(digits);
  if (Number(text) === 0) return (0).toFixed(digits);
  return value > 0 ? `+${text}` : text;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
