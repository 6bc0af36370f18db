/**
 * How a command ends when it cannot do its work: one line on standard error, and an exit status that
 * scripts can rely on. Loads nothing heavy, so that `--help` stays fast.
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

/** What begins the line by which every command tells why it failed; `up` looks for it in its children's logs. */
export const errorPrefix = "error: ";

/** One line for anything thrown. Only a mistake of our own shows where it happened. */
export function formatFailure(error: unknown): string {
  if (!(error instanceof Error)) return `${errorPrefix}${String(error)}`;
  // By name and not by class: importing the class would load the gRPC library.
  const known = error.name === "RelayError" || error.name === "CommandError";
  if (!known) return `${errorPrefix}${error.stack ?? error.message}`;
  const code = (error as { code?: string | null }).code;
  return `${errorPrefix}${error.message}${code ? ` [${code}]` : ""}`;
}

export function statusOfFailure(error: unknown): number {
  return error instanceof CommandError ? error.status : exitStatus.failed;
}
