/** What is written down of a batch: batch.json. */
import {
  type BatchObject,
  type BatchStatus,
  batchEndpoints,
  batchStatuses,
  type CreationName,
  type NewBatch,
} from "./batch.js";
import type { LineUsage } from "./ledger-record.js";
import type { JobCut } from "./prepared.js";
import type { BatchEnd } from "./states.js";

export interface BatchRecord {
  version: 1;
  /** As the API shows it; counts and usage are those of the last time that it was written. */
  object: BatchObject;
  tenant: string;
  /** Absent: its client gave none. */
  creation?: CreationName;
  /** Unix time with a fraction: no two of a process are equal. */
  createdMs: number;
  /** Unix time: no line is begun from then on. */
  expiresMs: number;
  /** Seconds that output and error file are kept; null: as other files. */
  outputExpiresAfterS: number | null;
  end: BatchEnd | null;
  jobs: JobCut[];
  /** Ids of output and error file, before they are there: what is begun anew makes no others. */
  files: { output: string; error: string } | null;
}

export function newRecord(
  id: string,
  batch: NewBatch,
  made: { tenant: string; name: CreationName | null; model: string; createdMs: number },
): BatchRecord {
  const { tenant, name, model, createdMs } = made;
  const createdS = Math.floor(createdMs / 1_000);
  return {
    version: 1,
    tenant,
    ...(name === null ? {} : { creation: name }),
    createdMs,
    expiresMs: createdMs + batch.windowS * 1_000,
    outputExpiresAfterS: batch.outputExpiresAfterS,
    end: null,
    jobs: [],
    files: null,
    object: {
      id,
      object: "batch",
      endpoint: batch.endpoint,
      model,
      errors: null,
      input_file_id: batch.inputFileId,
      completion_window: batch.completionWindow,
      status: "validating",
      output_file_id: null,
      error_file_id: null,
      created_at: createdS,
      in_progress_at: null,
      expires_at: createdS + batch.windowS,
      finalizing_at: null,
      completed_at: null,
      failed_at: null,
      expired_at: null,
      cancelling_at: null,
      cancelled_at: null,
      request_counts: { total: 0, completed: 0, failed: 0 },
      usage: usageObject({ promptTokens: 0, cachedTokens: 0, completionTokens: 0, reasoningTokens: 0 }),
      metadata: batch.metadata,
      priority: batch.priority,
      token_budget: batch.tokenBudget,
      webhook: batch.webhookUrl === null ? null : { url: batch.webhookUrl, status: "pending", attempts: 0 },
    },
  };
}

export function usageObject(usage: LineUsage): BatchObject["usage"] {
  const { promptTokens, cachedTokens, completionTokens, reasoningTokens } = usage;
  return {
    input_tokens: promptTokens,
    input_tokens_details: { cached_tokens: cachedTokens },
    output_tokens: completionTokens,
    output_tokens_details: { reasoning_tokens: reasoningTokens },
    total_tokens: promptTokens + completionTokens,
  };
}

/** Which of the times says since when a batch has been in a state. */
const timeOf: Partial<Record<BatchStatus, keyof BatchObject>> = {
  in_progress: "in_progress_at",
  finalizing: "finalizing_at",
  completed: "completed_at",
  failed: "failed_at",
  expired: "expired_at",
  cancelling: "cancelling_at",
  cancelled: "cancelled_at",
};

export function stampStatus(object: BatchObject, status: BatchStatus, nowMs: number): void {
  object.status = status;
  const time = timeOf[status];
  if (time !== undefined) Object.assign(object, { [time]: Math.floor(nowMs / 1_000) });
}

/** Since when a batch that has ended is in its last state, Unix seconds. */
export function endedAtS(object: BatchObject): number {
  const time = timeOf[object.status];
  return (time === undefined ? null : (object[time] as number | null)) ?? object.created_at;
}

/** @throws Error for what is no record of a batch with this id: another release wrote it, or the disk is damaged. */
export function readRecord(text: string, id: string): BatchRecord {
  const record = JSON.parse(text) as BatchRecord;
  const object = record?.object;
  const isSound =
    record?.version === 1 &&
    object?.id === id &&
    batchStatuses.includes(object.status) &&
    batchEndpoints.includes(object.endpoint) &&
    typeof record.tenant === "string" &&
    Number.isFinite(record.createdMs) &&
    Number.isFinite(record.expiresMs) &&
    Number.isSafeInteger(object.request_counts?.total) &&
    Array.isArray(record.jobs);
  if (!isSound) throw new Error("it is not a record of version 1 of this batch");
  return record;
}
