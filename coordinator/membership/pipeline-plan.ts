/**
 * The life of one pipeline's plan: its workers are given layers, load, link up, and the plan ends when one of
 * them is lost. Which workers it may have, membership decides (membership.ts).
 */
import type { Clock } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import { type Epoch, formatEpoch, type PipelineId } from "../../common/ids.js";
import { kvBlockSize, linkCredits } from "../../common/limits.js";
import { formatName } from "../../models/quantization.js";
import type { StageState__Output } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { StageView } from "../inference.js";
import { type Placement, place } from "../placement/placement.js";
import type { Claim } from "./allotment.js";
import { type ConnectionId, loadedRatio, type Member, stageView } from "./member.js";
import type { Members } from "./members.js";
import type { MembershipConfig, MembershipPorts } from "./ports.js";

/** Reading weights: a slow disk and a 130B stage; renewed leases alone would let a stuck load wait for ever. */
const loadLimitMs = 30 * 60_000;
/** From the last stage loaded to all streams open. */
const linkLimitMs = 15_000;
/** A lost worker is waited for this long; then those that are there are used without it. */
const regroupAfterMs = 10_000;
/** Waits between attempts to form a plan after one failed. */
const formBackoffMs = { first: 100, most: 5_000 };

/**
 * waiting: too few workers, or a pause after a failure; forming: assigned, loading, linking;
 * formed: steps may travel.
 */
type PlanState =
  | { kind: "waiting"; reason: string; notBeforeMs: number }
  | { kind: "forming" | "formed"; plan: Plan };

interface Plan {
  epoch: Epoch;
  placement: Placement;
  /** Connections in stage order. */
  stages: ConnectionId[];
  startedAtMs: number;
  loadedAtMs: number | null;
  resultLinkOpen: boolean;
}

export class PipelinePlan {
  readonly id: PipelineId;
  readonly #config: MembershipConfig;
  readonly #ports: MembershipPorts;
  readonly #members: Members;
  readonly #clock: Clock;
  #state: PlanState = { kind: "waiting", reason: "", notBeforeMs: 0 };
  #failuresInARow = 0;
  /** Workers of the last plan with all stages, in their order. */
  #seats: readonly string[] = [];
  /** Since when none is formed; it counts while none is. */
  #missingSinceMs: number;
  /** One was formed since the coordinator began. */
  #everFormed = false;
  /** What ended the plan before the next one: "start" before the first, then an error's code. */
  #replanReason = "start";

  constructor(
    id: PipelineId,
    config: MembershipConfig,
    ports: MembershipPorts,
    members: Members,
    clock: Clock,
  ) {
    this.id = id;
    this.#config = config;
    this.#ports = ports;
    this.#members = members;
    this.#clock = clock;
    this.#missingSinceMs = clock.nowMs();
  }

  get epoch(): Epoch | null {
    return this.#state.kind === "waiting" ? null : this.#state.plan.epoch;
  }

