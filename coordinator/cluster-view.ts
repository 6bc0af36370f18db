/** What the API shows of plans and pipelines: of each one, and of all together. */
import { kvBlockSize } from "../common/limits.js";
import type { ActiveChoice } from "./active-request.js";
import type { ClusterView, PipelineView } from "./inference.js";
import type { PlanView } from "./membership/membership.js";
import { requestClasses } from "./request-class.js";
import type { Serving, ServingView } from "./serving.js";

/** Why a formed pipeline does not serve yet. */
export const noTokenYet = "the first token has not come back yet";

export interface WantedPipelines {
  /** Stages of each. */
  stageCount: number;
  itlTargetMs: number;
}

/** @param serving Null while the pipeline is not formed. */
export function pipelineView(plan: PlanView, serving: Serving | null, wanted: WantedPipelines): PipelineView {
  const { pipeline, epoch, phase, reason, stages } = plan;
  const isReady = serving?.ready ?? false;
  return {
    pipeline,
    state: isReady ? "ready" : phase === "waiting" ? "waiting" : "loading",
    reason: isReady ? "" : reason || noTokenYet,
    epoch,
    stageCount: wanted.stageCount,
    stages,
    ...(serving?.view() ?? notServing(wanted.itlTargetMs)),
  };
}

type Together =
  | "stageCount"
  | "stages"
  | "blocks"
  | "sequences"
  | "microBatchesInFlight"
  | "timing"
  | "pipelines";

/** @param unplaced Sequences that wait for a pipeline. */
export function allTogether(pipelines: PipelineView[], unplaced: number): Pick<ClusterView, Together> {
  const sum = (figure: (view: PipelineView) => number) =>
    pipelines.reduce((total, view) => total + figure(view), 0);
  return {
    stageCount: sum(({ stageCount }) => stageCount),
    stages: pipelines.flatMap(({ stages }) => stages),
    blocks: {
      size: kvBlockSize,
      total: sum(({ blocks }) => blocks.total),
      used: sum(({ blocks }) => blocks.used),
      kept: sum(({ blocks }) => blocks.kept),
    },
    sequences: {
      running: sum(({ sequences }) => sequences.running),
      waiting: unplaced + sum(({ sequences }) => sequences.waiting),
    },
    microBatchesInFlight: sum(({ microBatchesInFlight }) => microBatchesInFlight),
    timing: (pipelines.find(({ state }) => state === "ready") ?? pipelines[0]!).timing,
    pipelines,
  };
}

/** @param unplaced Those that wait for a pipeline. */
export function classCounts(
  formed: readonly Serving[],
  unplaced: readonly ActiveChoice[],
): ClusterView["classes"] {
  const counts = { interactive: { running: 0, waiting: 0 }, batch: { running: 0, waiting: 0 } };
  for (const ofClass of requestClasses) {
    for (const serving of formed) {
      const { running, waiting } = serving.countsOf(ofClass);
      counts[ofClass].running += running;
      counts[ofClass].waiting += waiting;
    }
  }
  for (const { request } of unplaced) counts[request.request.class].waiting++;
  return counts;
}

const notServing = (itlTargetMs: number): ServingView => ({
  blocks: { size: kvBlockSize, total: 0, used: 0, kept: 0 },
  sequences: { running: 0, waiting: 0 },
  microBatchesInFlight: 0,
  timing: { itlTargetMs, microBatchTarget: 0, rowBudget: null, hopMs: null, stationMs: null, stages: [] },
});
