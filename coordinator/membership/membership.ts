/**
 * Who is there and which plans hold: workers join, are given to a pipeline, load, link up, and are lost.
 * A state machine: messages and ticks in, messages and two events per pipeline (formed, dissolved) out.
 */
import type { Clock } from "../../common/clock.js";
import type { RelayError } from "../../common/errors.js";
import { compareEpochs, type Epoch, type PipelineId, pipelineId } from "../../common/ids.js";
import type { StageState__Output } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import type { StageView, WorkerView } from "../inference.js";
import { type Allotment, allot } from "./allotment.js";
import type { ConnectionId, Member } from "./member.js";
import { Members } from "./members.js";
import { PipelinePlan } from "./pipeline-plan.js";
import type { MembershipConfig, MembershipPorts } from "./ports.js";

/**
 * Workers that begin at the same time, or dial a restarted coordinator, join within this time. Where several
 * pipelines are wanted the first wait for the others: in the order of their names they find the weights they
 * have. And nobody goes on with fewer stages while others are just coming back.
 */
const settleMs = 3_000;

/** What is planned for one pipeline. */
export interface PlanView {
  pipeline: PipelineId;
  epoch: Epoch | null;
  phase: "waiting" | "loading" | "formed";
  /** Why it is not formed; empty when it is. */
  reason: string;
  stages: StageView[];
}

export class Membership {
  readonly #config: MembershipConfig;
  readonly #clock: Clock;
  readonly #members: Members;
  readonly #plans: readonly PipelinePlan[];
  /** Over all pipelines: an epoch names one plan of one of them. */
  #planNumber = 0;
  #firstJoinMs: number | null = null;
  #lastJoinMs = Number.NEGATIVE_INFINITY;
  readonly #placements = { placements: 0, placementsByReason: {} as Record<string, number> };

  constructor(config: MembershipConfig, ports: MembershipPorts, clock: Clock) {
    this.#config = config;
    this.#clock = clock;
    const lost = (member: Member, reason: string) =>
      this.#holderOf(member.connection)?.memberLost(member, reason);
    this.#members = new Members(config.term, { ...ports, lost }, clock);
    this.#plans = Array.from(
      { length: config.pipelineCount },
      (_, index) => new PipelinePlan(pipelineId(index), config, ports, this.#members, clock),
    );
    this.#formIfPossible();
  }

