/** Batches as the API sees them, and what the API asks of whoever runs them. */

/** The routes that a line can ask. */
export const batchEndpoints = ["/v1/chat/completions", "/v1/completions"] as const;
export type BatchEndpoint = (typeof batchEndpoints)[number];

export const batchStatuses = [
  "validating",
  "failed",
  "in_progress",
  "finalizing",
  "completed",
  "expired",
  "cancelling",
  "cancelled",
] as const;
export type BatchStatus = (typeof batchStatuses)[number];

/** A batch in one of these stays as it is. */
export const finalStatuses = ["failed", "completed", "expired", "cancelled"] as const satisfies BatchStatus[];
export type FinalStatus = (typeof finalStatuses)[number];

export function isFinal(status: BatchStatus): status is FinalStatus {
  return (finalStatuses as readonly BatchStatus[]).includes(status);
}

/** What is wrong with a line of the input. */
export interface BatchProblem {
  code: BatchProblemCode;
  /** From 1, blank lines counted; null when it is the file as a whole. */
  line: number | null;
  message: string;
  param: string | null;
}

export const batchProblemCodes = [
  "invalid_json_line",
  "missing_required_parameter",
  "invalid_value",
  "duplicate_custom_id",
  "mismatched_endpoint",
  "mismatched_model",
  "line_too_long",
  "empty_file",
  "too_many_tasks",
  "invalid_encoding",
] as const;
export type BatchProblemCode = (typeof batchProblemCodes)[number];

/** Why a line has no response, in the error file. */
export type LineErrorCode = "batch_expired" | "batch_cancelled" | "token_budget_exceeded";

/** As `/v1/batches` shows it. Times are Unix seconds. */
export interface BatchObject {
  id: string;
  object: "batch";
  endpoint: BatchEndpoint;
  /** The served model. */
  model: string;
  errors: { object: "list"; data: BatchProblem[] } | null;
  input_file_id: string;
  completion_window: string;
  status: BatchStatus;
  output_file_id: string | null;
  error_file_id: string | null;
  created_at: number;
  in_progress_at: number | null;
  expires_at: number;
  finalizing_at: number | null;
  completed_at: number | null;
  failed_at: number | null;
  expired_at: number | null;
  cancelling_at: number | null;
  cancelled_at: number | null;
  request_counts: { total: number; completed: number; failed: number };
  /** Tokens of all lines that are answered. */
  usage: {
    input_tokens: number;
    input_tokens_details: { cached_tokens: number };
    output_tokens: number;
    output_tokens_details: { reasoning_tokens: number };
    total_tokens: number;
  };
  metadata: Record<string, string> | null;
  /** Beyond OpenAI: batches of a lower number go first, 0 unless said otherwise. */
  priority: number;
  /** Beyond OpenAI: no line is begun once the batch has used so many tokens; null: no bound. */
  token_budget: number | null;
  /** Beyond OpenAI: where its end is told; null: nowhere. */
  webhook: { url: string; status: "pending" | "delivered" | "failed"; attempts: number } | null;
}

/** A body of POST /v1/batches whose fields have been checked. */
export interface NewBatch {
  inputFileId: string;
  endpoint: BatchEndpoint;
  /** As it was written, and in seconds. */
  completionWindow: string;
  windowS: number;
  metadata: Record<string, string> | null;
  /** Seconds that output and error file are kept; null: as other files. */
  outputExpiresAfterS: number | null;
  priority: number;
  tokenBudget: number | null;
  webhookUrl: string | null;
}

/** By what a client knows the batch that it asks for, should it have to ask again. */
export interface CreationName {
  /** As the client chose it. */
  key: string;
  /** Digest of what it asked for. */
  request: string;
}

/** Whoever runs batches. A batch is seen by the tenant who made it alone. */
export interface BatchService {
  /**
   * Writes a batch down; it is checked behind.
   * @param name The tenant's batch that was made by the same name and request is given again, as it is now.
   * @throws RelayError not_found (the file), invalid_value (its purpose), storage_full, queue_full (too many
   *   unfinished ones), conflict (the name is that of another request).
   */
  create(batch: NewBatch, tenant: string, name: CreationName | null): Promise<BatchObject>;
  /** Null when there is none. */
  get(id: string, tenant: string): BatchObject | null;
  /**
   * Newest first.
   * @param after Id of the last one seen; null: from the newest on.
   * @throws RelayError not_found when there is no `after`.
   */
  list(
    page: { after: string | null; limit: number },
    tenant: string,
  ): { data: BatchObject[]; hasMore: boolean };
  /**
   * Takes no more lines, keeps those that are answered. The same again while it is cancelling.
   * @throws RelayError not_found, conflict when it has ended.
   */
  cancel(id: string, tenant: string): Promise<BatchObject>;
  /** Calls `changed` for each change of this batch, often; returns what ends that. */
  watch(id: string, changed: () => void): () => void;
}

/** How a line was answered. */
export interface LineAnswer {
  status: number;
  /** What the logs call the request. */
  requestId: string;
  /** JSON: what its client would have got in one piece, or an error object. */
  body: string;
  usage: { promptTokens: number; cachedTokens: number; completionTokens: number; reasoningTokens: number };
}

/** Answers one line as its endpoint would answer the same body. */
export interface LineRunner {
  /** Tokens that one sequence may have. */
  readonly contextLength: number;
  /**
   * Waits for a model that is not served yet, and for room in the waiting set: never queue_full.
   * @param body JSON of one request.
   * @param line What the logs call it, and what a seed is drawn from where the body names none: the same line draws the same in every run.
   * @param signal Its reason ends the request.
   * @throws RelayError when the line is to be run again later: draining, queue_unavailable; the signal's reason.
   */
  run(
    endpoint: BatchEndpoint,
    body: Uint8Array<ArrayBuffer>,
    line: { requestId: string; batchId: string; customId: string; tenant: string },
    signal: AbortSignal,
  ): Promise<LineAnswer>;
}
