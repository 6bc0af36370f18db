/** What a run has come to, for people and (by these names) for programs. */
import { formatCount, formatDuration } from "../text.js";
import type { BatchRun } from "./run.js";

export type Summary = ReturnType<typeof summarize>;

/** `done`, `failed` and `remaining` add up to `total`; tokens are those of the whole output, seconds of this run. */
export function summarize({ counts, remaining, seconds, tokensPerSecond }: BatchRun) {
  const { usage, ...numbers } = counts;
  return {
    ...numbers,
    remaining,
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    seconds: Number(seconds.toFixed(3)),
    tokens_per_second: Number(tokensPerSecond.toFixed(1)),
  };
}

export function formatSummary(summary: Summary): string {
  const { done, failed, skipped, retries, seconds } = summary;
  return (
    `done ${formatCount(done)}, failed ${formatCount(failed)}, skipped ${formatCount(skipped)}: ` +
    `${formatCount(summary.prompt_tokens)} prompt and ${formatCount(summary.completion_tokens)} completion ` +
    `tokens, ${formatDuration(seconds)}, ${formatCount(summary.tokens_per_second)} tokens/s` +
    (retries === 0 ? "" : `, ${formatCount(retries)} ${retries === 1 ? "retry" : "retries"}`)
  );
}
