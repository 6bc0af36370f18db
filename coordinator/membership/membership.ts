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
import type { ConnectionId, Member } from "./member.js";
import { Members } from "./members.js";
import { PipelinePlan } from "./pipeline-plan.js";
import type { MembershipConfig, MembershipPorts } from "./ports.js";

export class Membership {
  readonly #config: MembershipConfig;
  readonly #members: Members;
  readonly #plan: PipelinePlan;
  #planNumber = 0;
  readonly #placements = { placements: 0, placementsByReason: {} as Record<string, number> };

  constructor(config: MembershipConfig, ports: MembershipPorts, clock: Clock) {
    this.#config = config;
    const lost = (member: Member, reason: string) => this.#lost(member, reason);
    this.#members = new Members(config.term, { ...ports, lost }, clock);
    this.#plan = new PipelinePlan(pipelineId(0), config, ports, this.#members, clock);
    this.#plan.lacks(0);
  }

  get counters() {
    return { ...this.#placements, ...this.#members.counters };
  }

  get epoch(): Epoch | null {
    return this.#plan.epoch;
  }

  /** Why no pipeline is formed; empty when one is. */
  get notFormedReason(): string {
    return this.#plan.notFormedReason;
  }

  get phase(): "waiting" | "loading" | "formed" {
    return this.#plan.phase;
  }

  /** True when every worker of the plan said in its last heartbeat, sent after `sinceMs`, that it computes nothing. */
  allIdleSince(_pipeline: PipelineId, sinceMs: number): boolean {
    return this.#plan.allIdleSince(sinceMs);
  }

  message(connection: ConnectionId, message: WorkerMessage__Output): void {
    if (message.register != null && this.#members.register(connection, message.register)) {
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
    this.#plan.tick();
    this.#formIfPossible();
  }

  /** Fewer stages than wanted hold the model, and there are workers for all of them again. */
  get canGrow(): boolean {
    const { stageCount } = this.#config;
    return (
      this.#plan.phase === "formed" && this.#plan.stageCount < stageCount && this.#members.size >= stageCount
    );
  }

  /** Gives the layers out again, to all stages. */
  grow(): void {
    this.#plan.grow();
  }

  /** The formed pipeline answered its first token: later failures count from zero again. */
  proven(_pipeline: PipelineId): void {
    this.#plan.proven();
  }

  /** Tells every worker that the plan is over; nothing is formed afterwards. */
  shutDown(): void {
    this.#plan.shutDown();
  }

  stageViews(): StageView[] {
    return this.#plan.stageViews();
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
    const { epoch: ours } = this.#plan;
    return ours !== null && compareEpochs(epoch, ours) === 0 ? this.#plan : undefined;
  }

  #stageState(member: Member, message: StageState__Output): void {
    if (message.epoch === null) return;
    const plan = this.#planOf(message.epoch);
    if (plan?.has(member.connection)) plan.stageState(member, message);
  }

  #lost(member: Member, reason: string): void {
    if (this.#plan.has(member.connection)) this.#plan.memberLost(member, reason);
  }

  #formIfPossible(): void {
    const plan = this.#plan;
    if (!plan.mayForm) return;
    const there = this.#members.sorted();
    const enough = there.length >= this.#config.stageCount;
    if (!enough && !(plan.mayShrink && there.length > 0)) {
      plan.lacks(there.length);
      return;
    }
    plan.form(there.slice(0, this.#config.stageCount), () => this.#nextEpoch(plan.replanReason));
  }

  #nextEpoch(reason: string): Epoch {
    const { placementsByReason } = this.#placements;
    this.#placements.placements++;
    placementsByReason[reason] = (placementsByReason[reason] ?? 0) + 1;
    return { term: this.#members.term, plan: ++this.#planNumber };
  }
}
