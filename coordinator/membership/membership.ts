/**
 * Who is there and which plan holds: workers join, are given layers, load, link up, and are lost.
 * A state machine: messages and ticks in, messages and two events (formed, dissolved) out.
 */
import type { Clock } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import { compareEpochs, type Epoch, formatEpoch } from "../../common/ids.js";
import { heartbeatMs, kvBlockSize, leaseMs, linkCredits } from "../../common/limits.js";
import { protocolVersion, softwareVersion } from "../../common/package.js";
import { formatName, type Precision } from "../../models/quantization.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { Heartbeat__Output } from "../../proto/generated/glm/relay/internal/v1/Heartbeat.js";
import type { Register__Output } from "../../proto/generated/glm/relay/internal/v1/Register.js";
import type { StageState__Output } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import type { StageView, WorkerLossReason, WorkerView } from "../inference.js";
import type { LayerRange } from "../placement/cut.js";
import { type Placement, type PlacementModel, place } from "../placement/placement.js";
import { Leases } from "./leases.js";
import { type ConnectionId, loadedRatio, type Member, stageView, workerView } from "./member.js";

/** Reading weights: a slow disk and a 130B stage; renewed leases alone would let a stuck load wait for ever. */
const loadLimitMs = 30 * 60_000;
/** From the last stage loaded to all streams open. */
const linkLimitMs = 15_000;
/** A lost worker is waited for this long; then the others take its layers, if they have room. */
const regroupAfterMs = 10_000;
/** Waits between attempts to form a plan after one failed. */
const formBackoffMs = { first: 100, most: 5_000 };
/** Members beyond the stages are spares; more than this are turned away. */
const maxWorkers = 1_024;

export interface MembershipConfig {
  stageCount: number;
  /** Layers of each stage, made by hand; absent: placement decides. */
  cut?: readonly LayerRange[];
  modelDirectory: string;
  /** As overridesText writes them (checkpoint/overrides.ts). */
  configOverrides: string;
  /** Directory of a prefix encoder; "" for none. */
  prefixEncoder: string;
  fingerprint: string;
  precision: Precision;
  /** Rows of one step, at most. */
  maxRows: number;
  placementModel: PlacementModel;
  minBlocks: number;
  maxBlocks: number;
  /** host:port that stage 0 dials. */
  clusterAddress: () => string;
  /** This leadership's number. */
  term: number;
}

export interface MembershipPorts {
  send(connection: ConnectionId, message: CoordinatorMessage): void;
  /** Ends a control stream after what was sent. */
  disconnect(connection: ConnectionId): void;
  /** A plan was made: stage 0 will dial for its steps. */
  planMade(epoch: Epoch): void;
  /** All stages are loaded: dial the last one for its results. */
  openResultLink(epoch: Epoch, address: string, stageCount: number): void;
  /** The plan's links are closed quietly. */
  planOver(): void;
  /** All stages are linked: the pipeline of this epoch takes steps. */
  formed(epoch: Epoch, blockCount: number, stages: readonly LayerRange[]): void;
  /** The formed pipeline is gone. */
  dissolved(error: RelayError): void;
  /** A worker reported a term above ours: ours must be written down again. */
  termRaised(term: number): void;
  log: CoreLog;
}

/** Fields stand beside the message, as in pino; never a prompt, an answer or a key. */
export type CoreLog = (
  level: "debug" | "info" | "warn",
  message: string,
  fields?: Record<string, string | number | readonly string[]>,
) => void;

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

export class Membership {
  readonly #config: MembershipConfig;
  readonly #ports: MembershipPorts;
  readonly #clock: Clock;
  readonly #members = new Map<ConnectionId, Member>();
  readonly #leases: Leases<ConnectionId>;
  #state: PlanState;
  #term: number;
  #planNumber = 0;
  #failuresInARow = 0;
  /** Since when a formed plan is gone; null before the first, and again when there is one. */
  #lostAtMs: number | null = null;
  /** What ended the plan before the next one. */
  #replanReason = "start";
  readonly counters = {
    placements: 0,
    placementsByReason: {} as Record<string, number>,
    workersLost: 0,
    workersLostByReason: { left: 0, disconnected: 0, lease_over: 0, replaced: 0 } satisfies Record<
      WorkerLossReason,
      number
    >,
  };

