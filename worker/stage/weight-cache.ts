/** Tells of what a stage's weight cache does: in the log, and in metrics. */
import type { Logger } from "../../common/log.js";
import type { WeightCacheReport } from "../../native/index.js";
import type { WorkerMetrics } from "../metrics.js";
import type { EngineStage } from "./engine.js";

/** For a stage that was just built; what is written after that is told when it is done. */
export function followWeightCache(stage: EngineStage, log: Logger, metrics: WorkerMetrics): void {
  const loaded = stage.weightCache ?? null;
  metrics.weightCacheLoaded(loaded);
  if (loaded === null) return;
  const { hits, misses, mappedBytes } = loaded;
  log.info({ hits, misses, mappedBytes }, "weight cache read");
  warn(loaded.warnings, log);
  if (misses > 0) void followWriting(stage, loaded, log, metrics);
}

async function followWriting(
  stage: EngineStage,
  loaded: WeightCacheReport,
  log: Logger,
  metrics: WorkerMetrics,
): Promise<void> {
  await stage.weightCacheWritten?.();
  const { filesWritten, writtenBytes, warnings } = stage.weightCache ?? loaded;
  metrics.weightCacheWritten(writtenBytes);
  log.info({ filesWritten, writtenBytes }, "weight cache written");
  warn(warnings.slice(loaded.warnings.length), log);
}

function warn(warnings: readonly string[], log: Logger): void {
  for (const warning of warnings) log.warn(`weight cache: ${warning}`);
}
