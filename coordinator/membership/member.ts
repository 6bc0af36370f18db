/** A member as membership keeps it, and what the API shows of members and their stages. */
import type { PipelineId } from "../../common/ids.js";
import type { Heartbeat__Output } from "../../proto/generated/glm/relay/internal/v1/Heartbeat.js";
import type { Register__Output } from "../../proto/generated/glm/relay/internal/v1/Register.js";
import type { StageState__Output } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { StageView, WorkerView } from "../inference.js";
import type { StagePlacement } from "../placement/placement.js";

/** Fields stand beside the message, as in pino; never a prompt, an answer or a key. */
export type CoreLog = (
  level: "debug" | "info" | "warn",
  message: string,
  fields?: Record<string, string | number | readonly string[]>,
) => void;

/** One control stream; a worker that comes back gets a new one. */
export type ConnectionId = number;

export interface Member {
  connection: ConnectionId;
  register: Register__Output;
  state: WorkerView["state"];
  detail: string;
  heartbeat: Heartbeat__Output | null;
  heartbeatAtMs: number;
  /** Since when all heartbeats have said that it computes nothing; null before the first of them. */
  idleSinceMs: number | null;
  stageState: StageState__Output | null;
}

/** The plan's figures until the worker has loaded and tells its own. */
export function stageView(
  pipeline: PipelineId,
  index: number,
  placed: StagePlacement,
  member: Member | undefined,
): StageView {
  const { worker, layerBegin, layerEnd, weightBytes, kvBytes, workspaceBytes, processBytes } = placed;
  const loaded = member?.stageState;
  return {
    pipeline,
    stage: index,
    worker,
    layerBegin,
    layerEnd,
    weightBytes: loaded?.weightBytes || weightBytes,
    kvBytes: loaded?.kvBytes || kvBytes,
    workspaceBytes: loaded?.workspaceBytes || workspaceBytes,
    planned: { weightBytes, kvBytes, workspaceBytes, processBytes },
    memoryBytes: member?.register.memoryBytes ?? 0,
    steps: member?.heartbeat?.steps ?? 0,
    busySeconds: (member?.heartbeat?.busyUs ?? 0) / 1e6,
    idleSeconds: (member?.heartbeat?.idleUs ?? 0) / 1e6,
  };
}

export function workerView(member: Member, nowMs: number): WorkerView {
  const { register, heartbeat } = member;
  return {
    id: register.worker,
    pid: register.pid,
    address: register.dataAddress,
    probeAddress: register.probeAddress || null,
    state: member.state,
    detail: member.detail,
    loadedRatio: loadedRatio(member),
    heartbeatAgeMs: Math.round(nowMs - member.heartbeatAtMs),
    memoryBytes: register.memoryBytes,
    residentBytes: heartbeat?.residentBytes ?? 0,
    threads: register.threads,
    kernels: register.kernels,
  };
}

/** How much of its stage's weights a member has read, 0 to 1. */
export function loadedRatio(member: Member | undefined): number {
  if (member === undefined) return 0;
  if (member.state === "loaded" || member.state === "linked") return 1;
  if (member.state !== "loading") return 0;
  const { loadedBytes = 0, loadBytes = 0 } = member.heartbeat ?? {};
  return loadBytes === 0 ? 0 : loadedBytes / loadBytes;
}
