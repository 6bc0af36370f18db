/** What requests are called in headers and logs, and what a log line says of their end. */
import { randomBytes } from "node:crypto";
import type { ErrorCode } from "../../common/errors.js";
import { maxLoggedIdLength } from "../../common/limits.js";
import type { UsageCounter } from "./usage.js";

/** Of a generation request, from its submission on. */
export interface Answered {
  completionId: string;
  usage: UsageCounter;
}

/** A client's own id if it can stand in headers and logs as it is, else a new one. */
export function acceptRequestId(given: unknown): string {
  if (typeof given === "string" && given.length <= maxLoggedIdLength && /^[\w.:/+=-]+$/.test(given)) {
    return given;
  }
  return `req-${randomBytes(12).toString("hex")}`;
}

/** What a log line says about an answer beside its status: how much, never what. */
export function outcomeFields(answered: Answered | null, code: ErrorCode | null): object {
  if (answered === null) return code === null ? {} : { code };
  const { prompt_tokens, completion_tokens } = answered.usage.usage;
  return {
    ...(code === null ? {} : { code }),
    completionId: answered.completionId,
    promptTokens: prompt_tokens,
    completionTokens: completion_tokens,
  };
}