  /** Why it is not formed; empty when it is. */
  get notFormedReason(): string {
    if (this.#state.kind === "formed") return "";
    if (this.#state.kind === "waiting") return this.#state.reason;
    const { stages } = this.#state.plan;
    const loaded = stages.filter((connection) => this.#hasLoaded(connection)).length;
    const ratios = stages.map((connection) => loadedRatio(this.#members.get(connection)));
    const percent = Math.floor((100 * ratios.reduce((sum, ratio) => sum + ratio, 0)) / stages.length);
    return `loading: ${loaded} of ${this.#config.stageCount} stages ready, ${percent} % of the weights read`;
  }

  get phase(): "waiting" | "loading" | "formed" {
    return this.#state.kind === "forming" ? "loading" : this.#state.kind;
  }

  get replanReason(): string {
    return this.#replanReason;
  }

  /** Stages of its plan; 0 without one. */
  get stageCount(): number {
    return this.#state.kind === "waiting" ? 0 : this.#state.plan.stages.length;
  }

  /** Fewer stages than wanted hold the model: this many workers more would be taken. */
  get growth(): number {
    return this.#state.kind === "formed" ? this.#config.stageCount - this.stageCount : 0;
  }

  has(connection: ConnectionId): boolean {
    return this.#state.kind !== "waiting" && this.#state.plan.stages.includes(connection);
  }

  /**
   * True when every worker of the plan has said in all heartbeats since then that it computes nothing. One such
   * heartbeat of each would not do: of a step on its way from one stage to the next, neither has said that it
   * computes it.
   */
  allIdleSince(sinceMs: number): boolean {
    if (this.#state.kind === "waiting") return false;
    return this.#state.plan.stages.every((connection) => {
      const idleSinceMs = this.#members.get(connection)?.idleSinceMs ?? Number.POSITIVE_INFINITY;
      return idleSinceMs <= sinceMs;
    });
  }

  /** It may be formed now, with as many workers as stages are wanted. */
  get mayForm(): boolean {
    return this.#state.kind === "waiting" && this.#clock.nowMs() >= this.#state.notBeforeMs;
  }

  /** None was ever made for all its stages. */
  get isNew(): boolean {
    return this.#seats.length === 0;
  }

  /** Without a plan: what it asks for. */
  get claim(): Claim | null {
    return this.#state.kind === "waiting"
      ? { id: this.id, seats: this.#seats, overdue: this.#isOverdue() }
      : null;
  }

  /** With fewer workers, too: one that was lost stays away, and nobody has cut the layers by hand. */
  get mayShrink(): boolean {
    return this.#everFormed && this.#isOverdue() && this.#config.cut === undefined;
  }

  /** It cannot be formed yet. */
  waitFor(reason: string): void {
    if (this.#state.kind === "waiting") this.#state.reason = reason;
  }

  /**
   * Gives the layers to these workers, in this order.
   * @param next Counts the plans: called when the layers fit.
   */
  form(chosen: readonly Member[], next: () => Epoch): void {
    let placement: Placement;
    try {
      placement = place(
        this.#config.placementModel,
        chosen.map(({ register: { worker: id, memoryBytes, threads, backend } }) => ({
          ...{ id, memoryBytes, threads },
          gpu: isGpu(backend),
        })),
        { blockSize: kvBlockSize, minBlocks: this.#config.minBlocks, maxBlocks: this.#config.maxBlocks },
        this.#config.cut,
      );
    } catch (error) {
      if (!(error instanceof RelayError)) throw error;
      this.#wait(error.message);
      return;
    }
    const epoch = next();
    if (chosen.length === this.#config.stageCount) {
      this.#seats = chosen.map(({ register }) => register.worker);
    }
    this.#state = {
      kind: "forming",
      plan: {
        epoch,
        placement,
        stages: chosen.map((member) => member.connection),
        startedAtMs: this.#clock.nowMs(),
        loadedAtMs: null,
        resultLinkOpen: false,
      },
    };
    this.#ports.log("info", `epoch ${formatEpoch(epoch)}: ${describe(placement)}`);
    this.#ports.planMade(this.id, epoch);
    for (const stage of chosen.keys()) this.#assign(stage, chosen, epoch, placement);
  }

  stageState(member: Member, message: StageState__Output): void {
    member.stageState = message;
    member.detail = message.detail;
    switch (message.phase) {
      case "LOADING":
        member.state = "loading";
        return;
      case "LOADED":
        member.state = "loaded";
        this.#advance();
        return;
      case "LINKED":
        member.state = "linked";
        this.#advance();
        return;
      case "FAILED":
        member.state = "failed";
        this.#stageFailed(member, message);
        return;
      default:
        this.#ports.log("warn", `worker ${member.register.worker} sent an unknown phase ${message.phase}`);
    }
  }

  resultLinkOpened(): void {
    if (this.#state.kind !== "forming") return;
    this.#state.plan.resultLinkOpen = true;
    this.#advance();
  }

  /** @param stage At whose end; null when it cannot be told. */
  linkBroken(error: RelayError, stage: number | null): void {
    if (this.#state.kind === "waiting") return;
    const worker = stage === null ? undefined : this.#state.plan.placement.stages.at(stage)?.worker;
    const where = worker === undefined ? "" : `worker ${worker}: `;
    this.#dissolve(
      new RelayError(error.code, `${where}${error.message}; the cluster re-forms`, { cause: error }),
    );
  }

  /** A worker of the plan is gone. */
  memberLost(member: Member, reason: string): void {
    const { worker } = member.register;
    this.#dissolve(
      new RelayError("worker_lost", `worker ${worker} was lost (${reason}); the cluster re-forms`),
    );
  }

  /** Call every tickMs. */
  tick(): void {
    if (this.#state.kind !== "forming") return;
    const { plan } = this.#state;
    const loading = plan.loadedAtMs === null;
    const limit = loading ? loadLimitMs : linkLimitMs;
    if (this.#clock.nowMs() - (plan.loadedAtMs ?? plan.startedAtMs) <= limit) return;
    const what = loading ? "loading" : "linking";
    this.#dissolve(new RelayError("stage_failed", `${what} took longer than ${limit} ms`));
  }

  /** Gives the layers out again, to all stages. */
  grow(): void {
    this.#dissolve(new RelayError("worker_lost", "a worker has come back; the cluster re-forms with it"));
  }

  /** The formed pipeline answered its first token: later failures count from zero again. */
  proven(): void {
    this.#failuresInARow = 0;
  }

  /** Tells every worker that the plan is over; nothing is formed afterwards. */
  shutDown(): void {
    if (this.#state.kind !== "waiting") this.#release(this.#state.plan, "the coordinator shuts down");
    this.#state = { kind: "waiting", reason: "shutting down", notBeforeMs: Number.POSITIVE_INFINITY };
  }

  stageViews(): StageView[] {
    if (this.#state.kind === "waiting") return [];
    const { stages, placement } = this.#state.plan;
    return placement.stages.map((stage, index) =>
      stageView(this.id, index, stage, this.#members.get(stages[index]!)),
    );
  }

  #assign(stage: number, chosen: readonly Member[], epoch: Epoch, placement: Placement): void {
    const member = chosen[stage]!;
    member.state = "loading";
    member.stageState = null;
    const { layerBegin, layerEnd, ...planned } = placement.stages[stage]!;
    const { weightBytes, kvBytes, workspaceBytes, processBytes } = planned;
    const { memoryBytes } = member.register;
    const { precision } = this.#config;
    this.#ports.send(member.connection, {
      assign: {
        epoch,
        pipeline: this.id,
        stage,
        stageCount: chosen.length,
        layerBegin,
        layerEnd,
        modelDirectory: this.#config.modelDirectory,
        configOverrides: this.#config.configOverrides,
        prefixEncoder: this.#config.prefixEncoder,
        weightsFingerprint: this.#config.fingerprint,
        dtype: precision.dtype,
        kvType: precision.kvType,
        weightFormat: formatName(precision.weights),
        headFormat: formatName(precision.head),
        blockCount: placement.blockCount,
        blockSize: kvBlockSize,
        maxRows: this.#config.maxRows,
        predecessor: stage === 0 ? this.#config.clusterAddress() : chosen[stage - 1]!.register.dataAddress,
        credits: linkCredits,
        planned: { weightBytes, kvBytes, workspaceBytes, processBytes, memoryBytes },
      },
    });
  }

  /** A stage that lost its neighbour is no fault of its own: the neighbour's loss is what clients hear. */
  #stageFailed(member: Member, { errorCode, detail }: StageState__Output): void {
    const code = errorCode === "worker_lost" ? "worker_lost" : "stage_failed";
    this.#dissolve(new RelayError(code, `worker ${member.register.worker}: ${detail} [${errorCode}]`));
  }

  /** Moves a forming plan on: all loaded -> dial the last stage; all linked -> formed. */
  #advance(): void {
    if (this.#state.kind !== "forming") return;
    const { plan } = this.#state;
    const { epoch, stages, placement } = plan;
    if (plan.loadedAtMs === null) {
      if (!stages.every((connection) => this.#hasLoaded(connection))) return;
      plan.loadedAtMs = this.#clock.nowMs();
      const { dataAddress } = this.#members.get(stages.at(-1)!)!.register;
      this.#ports.openResultLink(this.id, epoch, dataAddress, stages.length);
    }
    const linked = stages.every((connection) => this.#members.get(connection)?.state === "linked");
    if (!linked || !plan.resultLinkOpen) return;
    this.#state = { kind: "formed", plan };
    this.#ports.log("info", `epoch ${formatEpoch(epoch)}: ${stages.length} stages linked`);
    this.#everFormed = true;
    this.#ports.formed(this.id, epoch, placement.blockCount, placement.stages);
  }

  #isOverdue(): boolean {
    return this.#clock.nowMs() - this.#missingSinceMs >= regroupAfterMs;
  }

  #hasLoaded(connection: ConnectionId): boolean {
    const state = this.#members.get(connection)?.state;
    return state === "loaded" || state === "linked";
  }

  #dissolve(error: RelayError): void {
    if (this.#state.kind === "waiting") return;
    const { kind, plan } = this.#state;
    this.#replanReason = error.code;
    this.#ports.log("warn", `epoch ${formatEpoch(plan.epoch)} ended: ${error.message}`);
    this.#wait(error.message);
    this.#release(plan, error.message);
    if (kind !== "formed") return;
    this.#missingSinceMs = this.#clock.nowMs();
    this.#ports.dissolved(this.id, error);
  }

  #release(plan: Plan, reason: string): void {
    this.#ports.planOver(this.id);
    for (const connection of plan.stages) {
      const member = this.#members.get(connection);
      if (member === undefined) continue;
      member.state = "idle";
      this.#ports.send(connection, { release: { epoch: plan.epoch, reason } });
    }
  }

  #wait(reason: string): void {
    const pauseMs = Math.min(formBackoffMs.most, formBackoffMs.first * 2 ** this.#failuresInARow);
    this.#failuresInARow = Math.min(this.#failuresInARow + 1, 16);
    this.#state = { kind: "waiting", reason, notBeforeMs: this.#clock.nowMs() + pauseMs };
  }
}

/** As the engine names what it computes on (docs/cuda.md). */
function isGpu(backend: string): boolean {
  return backend.startsWith("cuda-");
}

function describe(placement: Placement): string {
  const cuts = placement.stages.map(
    ({ worker, layerBegin, layerEnd }) => `${worker} [${layerBegin}, ${layerEnd})`,
  );
  return `${cuts.join(", ")}; ${placement.blockCount} KV blocks`;
}
