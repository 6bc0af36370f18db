/** `glm-relay status`: what /api/cluster says, as a table or as JSON. */
import type { Command } from "commander";
import type { ClusterView, PipelineView, StageView, WorkerView } from "../coordinator/inference.js";
import { fetchCluster } from "./api.js";
import { httpUrl } from "./options.js";
import { addApiKeyOption, clientKey } from "./secrets.js";
import { formatBytes, formatTable } from "./text.js";

export const defaultUrl = "http://127.0.0.1:8000";

export function addStatusCommand(program: Command): void {
  const command = program
    .command("status")
    .description("Shows the stages, workers and load of a running coordinator.")
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--json", "print the JSON of /api/cluster");
  addApiKeyOption(command).action(run);
}

async function run(flags: { url: string; json?: boolean; apiKeyFile?: string }): Promise<void> {
  const view = await fetchCluster(flags.url, clientKey(flags));
  process.stdout.write(flags.json ? `${JSON.stringify(view, null, 2)}\n` : await formatStatus(view));
}

export async function formatStatus(view: ClusterView): Promise<string> {
  const lines = [
    `model      ${view.model}, ${formatPrecision(view)}`,
    `state      ${view.state}${view.reason === "" ? "" : `: ${view.reason}`}`,
    `epoch      ${formatEpoch(view.epoch)}`,
    `requests   ${view.sequences.running} running, ${view.sequences.waiting} waiting`,
    `KV blocks  ${view.blocks.used} of ${view.blocks.total} used, ${view.blocks.size} tokens each`,
    `redis      ${view.redisUp ? "up" : "down"}`,
    `numerics   ${view.numericsId ?? "not known yet"}`,
    `gRPC       ${view.grpcAddress ?? "off"}`,
    `probes     ${view.probeAddress ?? "none"}`,
  ];
  const tables = [
    view.pipelines.length > 1 ? await formatPipelines(view.pipelines) : "",
    await formatStages(view.stages),
    await formatWorkers(view.workers),
  ];
  return `${[...lines, ...tables.filter((table) => table !== "")].join("\n")}\n`;
}

/** "float16", or "float16, weights int4-g32-search, head int8-g32-search, KV cache int8". */
export function formatPrecision({ dtype, kvType, quantization }: ClusterView): string {
  const parts = [dtype];
  if (quantization.weights !== "stored") parts.push(`weights ${quantization.weights}`);
  if (quantization.head !== "stored") parts.push(`head ${quantization.head}`);
  if (kvType !== dtype) parts.push(`KV cache ${kvType}`);
  return parts.join(", ");
}

function formatEpoch(epoch: ClusterView["epoch"]): string {
  return epoch === null ? "none" : `${epoch.term}.${epoch.plan}`;
}

function formatPipelines(pipelines: PipelineView[]): Promise<string> {
  return formatTable(
    ["pipeline", "state", "epoch", "stages", "running", "waiting", "KV blocks", "cached"],
    pipelines.map((pipeline) => [
      String(pipeline.pipeline),
      pipeline.reason === "" ? pipeline.state : `${pipeline.state}: ${pipeline.reason}`,
      formatEpoch(pipeline.epoch),
      `${pipeline.stages.length} of ${pipeline.stageCount}`,
      String(pipeline.sequences.running),
      String(pipeline.sequences.waiting),
      `${pipeline.blocks.used} of ${pipeline.blocks.total}`,
      String(pipeline.blocks.kept),
    ]),
  );
}

/**
 * The plan: which worker holds which layers, and what they weigh; 1.0 is stage 0 of pipeline 1 where there are
 * several. Empty while there is none.
 */
export function formatStages(stages: StageView[]): Promise<string> {
  const several = stages.some(({ pipeline }) => pipeline !== stages[0]!.pipeline);
  return formatTable(
    ["stage", "worker", "layers", "weights", "KV cache", "workspace", "memory", "steps", "busy"],
    stages.map((stage) => [
      several ? `${stage.pipeline}.${stage.stage}` : String(stage.stage),
      stage.worker,
      `${stage.layerBegin}..${stage.layerEnd - 1}`,
      formatBytes(stage.weightBytes),
      formatBytes(stage.kvBytes),
      formatBytes(stage.workspaceBytes),
      formatBytes(stage.memoryBytes),
      String(stage.steps),
      `${stage.busySeconds.toFixed(1)} s`,
    ]),
  );
}

function formatWorkers(workers: WorkerView[]): Promise<string> {
  return formatTable(
    ["worker", "state", "pid", "address", "probes", "heartbeat", "resident", "of", "threads", "kernels"],
    workers.map((worker) => [
      worker.id,
      worker.detail === "" ? worker.state : `${worker.state}: ${worker.detail}`,
      String(worker.pid),
      worker.address,
      worker.probeAddress ?? "none",
      `${Math.round(worker.heartbeatAgeMs)} ms ago`,
      formatBytes(worker.residentBytes),
      formatBytes(worker.memoryBytes),
      String(worker.threads),
      worker.kernels,
    ]),
  );
}
