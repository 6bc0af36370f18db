/**
 * How a command ends when it cannot do its work: one line on standard error (of `coordinator` and `worker`, whose
 * standard error is a log, a line of that), and an exit status that scripts can rely on. Loads nothing heavy, so
 * that `--help` stays fast.
 */
export const exitStatus = { done: 0, failed: 1, badUsage: 2 } as const;

/** A failure with a message made for people; `code` is a catalogue code or what the server sent. */
export class CommandError extends Error {
  override readonly name = "CommandError";

  constructor(
    message: string,
    readonly code: string | null = null,
    readonly status: 1 | 2 = exitStatus.failed,
  ) {
    super(message);
  }
}

/** What begins the line by which a command tells why it failed. */
export const errorPrefix = "error: ";

/** One line for anything thrown. Only a mistake of our own shows where it happened. */
export function formatFailure(error: unknown): string {
  if (!(error instanceof Error)) return `${errorPrefix}${String(error)}`;
  if (!isKnown(error)) return `${errorPrefix}${error.stack ?? error.message}`;
  return `${errorPrefix}${withCode(error.message, codeOf(error))}`;
}

/** The same as fields and message of a log line. */
export function failureLine(error: unknown): { fields: object; message: string } {
  if (!(error instanceof Error)) return { fields: {}, message: String(error) };
  if (!isKnown(error)) return { fields: { err: error }, message: error.message };
  const code = codeOf(error);
  return { fields: code === null ? {} : { code }, message: error.message };
}

/** What a line of a command's standard error or log says of its failure; null for any other line. */
export function failureIn(line: string): string | null {
  if (line.startsWith(errorPrefix)) return line.slice(errorPrefix.length);
  if (!line.startsWith("{")) return null;
  try {
    const { level, msg, code } = JSON.parse(line) as { level?: unknown; msg?: unknown; code?: unknown };
    if (level !== fatalLevel || typeof msg !== "string") return null;
    return withCode(msg, typeof code === "string" ? code : null);
  } catch {
    return null;
  }
}

/** As pino counts: nothing but the end of a process is logged as fatal. */
const fatalLevel = 60;

/** By name and not by class: importing the class would load the gRPC library. */
const isKnown = ({ name }: Error): boolean => name === "RelayError" || name === "CommandError";
const codeOf = (error: Error): string | null => (error as { code?: string | null }).code ?? null;
const withCode = (message: string, code: string | null): string =>
  code === null || code === "" ? message : `${message} [${code}]`;

export function statusOfFailure(error: unknown): number {
  return error instanceof CommandError ? error.status : exitStatus.failed;
}