  get counters() {
    return { ...this.#placements, ...this.#members.counters };
  }

  /** This leadership's number: above every one that a worker has reported. */
  get term(): number {
    return this.#members.term;
  }

  /** Of the newest plan that holds; null without one. */
  get epoch(): Epoch | null {
    const epochs = this.#plans.flatMap(({ epoch }) => epoch ?? []);
    return epochs.sort(compareEpochs).at(-1) ?? null;
  }

  /** Why no pipeline is formed, of the one that is nearest to it; empty when one is. */
  get notFormedReason(): string {
    const [nearest] = [...this.#plans].sort((a, b) => phases.indexOf(b.phase) - phases.indexOf(a.phase));
    return nearest!.notFormedReason;
  }

  /** Of the pipeline that is nearest to being formed. */
  get phase(): PlanView["phase"] {
    return phases[Math.max(...this.#plans.map(({ phase }) => phases.indexOf(phase)))]!;
  }

  /** True when every worker of a plan said in its last heartbeat, sent after `sinceMs`, that it computes nothing. */
  allIdleSince(pipeline: PipelineId, sinceMs: number): boolean {
    return this.#plans[pipeline]!.allIdleSince(sinceMs);
  }

  message(connection: ConnectionId, message: WorkerMessage__Output): void {
    if (message.register != null && this.#members.register(connection, message.register)) {
      this.#lastJoinMs = this.#clock.nowMs();
      this.#firstJoinMs ??= this.#lastJoinMs;
      this.#formIfPossible();
    }
    const member = this.#members.get(connection);
    if (member === undefined) return;
    if (message.heartbeat != null) this.#members.heartbeat(member, message.heartbeat);
    else if (message.stageState != null) this.#stageState(member, message.stageState);
    else if (message.leave != null) this.#members.lose(connection, "left", `left: ${message.leave.reason}`);
  }

  /** A control stream ended. */
  gone(connection: ConnectionId, reason: string): void {
    this.#members.lose(connection, "disconnected", reason);
  }

  resultLinkOpened(epoch: Epoch): void {
    this.#planOf(epoch)?.resultLinkOpened();
  }

  /**
   * The link of an epoch broke, or something impossible came over it.
   * @param stage At whose end; null when it cannot be told.
   */
  linkBroken(epoch: Epoch, error: RelayError, stage: number | null): void {
    this.#planOf(epoch)?.linkBroken(error, stage);
  }

  /** Call every tickMs. */
  tick(): void {
    this.#members.checkLeases();
    for (const plan of this.#plans) plan.tick();
    this.#formIfPossible();
  }

  /** Fewer stages than wanted hold the model, and there are workers for all of them that no other pipeline lacks. */
  canGrow(pipeline: PipelineId): boolean {
    const { growth } = this.#plans[pipeline]!;
    return growth > 0 && this.#allot().spares.length >= growth;
  }

  /** Gives the layers out again, to all stages. */
  grow(pipeline: PipelineId): void {
    this.#plans[pipeline]!.grow();
  }

  /** The formed pipeline answered its first token: later failures count from zero again. */
  proven(pipeline: PipelineId): void {
    this.#plans[pipeline]!.proven();
  }

  /** Tells every worker that the plans are over; nothing is formed afterwards. */
  shutDown(): void {
    for (const plan of this.#plans) plan.shutDown();
  }

  planViews(): PlanView[] {
    return this.#plans.map((plan) => ({
      pipeline: plan.id,
      epoch: plan.epoch,
      phase: plan.phase,
      reason: plan.notFormedReason,
      stages: plan.stageViews(),
    }));
  }

  /** Of all pipelines. */
  stageViews(): StageView[] {
    return this.#plans.flatMap((plan) => plan.stageViews());
  }

  workerViews(): WorkerView[] {
    return this.#members.views();
  }

  staleMessages(): number {
    return this.#members.staleMessages();
  }

  /** Backend family and canon version of the members; null before the first. */
  numerics(): { backend: string; canonVersion: number } | null {
    return this.#members.numerics();
  }

  #planOf(epoch: Epoch): PipelinePlan | undefined {
    return this.#plans.find((plan) => plan.epoch !== null && compareEpochs(epoch, plan.epoch) === 0);
  }

  #holderOf(connection: ConnectionId): PipelinePlan | undefined {
    return this.#plans.find((plan) => plan.has(connection));
  }

  #stageState(member: Member, message: StageState__Output): void {
    if (message.epoch === null) return;
    const plan = this.#planOf(message.epoch);
    if (plan?.has(member.connection)) plan.stageState(member, message);
  }

  #allot(): Allotment {
    const free = this.#members.sorted().filter(({ connection }) => this.#holderOf(connection) === undefined);
    const claims = this.#plans.flatMap((plan) => plan.claim ?? []);
    const names = free.map(({ register }) => register.worker);
    return allot(claims, names, this.#config.stageCount);
  }

  #formIfPossible(): void {
    const waiting = this.#plans.filter((plan) => plan.mayForm);
    if (waiting.length === 0) return;
    const { workers } = this.#allot();
    const { stageCount } = this.#config;
    const members = new Map(this.#members.sorted().map((member) => [member.register.worker, member]));
    for (const plan of waiting) {
      const chosen = workers.get(plan.id)!;
      const mayShrink = plan.mayShrink && this.#clock.nowMs() - this.#lastJoinMs >= settleMs;
      const enough = chosen.length === stageCount || (mayShrink && chosen.length > 0);
      if (!enough) plan.waitFor(missing(chosen.length, stageCount));
      else if (!this.#settled && plan.isNew) plan.waitFor(missing(members.size, this.#wanted));
      else
        plan.form(
          chosen.map((name) => members.get(name)!),
          () => this.#nextEpoch(plan.replanReason),
        );
    }
  }

  /** Workers for all stages of all pipelines. */
  get #wanted(): number {
    return this.#config.pipelineCount * this.#config.stageCount;
  }

  /** All are there, or those that are not have had their time. */
  get #settled(): boolean {
    const sinceMs = this.#firstJoinMs ?? Number.POSITIVE_INFINITY;
    return this.#members.size >= this.#wanted || this.#clock.nowMs() - sinceMs >= settleMs;
  }

  #nextEpoch(reason: string): Epoch {
    const { placementsByReason } = this.#placements;
    this.#placements.placements++;
    placementsByReason[reason] = (placementsByReason[reason] ?? 0) + 1;
    return { term: this.#members.term, plan: ++this.#planNumber };
  }
}

/** From the farthest from serving to the nearest. */
const phases = ["waiting", "loading", "formed"] as const;

function missing(there: number, wanted: number): string {
  return `waiting for workers: ${there} of ${wanted} have joined`;
}
