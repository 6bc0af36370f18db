/** `glm-relay status`: what /api/cluster says, as a table or as JSON. */
import type { Command } from "commander";
import type { ClusterView, StageView, WorkerView } from "../coordinator/inference.js";
import { fetchCluster } from "./api.js";
import { httpUrl } from "./options.js";
import { formatBytes, formatTable } from "./text.js";

export const defaultUrl = "http://127.0.0.1:8000";

export function addStatusCommand(program: Command): void {
  program
    .command("status")
    .description("Shows the stages, workers and load of a running coordinator.")
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--json", "print the JSON of /api/cluster")
    .action(run);
}

async function run(flags: { url: string; json?: boolean }): Promise<void> {
  const view = await fetchCluster(flags.url);
  process.stdout.write(flags.json ? `${JSON.stringify(view, null, 2)}\n` : await formatStatus(view));
}

export async function formatStatus(view: ClusterView): Promise<string> {
  const epoch = view.epoch === null ? "none" : `${view.epoch.term}.${view.epoch.plan}`;
  const lines = [
    `model      ${view.model}, ${formatPrecision(view)}`,
    `state      ${view.state}${view.reason === "" ? "" : `: ${view.reason}`}`,
    `epoch      ${epoch}`,
    `requests   ${view.sequences.running} running, ${view.sequences.waiting} waiting`,
    `KV blocks  ${view.blocks.used} of ${view.blocks.total} used, ${view.blocks.size} tokens each`,
    `redis      ${view.redisUp ? "up" : "down"}`,
    `numerics   ${view.numericsId ?? "not known yet"}`,
    `gRPC       ${view.grpcAddress ?? "off"}`,
    `probes     ${view.probeAddress ?? "none"}`,
  ];
  const tables = [await formatStages(view.stages), await formatWorkers(view.workers)];
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

/** The plan: which worker holds which layers, and what they weigh. Empty while there is none. */
export function formatStages(stages: StageView[]): Promise<string> {
  return formatTable(
    ["stage", "worker", "layers", "weights", "KV cache", "workspace", "memory", "steps", "busy"],
    stages.map((stage) => [
      String(stage.stage),
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
