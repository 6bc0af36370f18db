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
 * @param onSecond Called when the person insists.
 */
export function listenForStop(onSecond: () => void): StopSignal {
  let firstAtMs: number | null = null;
  let resolve: (signal: NodeJS.Signals) => void = () => undefined;
  const requested = new Promise<NodeJS.Signals>((done) => {
    resolve = done;
  });
  const listener = (signal: NodeJS.Signals) => {
    const nowMs = performance.now();
    if (firstAtMs === null) {
      firstAtMs = nowMs;
      resolve(signal);
    } else if (nowMs - firstAtMs > echoMs) {
      onSecond();
    }
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
