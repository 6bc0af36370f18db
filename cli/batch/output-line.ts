/** One line of a batch's output, as the OpenAI batch API defines it, and what becomes of it in a later run. */
import { randomBytes } from "node:crypto";
import { decode } from "./lines.js";
import { isObject } from "./request-line.js";

/** A longer line is not written: its request gets an error instead. */
export const outputLineBytesMax = 64 * 1024 * 1024;

/** How one request ended; one of the two is null. */
export interface Answer {
  response: { status_code: number; request_id: string | null; body: unknown } | null;
  error: { code: string; message: string } | null;
}

export interface Usage {
  promptTokens: number;
  completionTokens: number;
}

/** "done": answered with 2xx. "failed": for good. "passing": failed for a reason that may be gone in a later run. */
export type Verdict = "done" | "failed" | "passing";

export interface OutputLine {
  customId: string;
  verdict: Verdict;
  usage: Usage;
}

/** Client errors that say nothing about the request itself: time-out, conflict, too many requests. */
const passingStatuses = new Set([408, 409, 429]);

export function isPassingStatus(status: number): boolean {
  return passingStatuses.has(status) || status >= 500;
}

export function verdictOf({ response }: Answer): Verdict {
  const status = response?.status_code ?? 0;
  if (status >= 200 && status < 300) return "done";
  return status >= 400 && !isPassingStatus(status) ? "failed" : "passing";
}

/** The tokens that an answer counted; none where it counted none. */
export function usageOf({ response }: Answer): Usage {
  const body = response?.body;
  const usage = isObject(body) && isObject(body.usage) ? body.usage : {};
  return { promptTokens: count(usage.prompt_tokens), completionTokens: count(usage.completion_tokens) };
}

const count = (value: unknown) => (typeof value === "number" && value > 0 ? value : 0);

/** The line with its newline. @throws RangeError when the body is nested too deeply to be written. */
export function formatOutputLine(customId: string, { response, error }: Answer): string {
  const id = `batch_req_${randomBytes(12).toString("hex")}`;
  return `${JSON.stringify({ id, custom_id: customId, response, error })}\n`;
}

/** Null for what is no line of a batch's output. */
export function parseOutputLine(bytes: Buffer): OutputLine | null {
  const decoded = decode(bytes);
  if ("badByteAt" in decoded) return null;
  let value: unknown;
  try {
    value = JSON.parse(decoded.text);
  } catch {
    return null;
  }
  if (!isObject(value) || typeof value.custom_id !== "string") return null;
  const { response = null, error = null } = value;
  if (!isResponse(response) || !(error === null || isObject(error)) || (response ?? error) === null)
    return null;
  const answer = { response, error } as Answer;
  return { customId: value.custom_id, verdict: verdictOf(answer), usage: usageOf(answer) };
}

function isResponse(value: unknown): value is Answer["response"] {
  return value === null || (isObject(value) && Number.isInteger(value.status_code));
}
