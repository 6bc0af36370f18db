/** Tells while a cluster starts how much of the weights its workers have read, or why it does not load. */
import { setTimeout as sleep } from "node:timers/promises";
import type { ClusterView } from "../coordinator/inference.js";
import { fetchCluster } from "./api.js";
import type { Teller } from "./status-line.js";
import { formatBar } from "./text.js";

/** A model that loads faster needs no bar. */
const firstLookMs = 1_000;
const lookMs = 250;
const barWidth = 30;

/**
 * Asks the coordinator now and then and shows what it says.
 * @returns Ends the asking, and the bar.
 */
export function watchLoading(url: string, teller: Teller): () => void {
  const stopped = new AbortController();
  const { signal } = stopped;
  let told = "";
  const watch = async () => {
    for (let pauseMs = firstLookMs; ; pauseMs = lookMs) {
      await sleep(pauseMs, null, { signal, ref: false });
      // While the coordinator is busy or restarting there is nothing new to tell.
      const view = await fetchCluster(url).catch(() => null);
      if (signal.aborted) return;
      if (view?.state === "loading") show(view, teller);
      // Everybody is there and still nothing loads: the layers do not fit.
      const stuck = view?.state === "waiting" && view.workers.length >= view.stageCount;
      if (stuck && view.reason !== told) {
        told = view.reason;
        teller.print(told);
      }
    }
  };
  // The only way out is the abort.
  watch().catch(() => undefined);
  return () => {
    stopped.abort();
    teller.clear();
  };
}

function show({ stages, workers }: ClusterView, teller: Teller): void {
  const ratios = stages.map((stage) => workers.find(({ id }) => id === stage.worker)?.loadedRatio ?? 0);
  const ratio = ratios.reduce((sum, one) => sum + one, 0) / Math.max(1, ratios.length);
  const ready = `${ratios.filter((one) => one === 1).length} of ${stages.length} stages ready`;
  const percent = `${Math.floor(100 * ratio)} %`;
  teller.show(
    (columns) => {
      const text = `${percent.padStart("100 %".length)}  ${ready}`;
      const width = Math.min(barWidth, columns - text.length - "[] ".length);
      return width > 0 ? `${formatBar(ratio, width)} ${text}` : text;
    },
    () => `loading: ${percent} of the weights read, ${ready}`,
  );
}
