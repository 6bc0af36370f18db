/** Figures that the rest of the coordinator keeps: copied from one view of the cluster at each scrape. */
import { Counter, Gauge, type Metric, type Registry } from "prom-client";
import { softwareVersion } from "../../common/package.js";
import type { ClusterView, PipelineView, WorkerView } from "../inference.js";
import { requestClasses } from "../request-class.js";

const workerStates: readonly WorkerView["state"][] = ["idle", "loading", "loaded", "linked", "failed"];
const pipelineStates: readonly PipelineView["state"][] = ["waiting", "loading", "ready"];

/** Those that have an alias. */
export interface ClusterMetrics {
  requestsRunning: Metric;
  requestsWaiting: Metric;
  kvUsageRatio: Metric;
  kvCacheInfo: Metric;
  prefixCacheQueries: Metric;
  prefixCacheHits: Metric;
  preemptions: Metric;
  /** All figures from the same view, so that they agree with each other. */
  update(view: ClusterView): void;
}

export function createClusterMetrics(registry: Registry): ClusterMetrics {
  const registers = [registry];
  const gauge = (name: string, help: string, labelNames: string[]) =>
    new Gauge({ name: `glm_relay_${name}`, help, labelNames, registers });
  const counter = (name: string, help: string, labelNames: string[]) =>
    new Counter({ name: `glm_relay_${name}`, help, labelNames, registers });

  const buildInfo = gauge("build_info", "Version of the coordinator, kernels of its workers.", [
    "version",
    "kernels",
  ]);
  const requestsRunning = gauge("requests_running", "Sequences in the scheduler's running set.", [
    "model",
    "priority",
  ]);
  const oldestWait = gauge("queue_oldest_age_seconds", "Age of the oldest request without a first step.", [
    "model",
  ]);
  const requestsWaiting = gauge("requests_waiting", "Accepted sequences that wait for their first step.", [
    "model",
    "priority",
  ]);
  const kvBlocks = gauge("kv_blocks", "Blocks of the KV cache.", ["model", "pipeline", "state"]);
  const kvUsageRatio = gauge("kv_usage_ratio", "Used blocks of the KV cache, 0 to 1.", ["model"]);
  const kvCacheInfo = gauge("kv_cache_info", "Shape of the KV cache.", ["model", "block_size", "num_blocks"]);
  const epoch = gauge("epoch", "Term of the leadership and number of the plan.", [
    "model",
    "pipeline",
    "part",
  ]);
  const stages = gauge("stages", "Stages wanted, and stages that have a worker.", [
    "model",
    "pipeline",
    "state",
  ]);
  const pipelines = gauge("pipelines", "Pipelines, each of which holds the model once.", ["model", "state"]);
  const pipelineSequences = gauge("pipeline_sequences", "Sequences that a pipeline has.", [
    "model",
    "pipeline",
    "state",
  ]);
  const workers = gauge("workers", "Registered workers.", ["model", "state"]);
  const heartbeatAge = gauge("worker_heartbeat_age_seconds", "Time since a worker was last heard of.", [
    "model",
    "worker",
  ]);
  const inFlight = gauge("micro_batches_in_flight", "Micro-batches in the stages.", ["model", "pipeline"]);
  const microBatchTarget = gauge("micro_batch_target", "Micro-batches that are kept in the stages.", [
    "model",
    "pipeline",
  ]);
  const rowBudget = gauge("step_row_budget", "Rows of new prompts that the ITL target allows in a step.", [
    "model",
    "pipeline",
  ]);
  const hopSeconds = gauge("hop_fit_seconds", "All hops of a step together, fitted.", ["model", "pipeline"]);
  const stationSeconds = gauge("station_fit_seconds", "Slowest thing between the stages, per step, fitted.", [
    "model",
    "pipeline",
  ]);
  const stageFit = gauge("stage_fit_seconds", "Parts of a stage's time for a step, fitted.", [
    "model",
    "pipeline",
    "stage",
    "part",
  ]);
  const redisUp = gauge("redis_up", "1 while Redis answers.", []);
  const placements = counter("placements_total", "Plans made, by what ended the one before.", [
    "model",
    "reason",
  ]);
  const workersLost = counter("workers_lost_total", "Workers declared lost.", ["model", "reason"]);
  const staleMessages = counter("stale_messages_total", "Messages of an older epoch, dropped.", ["model"]);
  const prefixCacheQueries = counter("prefix_cache_queries_total", "Prompt tokens whose rows were due.", [
    "model",
  ]);
  const prefixCacheHits = counter(
    "prefix_cache_hits_total",
    "Those of them whose keys and values were there already.",
    ["model"],
  );
  const preemptions = counter(
    "preemptions_total",
    "Sequences that gave their KV blocks to others and were computed again.",
    ["model"],
  );
  const contextSlices = counter(
    "context_slices_total",
    "Slices of layers in which contexts were read while others decoded.",
    ["model"],
  );
  const draftedTokens = counter(
    "speculation_drafted_tokens_total",
    "Tokens guessed at whose rows were sent with a step.",
    ["model"],
  );
  const acceptedTokens = counter("speculation_accepted_tokens_total", "Those of them that were drawn.", [
    "model",
  ]);
  const stageBusy = counter("stage_busy_seconds_total", "Time a stage has spent computing.", [
    "model",
    "pipeline",
    "stage",
  ]);
  const stageIdle = counter(
    "stage_idle_seconds_total",
    "Time a stage was linked and had nothing to compute.",
    ["model", "pipeline", "stage"],
  );

  /** Figures of one pipeline; there are as many at every scrape. */
  const updatePipeline = (model: string, view: PipelineView) => {
    const of = { model, pipeline: view.pipeline };
    const { total, used, kept } = view.blocks;
    kvBlocks.set({ ...of, state: "used" }, used);
    kvBlocks.set({ ...of, state: "cached" }, kept);
    kvBlocks.set({ ...of, state: "free" }, total - used - kept);
    epoch.set({ ...of, part: "term" }, view.epoch?.term ?? 0);
    epoch.set({ ...of, part: "plan" }, view.epoch?.plan ?? 0);
    stages.set({ ...of, state: "wanted" }, view.stageCount);
    stages.set({ ...of, state: "placed" }, view.stages.length);
    pipelineSequences.set({ ...of, state: "running" }, view.sequences.running);
    pipelineSequences.set({ ...of, state: "waiting" }, view.sequences.waiting);
    inFlight.set(of, view.microBatchesInFlight);
    const { timing } = view;
    microBatchTarget.set(of, timing.microBatchTarget);
    if (timing.rowBudget !== null) rowBudget.set(of, timing.rowBudget);
    if (timing.hopMs !== null) hopSeconds.set(of, timing.hopMs / 1_000);
    if (timing.stationMs !== null) stationSeconds.set(of, timing.stationMs / 1_000);
    for (const [stage, { baseMs, rowMs, keyMs }] of timing.stages.entries()) {
      stageFit.set({ ...of, stage, part: "base" }, baseMs / 1_000);
      stageFit.set({ ...of, stage, part: "row" }, rowMs / 1_000);
      stageFit.set({ ...of, stage, part: "key" }, keyMs / 1_000);
    }
  };

  /** The owner of the count is elsewhere; a counter of ours only shows it. */
  const show = (metric: Counter, labels: Record<string, string | number>, value: number) => {
    metric.remove(labels);
    metric.inc(labels, value);
  };

  return {
    requestsRunning,
    requestsWaiting,
    kvUsageRatio,
    kvCacheInfo,
    prefixCacheQueries,
    prefixCacheHits,
    preemptions,
    update(view) {
      const { model } = view;
      const { total, used, size } = view.blocks;
      buildInfo.reset();
      const kernels = [...new Set(view.workers.map((worker) => worker.kernels))].sort().join(",");
      buildInfo.set({ version: softwareVersion, kernels }, 1);
      for (const priority of requestClasses) {
        const { running, waiting } = view.classes[priority];
        requestsRunning.set({ model, priority }, running);
        requestsWaiting.set({ model, priority }, waiting);
      }
      oldestWait.set({ model }, view.oldestWaitMs / 1_000);
      kvUsageRatio.set({ model }, total === 0 ? 0 : used / total);
      kvCacheInfo.reset();
      kvCacheInfo.set({ model, block_size: size, num_blocks: total }, 1);
      for (const fitted of [rowBudget, hopSeconds, stationSeconds, stageFit]) fitted.reset();
      for (const pipeline of view.pipelines) updatePipeline(model, pipeline);
      for (const state of pipelineStates) {
        pipelines.set({ model, state }, view.pipelines.filter((each) => each.state === state).length);
      }
      for (const state of workerStates) {
        workers.set({ model, state }, view.workers.filter((worker) => worker.state === state).length);
      }
      heartbeatAge.reset();
      for (const { id, heartbeatAgeMs } of view.workers) {
        heartbeatAge.set({ model, worker: id }, heartbeatAgeMs / 1_000);
      }
      redisUp.set(view.redisUp ? 1 : 0);
      for (const [reason, count] of Object.entries(view.counters.placementsByReason)) {
        show(placements, { model, reason }, count);
      }
      for (const [reason, count] of Object.entries(view.counters.workersLostByReason)) {
        show(workersLost, { model, reason }, count);
      }
      show(staleMessages, { model }, view.counters.staleMessages);
      show(prefixCacheQueries, { model }, view.counters.prefixCacheQueries);
      show(prefixCacheHits, { model }, view.counters.prefixCacheHits);
      show(preemptions, { model }, view.counters.preemptions);
      show(contextSlices, { model }, view.counters.contextSlices);
      show(draftedTokens, { model }, view.counters.draftedTokens);
      show(acceptedTokens, { model }, view.counters.acceptedTokens);
      stageBusy.reset();
      stageIdle.reset();
      for (const { pipeline, stage, busySeconds, idleSeconds } of view.stages) {
        stageBusy.inc({ model, pipeline, stage }, busySeconds);
        stageIdle.inc({ model, pipeline, stage }, idleSeconds);
      }
    },
  };
}
