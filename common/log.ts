/**
 * One logger per process, on standard error: standard output belongs to what people asked for.
 *
 * No log holds a prompt, an answer or a key. Call sites give ids and counts; two nets below them catch
 * what slips: fields by these names are blanked, and of an error only its name, code, message, stack and
 * cause are written. An error may carry more: ioredis hangs the whole command on it, arguments included.
 */
import { type DestinationStream, destination, type Logger, pino } from "pino";
import { RelayError } from "./errors.js";

export type { Logger };

const levels = ["trace", "debug", "info", "warn", "error", "fatal", "silent"];

const secretFields = [
  "prompt",
  "promptTokens",
  "messages",
  "content",
  "text",
  "tokens",
  "tokenIds",
  "body",
  "data",
  "authorization",
  "apiKey",
  "api_key",
  "password",
];
/** At the top and up to two levels down; deeper objects have no place in a log line. */
const redactedPaths = ["", "*.", "*.*."].flatMap((level) => secretFields.map((field) => `${level}${field}`));
/** Causes of causes; a chain that goes on is cut. */
const maxCauses = 4;

/**
 * @param component Name of the process in each line.
 * @param level     One of `levels`; by default what the environment variable GLM_RELAY_LOG says, else info.
 * @throws RelayError invalid_configuration for another level.
 */
export function createLogger(
  component: string,
  level = process.env["GLM_RELAY_LOG"] ?? "info",
  stream: DestinationStream = destination({ dest: 2, sync: true }),
): Logger {
  if (!levels.includes(level)) {
    throw new RelayError(
      "invalid_configuration",
      `log level "${level}" (environment variable GLM_RELAY_LOG): expected ${levels.join(", ")}`,
    );
  }
  return pino(
    {
      level,
      base: { component, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      // Counts go by the same names and tell nothing.
      redact: { paths: redactedPaths, censor: (value) => (typeof value === "number" ? value : "[redacted]") },
      serializers: { err: (error: unknown) => describeError(error, maxCauses) },
    },
    stream,
  );
}

function describeError(error: unknown, causesLeft: number): unknown {
  if (!(error instanceof Error)) return typeof error === "string" ? error : typeof error;
  const { name: type, message, stack, cause } = error;
  const { code } = error as { code?: unknown };
  return {
    type,
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
    message,
    stack,
    ...(cause === undefined || causesLeft === 0 ? {} : { cause: describeError(cause, causesLeft - 1) }),
  };
}
