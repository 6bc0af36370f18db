/** Tells while a cluster starts how much of the weights its workers have read. */
import { setTimeout as sleep } from "node:timers/promises";
import { fetchCluster } from "./api.js";

/** A model that loads faster needs no line; a slow one gets one at most so often. */
const lineMs = 2_000;

/**
 * Asks the coordinator now and then and gives every new state to `progress`.
 * @returns Ends the asking.
 */
export function watchLoading(url: string, progress: (line: string) => void): () => void {
  const stopped = new AbortController();
  const watch = async () => {
    let last = "";
    for (;;) {
      await sleep(lineMs, null, { signal: stopped.signal, ref: false });
      // While the coordinator is busy or restarting there is nothing new to tell.
      const view = await fetchCluster(url).catch(() => null);
      if (stopped.signal.aborted) return;
      if (view === null || view.state !== "loading" || view.reason === last) continue;
      last = view.reason;
      progress(last);
    }
  };
  // The only way out is the abort.
  watch().catch(() => undefined);
  return () => stopped.abort();
}
