/**
 * The bond between `up` and the coordinator and workers it starts. They talk over Node's IPC channel,
 * which the kernel closes when `up` dies in any way, SIGKILL included.
 */
/** What a coordinator tells `up` as soon as it listens, so that a restart can take the same ports. */
export interface ListeningMessage {
  type: "listening";
  url: string;
  /** host:port; null without the gRPC API. */
  grpcAddress: string | null;
  clusterAddress: string;
}

/** What a worker with --verbose tells `up`: a line per matrix that was rounded on loading. */
export interface RoundedMessage {
  type: "rounded";
  lines: string[];
}

export function isRoundedMessage(message: unknown): message is RoundedMessage {
  return (message as { type?: unknown } | null)?.type === "rounded";
}

export function isListeningMessage(message: unknown): message is ListeningMessage {
  return (message as { type?: unknown } | null)?.type === "listening";
}

/** Does nothing for a process that somebody started by hand. */
export function tellParent(message: ListeningMessage | RoundedMessage): void {
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
}

/** Ends this process when the `up` that started it is gone: nobody would ever stop it. */
export function exitWithParent(): void {
  if (!process.connected) return;
  process.on("disconnect", () => process.exit(1));
  // The channel alone is no reason to stay alive.
  process.channel?.unref();
}
