/** Who is there: registration, leases, and the last that each worker has told. */
import type { Clock } from "../../common/clock.js";
import { RelayError } from "../../common/errors.js";
import { heartbeatMs, leaseMs } from "../../common/limits.js";
import { protocolVersion, softwareVersion } from "../../common/package.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { Heartbeat__Output } from "../../proto/generated/glm/relay/internal/v1/Heartbeat.js";
import type { Register__Output } from "../../proto/generated/glm/relay/internal/v1/Register.js";
import type { WorkerLossReason, WorkerView } from "../inference.js";
import { Leases } from "./leases.js";
import { type ConnectionId, type CoreLog, type Member, workerView } from "./member.js";

/** Members beyond the stages are spares; more than this are turned away. */
export const maxWorkers = 1_024;

export interface MembersPorts {
  send(connection: ConnectionId, message: CoordinatorMessage): void;
  /** Ends a control stream after what was sent. */
  disconnect(connection: ConnectionId): void;
  /** A worker reported a term above ours: ours must be written down again. */
  termRaised(term: number): void;
  /** A member is gone; it is no longer found here. */
  lost(member: Member, reason: string): void;
  log: CoreLog;
}

export class Members {
  readonly #ports: MembersPorts;
  readonly #clock: Clock;
  readonly #members = new Map<ConnectionId, Member>();
  readonly #leases: Leases<ConnectionId>;
  #term: number;
  /** Workers that were told this term, by name, the one told last behind the others; each process of them once. */
  readonly #told = new Map<string, string>();
  readonly counters = {
    workersLost: 0,
    workersLostByReason: { left: 0, disconnected: 0, lease_over: 0, replaced: 0 } satisfies Record<
      WorkerLossReason,
      number
    >,
  };

  /** @param term This leadership's number. */
  constructor(term: number, ports: MembersPorts, clock: Clock) {
    this.#term = term;
    this.#ports = ports;
    this.#clock = clock;
    this.#leases = new Leases(clock.nowMs());
  }

  /** Above every term that a worker has reported. */
  get term(): number {
    return this.#term;
  }

  get size(): number {
    return this.#members.size;
  }

  get(connection: ConnectionId): Member | undefined {
    return this.#members.get(connection);
  }

  /** By name: worker-2 before worker-10. */
  sorted(): Member[] {
    return [...this.#members.values()].sort((a, b) =>
      a.register.worker.localeCompare(b.register.worker, "en", { numeric: true }),
    );
  }

  /** @returns false when the worker was refused. */
  register(connection: ConnectionId, register: Register__Output): boolean {
    const refusal = this.#refusal(register);
    if (refusal !== null) {
      this.#ports.log("warn", `worker ${register.worker} refused: ${refusal.message}`);
      this.#ports.send(connection, { refused: { code: refusal.code, message: refusal.message } });
      this.#ports.disconnect(connection);
      return false;
    }
    for (const [other, member] of this.#members) {
      if (member.register.worker === register.worker && other !== connection) {
        this.lose(other, "replaced", "the same worker registered again");
      }
    }
    if (register.highestTerm >= this.#term && !this.#wasTold(register)) {
      this.#term = register.highestTerm + 1;
      this.#told.clear();
      this.#ports.termRaised(this.#term);
    }
    this.#noteTold(register);
    const now = this.#clock.nowMs();
    this.#members.set(connection, {
      connection,
      register,
      state: "idle",
      detail: "",
      heartbeat: null,
      heartbeatAtMs: now,
      idleSinceMs: null,
      stageState: null,
    });
    this.#leases.start(connection, now);
    this.#ports.log(
      "info",
      `worker ${register.worker} joined (pid ${register.pid}, ${register.dataAddress})`,
    );
    this.#ports.send(connection, { welcome: { term: this.#term, heartbeatMs, leaseMs } });
    return true;
  }

  heartbeat(member: Member, heartbeat: Heartbeat__Output): void {
    const now = this.#clock.nowMs();
    member.heartbeat = heartbeat;
    member.heartbeatAtMs = now;
    member.idleSinceMs = heartbeat.busy ? null : (member.idleSinceMs ?? now);
    // Reading weights has no kernel tiles to count; a plan's time limit bounds it instead.
    const busy = heartbeat.busy && member.state !== "loading";
    this.#leases.heartbeat(member.connection, heartbeat.progress, busy, now);
  }

  lose(connection: ConnectionId, kind: WorkerLossReason, reason: string): void {
    const member = this.#members.get(connection);
    if (member === undefined) return;
    this.#members.delete(connection);
    this.#leases.end(connection);
    this.#ports.disconnect(connection);
    this.counters.workersLost++;
    this.counters.workersLostByReason[kind]++;
    this.#ports.log("warn", `worker ${member.register.worker} lost: ${reason}`);
    this.#ports.lost(member, reason);
  }

  /** Call every tickMs. */
  checkLeases(): void {
    for (const connection of this.#leases.check(this.#clock.nowMs())) {
      this.lose(connection, "lease_over", `no progress for ${leaseMs} ms: its lease is over`);
    }
  }

  views(): WorkerView[] {
    const now = this.#clock.nowMs();
    return this.sorted().map((member) => workerView(member, now));
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

  /** Whether it has this term from us, and not from another process to which Redis gave it before it forgot. */
  #wasTold({ worker, incarnation, highestTerm }: Register__Output): boolean {
    return highestTerm === this.#term && this.#told.get(worker) === incarnation;
  }

  #noteTold({ worker, incarnation }: Register__Output): void {
    this.#told.delete(worker);
    this.#told.set(worker, incarnation);
    // One that is forgotten and comes back only costs a number.
    const [oldest] = this.#told.keys();
    if (this.#told.size > maxWorkers) this.#told.delete(oldest!);
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
}
