/** What a batch has come to, for people and (by these names) for programs. */
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { formatCount, formatDuration } from "../text.js";

export type Summary = ReturnType<typeof summarize>;

/** `done`, `failed` and `remaining` add up to `total`; seconds are those since the batch was made. */
export function summarize(batch: BatchObject, nowS: number) {
  const { total, completed, failed } = batch.request_counts;
  const { usage } = batch;
  const seconds = Math.max(0, (endOf(batch) ?? nowS) - batch.created_at);
  return {
    batch: batch.id,
    status: batch.status,
    total,
    done: completed,
    failed,
    remaining: total - completed - failed,
    prompt_tokens: usage.input_tokens,
    cached_tokens: usage.input_tokens_details.cached_tokens,
    completion_tokens: usage.output_tokens,
    reasoning_tokens: usage.output_tokens_details.reasoning_tokens,
    seconds,
    tokens_per_second: Number((usage.output_tokens / Math.max(1, seconds)).toFixed(1)),
    errors: batch.errors?.data ?? [],
  };
}

export function formatSummary(summary: Summary): string {
  const { status, done, failed, remaining, total, seconds } = summary;
  return (
    `${status}: done ${formatCount(done)}, failed ${formatCount(failed)}` +
    (remaining === 0 ? "" : `, not answered ${formatCount(remaining)}`) +
    ` of ${formatCount(total)}: ${formatCount(summary.prompt_tokens)} prompt and ` +
    `${formatCount(summary.completion_tokens)} completion tokens, ${formatDuration(seconds)}, ` +
    `${formatCount(summary.tokens_per_second)} tokens/s`
  );
}

/** Unix seconds at which a batch ended; null while it goes on. */
export function endOf(batch: BatchObject): number | null {
  switch (batch.status) {
    case "completed":
      return batch.completed_at;
    case "failed":
      return batch.failed_at;
    case "expired":
      return batch.expired_at;
    case "cancelled":
      return batch.cancelled_at;
    default:
      return null;
  }
}

/** Several lines: everything about one batch. */
export function formatBatch(batch: BatchObject, nowS: number): string {
  const { total, completed, failed } = batch.request_counts;
  const { usage } = batch;
  const end = endOf(batch);
  const rows: [string, string][] = [
    ["batch", batch.id],
    ["status", batch.status],
    ["endpoint", `${batch.endpoint}, model ${batch.model}`],
    ["lines", `${formatCount(completed)} done, ${formatCount(failed)} failed of ${formatCount(total)}`],
    [
      "tokens",
      `${formatCount(usage.input_tokens)} prompt (${formatCount(usage.input_tokens_details.cached_tokens)} cached), ` +
        `${formatCount(usage.output_tokens)} completion`,
    ],
    [
      "made",
      `${formatTime(batch.created_at)}, ${formatDuration((end ?? nowS) - batch.created_at)}${end === null ? " ago" : " until its end"}`,
    ],
    ["expires", formatTime(batch.expires_at)],
    ["priority", String(batch.priority)],
    ...(batch.token_budget === null
      ? []
      : [["budget", `${formatCount(batch.token_budget)} tokens`] as [string, string]]),
    ["input", batch.input_file_id],
    ["output", batch.output_file_id ?? "none"],
    ["errors", batch.error_file_id ?? "none"],
    ...(batch.webhook === null
      ? []
      : [["webhook", `${batch.webhook.url}: ${batch.webhook.status}`] as [string, string]]),
    ...Object.entries(batch.metadata ?? {}).map(
      ([key, value]) => ["metadata", `${key} = ${value}`] as [string, string],
    ),
  ];
  return rows.map(([name, text]) => `${name.padEnd(9)} ${text}\n`).join("");
}

/** "2026-01-31 12:00:00Z" */
export function formatTime(unixS: number): string {
  return new Date(unixS * 1_000).toISOString().replace("T", " ").replace(".000", "");
}