  constructor(config: MembershipConfig, ports: MembershipPorts, clock: Clock) {
    this.#config = config;
    this.#ports = ports;
    this.#clock = clock;
    this.#term = config.term;
    this.#leases = new Leases(clock.nowMs());
    this.#state = { kind: "waiting", reason: this.#missingWorkers(), notBeforeMs: 0 };
  }

  get epoch(): Epoch | null {
    return this.#state.kind === "waiting" ? null : this.#state.plan.epoch;
  }

  /** Why no pipeline is formed; empty when one is. */
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

  /** True when every worker of the plan said in its last heartbeat, sent after `sinceMs`, that it computes nothing. */
  allIdleSince(sinceMs: number): boolean {
    if (this.#state.kind === "waiting") return false;
    return this.#state.plan.stages.every((connection) => {
      const member = this.#members.get(connection);
      return member?.heartbeat?.busy === false && member.heartbeatAtMs > sinceMs;
    });
  }

  message(connection: ConnectionId, message: WorkerMessage__Output): void {
    if (message.register != null) this.#register(connection, message.register);
    const member = this.#members.get(connection);
    if (member === undefined) return;
    if (message.heartbeat != null) this.#heartbeat(member, message.heartbeat);
    else if (message.stageState != null) this.#stageState(member, message.stageState);
    else if (message.leave != null) this.#lose(connection, "left", `left: ${message.leave.reason}`);
  }

  /** A control stream ended. */
  gone(connection: ConnectionId, reason: string): void {
    this.#lose(connection, "disconnected", reason);
  }

  resultLinkOpened(epoch: Epoch): void {
    if (this.#state.kind !== "forming" || compareEpochs(epoch, this.#state.plan.epoch) !== 0) return;
    this.#state.plan.resultLinkOpen = true;
    this.#advance();
  }

  /**
   * The link of an epoch broke, or something impossible came over it.
   * @param stage At whose end; null when it cannot be told.
   */
  linkBroken(epoch: Epoch, error: RelayError, stage: number | null): void {
    if (this.#state.kind === "waiting" || compareEpochs(epoch, this.#state.plan.epoch) !== 0) return;
    const worker = stage === null ? undefined : this.#state.plan.placement.stages.at(stage)?.worker;
    const where = worker === undefined ? "" : `worker ${worker}: `;
    this.#dissolve(
      new RelayError(error.code, `${where}${error.message}; the cluster re-forms`, { cause: error }),
    );
  }

  /** Call every tickMs. */
  tick(): void {
    const now = this.#clock.nowMs();
    for (const connection of this.#leases.check(now)) {
      this.#lose(connection, "lease_over", `no progress for ${leaseMs} ms: its lease is over`);
    }
    if (this.#state.kind === "forming") {
      const { plan } = this.#state;
      const loading = plan.loadedAtMs === null;
      const limit = loading ? loadLimitMs : linkLimitMs;
      if (now - (plan.loadedAtMs ?? plan.startedAtMs) > limit) {
        const what = loading ? "loading" : "linking";
        this.#dissolve(new RelayError("stage_failed", `${what} took longer than ${limit} ms`));
      }
    }
    this.#formIfPossible();
  }

  /** Fewer stages than wanted hold the model, and there are workers for all of them again. */
  get canGrow(): boolean {
    const { stageCount } = this.#config;
    return (
      this.#state.kind === "formed" &&
      this.#state.plan.stages.length < stageCount &&
      this.#members.size >= stageCount
    );
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
    return placement.stages.map((stage, index) => stageView(index, stage, this.#members.get(stages[index]!)));
  }

  workerViews(): WorkerView[] {
    const now = this.#clock.nowMs();
    return [...this.#members.values()].sort(byName).map((member) => workerView(member, now));
  }

  staleMessages(): number {
    return [...this.#members.values()].reduce(
      (total, { heartbeat }) => total + (heartbeat?.staleMessages ?? 0),
      0,
    );
  }

  /** Backend family and canon version of the members; null before the first. */
  numerics(): { backend: string; canonVersion: number } | null {
    for (const { register } of this.#members.values()) return register;
    return null;
  }

  #register(connection: ConnectionId, register: Register__Output): void {
    const refusal = this.#refusal(register);
    if (refusal !== null) {
      this.#ports.log("warn", `worker ${register.worker} refused: ${refusal.message}`);
      this.#ports.send(connection, { refused: { code: refusal.code, message: refusal.message } });
      this.#ports.disconnect(connection);
      return;
    }
    for (const [other, member] of this.#members) {
      if (member.register.worker === register.worker && other !== connection) {
        this.#lose(other, "replaced", "the same worker registered again");
        this.#ports.disconnect(other);
      }
    }
    if (register.highestTerm > this.#term) {
      this.#term = register.highestTerm + 1;
      this.#ports.termRaised(this.#term);
    }
    const now = this.#clock.nowMs();
    this.#members.set(connection, {
      connection,
      register,
      state: "idle",
      detail: "",
      heartbeat: null,
      heartbeatAtMs: now,
      stageState: null,
    });
    this.#leases.start(connection, now);
    this.#ports.log(
      "info",
      `worker ${register.worker} joined (pid ${register.pid}, ${register.dataAddress})`,
    );
    this.#ports.send(connection, { welcome: { term: this.#term, heartbeatMs, leaseMs } });
    this.#formIfPossible();
  }

  #refusal(register: Register__Output): RelayError | null {
    if (register.protocolVersion !== protocolVersion) {
      return new RelayError(
        "version_mismatch",
        `worker ${register.worker} speaks protocol ${register.protocolVersion} (version ${register.softwareVersion}), ` +
          `the coordinator protocol ${protocolVersion} (version ${softwareVersion}): install the same version`,
      );
    }
    const ours = this.numerics();
    if (ours !== null && (ours.backend !== register.backend || ours.canonVersion !== register.canonVersion)) {
      return new RelayError(
        "numerics_mismatch",
        `worker ${register.worker} computes as ${register.backend}/canon ${register.canonVersion}, ` +
          `the pipeline as ${ours.backend}/canon ${ours.canonVersion}: its tokens would differ`,
      );
    }
    if (this.#members.size >= maxWorkers) {
      return new RelayError("invalid_configuration", `${maxWorkers} workers have joined: no more are taken`);
    }
    return null;
  }

  #heartbeat(member: Member, heartbeat: Heartbeat__Output): void {
    const now = this.#clock.nowMs();
    member.heartbeat = heartbeat;
    member.heartbeatAtMs = now;
    // Reading weights has no kernel tiles to count; loadLimitMs bounds it instead.
    const busy = heartbeat.busy && member.state !== "loading";
    this.#leases.heartbeat(member.connection, heartbeat.progress, busy, now);
  }

  #stageState(member: Member, message: StageState__Output): void {
    if (this.#state.kind === "waiting" || message.epoch === null) return;
    if (compareEpochs(message.epoch, this.#state.plan.epoch) !== 0) return;
    if (!this.#state.plan.stages.includes(member.connection)) return;
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

  /** A stage that lost its neighbour is no fault of its own: the neighbour's loss is what clients hear. */
  #stageFailed(member: Member, { errorCode, detail }: StageState__Output): void {
    const code = errorCode === "worker_lost" ? "worker_lost" : "stage_failed";
    this.#dissolve(new RelayError(code, `worker ${member.register.worker}: ${detail} [${errorCode}]`));
  }

  /** Moves a forming plan on: all loaded -> dial the last stage; all linked -> formed. */
  #advance(): void {
    if (this.#state.kind !== "forming") return;
    const { plan } = this.#state;
    if (plan.loadedAtMs === null) {
      if (!plan.stages.every((connection) => this.#hasLoaded(connection))) return;
      plan.loadedAtMs = this.#clock.nowMs();
      const { dataAddress } = this.#members.get(plan.stages.at(-1)!)!.register;
      this.#ports.openResultLink(plan.epoch, dataAddress, plan.stages.length);
    }
    const linked = plan.stages.every((connection) => this.#members.get(connection)?.state === "linked");
    if (!linked || !plan.resultLinkOpen) return;
    this.#state = { kind: "formed", plan };
    this.#ports.log("info", `epoch ${formatEpoch(plan.epoch)}: ${plan.stages.length} stages linked`);
    this.#lostAtMs = null;
    this.#ports.formed(plan.epoch, plan.placement.blockCount, plan.placement.stages);
  }

  /** As many as are wanted; fewer when a lost worker stays away and nobody has cut the layers by hand. */
  #possibleStages(): number {
    const { stageCount, cut } = this.#config;
    if (this.#members.size >= stageCount) return stageCount;
    const isLong = this.#lostAtMs !== null && this.#clock.nowMs() - this.#lostAtMs >= regroupAfterMs;
    return isLong && cut === undefined ? this.#members.size : 0;
  }

  #hasLoaded(connection: ConnectionId): boolean {
    const state = this.#members.get(connection)?.state;
    return state === "loaded" || state === "linked";
  }

  #formIfPossible(): void {
    if (this.#state.kind !== "waiting" || this.#clock.nowMs() < this.#state.notBeforeMs) return;
    const stageCount = this.#possibleStages();
    if (stageCount === 0) {
      this.#state.reason = this.#missingWorkers();
      return;
    }
    const chosen = [...this.#members.values()].sort(byName).slice(0, stageCount);
    let placement: Placement;
    try {
      placement = place(
        this.#config.placementModel,
        chosen.map(({ register: { worker: id, memoryBytes, threads } }) => ({ id, memoryBytes, threads })),
        { blockSize: kvBlockSize, minBlocks: this.#config.minBlocks, maxBlocks: this.#config.maxBlocks },
        this.#config.cut,
      );
    } catch (error) {
      if (!(error instanceof RelayError)) throw error;
      this.#wait(error.message);
      return;
    }
    const epoch: Epoch = { term: this.#term, plan: ++this.#planNumber };
    this.counters.placements++;
    const { placementsByReason } = this.counters;
    placementsByReason[this.#replanReason] = (placementsByReason[this.#replanReason] ?? 0) + 1;
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
    this.#ports.planMade(epoch);
    const { precision } = this.#config;
    for (const [stage, member] of chosen.entries()) {
      member.state = "loading";
      member.stageState = null;
      const { layerBegin, layerEnd } = placement.stages[stage]!;
      this.#ports.send(member.connection, {
        assign: {
          epoch,
          pipeline: 0,
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
        },
      });
    }
  }

  #lose(connection: ConnectionId, kind: WorkerLossReason, reason: string): void {
    const member = this.#members.get(connection);
    if (member === undefined) return;
    this.#members.delete(connection);
    this.#leases.end(connection);
    this.#ports.disconnect(connection);
    this.counters.workersLost++;
    this.counters.workersLostByReason[kind]++;
    const { worker } = member.register;
    this.#ports.log("warn", `worker ${worker} lost: ${reason}`);
    if (this.#state.kind === "waiting" || !this.#state.plan.stages.includes(connection)) return;
    this.#dissolve(
      new RelayError("worker_lost", `worker ${worker} was lost (${reason}); the cluster re-forms`),
    );
  }

  #dissolve(error: RelayError): void {
    if (this.#state.kind === "waiting") return;
    const { kind, plan } = this.#state;
    this.#replanReason = error.code;
    this.#ports.log("warn", `epoch ${formatEpoch(plan.epoch)} ended: ${error.message}`);
    this.#wait(error.message);
    this.#release(plan, error.message);
    if (kind !== "formed") return;
    this.#lostAtMs ??= this.#clock.nowMs();
    this.#ports.dissolved(error);
  }

  #release(plan: Plan, reason: string): void {
    this.#ports.planOver();
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

  #missingWorkers(): string {
    return `waiting for workers: ${this.#members.size} of ${this.#config.stageCount} have joined`;
  }
}

function byName(a: Member, b: Member): number {
  return a.register.worker.localeCompare(b.register.worker, "en", { numeric: true });
}

function describe(placement: Placement): string {
  const cuts = placement.stages.map(
    ({ worker, layerBegin, layerEnd }) => `${worker} [${layerBegin}, ${layerEnd})`,
  );
  return `${cuts.join(", ")}; ${placement.blockCount} KV blocks`;
}
