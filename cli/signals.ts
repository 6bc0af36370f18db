/** How a long-running command is asked to end. */

/** npm, npx and make pass a terminal's Ctrl-C on although the terminal sent it to us too: that is one request. */
const echoMs = 400;

export interface StopSignal {
  /** Resolves with the signal's name at the first request to end. */
  requested: Promise<NodeJS.Signals>;
  /** Stops listening; the signals have their default effect again. */
  release(): void;
}

/**
 * Listens for Ctrl-C, SIGTERM and a closed terminal.
 * @param onMore Called when somebody insists, with how often that was.
 */
export function listenForStop(onMore: (times: number) => void): StopSignal {
  let lastAtMs: number | null = null;
  let times = 0;
  let resolve: (signal: NodeJS.Signals) => void = () => undefined;
  const requested = new Promise<NodeJS.Signals>((done) => {
    resolve = done;
  });
  const listener = (signal: NodeJS.Signals) => {
    const nowMs = performance.now();
    if (lastAtMs !== null && nowMs - lastAtMs <= echoMs) return;
    if (lastAtMs === null) resolve(signal);
    else onMore(++times);
    lastAtMs = nowMs;
  };
  const signals: NodeJS.Signals[] = ["SIGINT", "SIGTERM", "SIGHUP"];
  for (const signal of signals) process.on(signal, listener);
  return {
    requested,
    release: () => {
      for (const signal of signals) process.off(signal, listener);
    },
  };
}
