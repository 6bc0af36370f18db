/** A simulated worker: joins whoever coordinates, obeys the highest term it has seen, and works one plan off. */
import { Backoff } from "../../common/grpc.js";
import { compareEpochs, type Epoch, formatEpoch } from "../../common/ids.js";
import { heartbeatMs } from "../../common/limits.js";
import { protocolVersion } from "../../common/package.js";
import type { Assign } from "../../proto/generated/glm/relay/internal/v1/Assign.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { Random } from "../random.js";
import { serveLink } from "./links.js";
import { connectionLost, type Endpoint, type Network } from "./network.js";
import { PlanRun } from "./plan-run.js";
import { Process } from "./process.js";
import type { World } from "./world.js";

export const controlAddress = "control";
const welcomeTimeoutMs = 10_000;
const retryMs = { first: 100, last: 2_000 };
const noEpoch: Epoch = { term: 0, plan: 0 };

export interface WorkerOptions {
  name: string;
  memoryBytes: number;
  prefixLength: number;
  /** Of a step: on top of it comes rowMs for each row. */
  baseMs: number;
  rowMs: number;
}

export class SimWorker {
  readonly name: string;
  readonly #world: World;
  readonly #network: Network;
  readonly #random: Random;
  readonly #options: WorkerOptions;
  #process: Process;
  #incarnation = 0;
  #highestTerm = 0;
  #newest: Epoch = noEpoch;
  #plan: PlanRun | null = null;
  /** The epoch of the last step that it computed. */
  #lastComputed: Epoch = noEpoch;
  #session: Endpoint | null = null;
  #joined = false;
  #backoff = new Backoff(retryMs.first, retryMs.last);
  #progress = 0;
  /** Everything takes so many times as long. */
  slowness = 1;

  constructor(world: World, network: Network, random: Random, options: WorkerOptions) {
    this.name = options.name;
    this.#world = world;
    this.#network = network;
    this.#random = random;
    this.#options = options;
    this.#process = this.#begin();
  }

  get process(): Process {
    return this.#process;
  }

  /** The process ends; what it held in memory is lost. @param silently With its machine, so that no peer is told. */
  kill(silently: boolean): void {
    this.#process.kill();
    this.#network.died(this.#process, silently);
    this.#plan = null;
    this.#session = null;
  }

  restart(): void {
    if (this.#process.alive) return;
    this.#highestTerm = 0;
    this.#newest = noEpoch;
    this.#lastComputed = noEpoch;
    this.#joined = false;
    this.#progress = 0;
    this.#backoff = new Backoff(retryMs.first, retryMs.last);
    this.#process = this.#begin();
  }

  #begin(): Process {
    const process = new Process(this.#world, this.name);
    this.#incarnation++;
    this.#network.listen(process, `data:${this.name}`, (endpoint) =>
      serveLink(endpoint, () => ({ plan: this.#plan, newest: this.#newest })),
    );
    process.timers.every(heartbeatMs, () => this.#beat());
    process.timers.soon(() => this.#dial());
    return process;
  }

  #dial(): void {
    const session = this.#network.dial(this.#process, controlAddress);
    this.#session = session;
    this.#joined = false;
    const timer = this.#process.timers.after(welcomeTimeoutMs, () => {
      if (this.#session !== session || this.#joined) return;
      session.close(connectionLost);
      this.#ended(session);
    });
    session.onMessage = (message) => this.#obey(session, message as CoordinatorMessage);
    session.onClose = () => {
      timer.cancel();
      this.#ended(session);
    };
    session.send({
      message: "register",
      register: {
        protocolVersion,
        softwareVersion: "0",
        worker: this.name,
        incarnation: `${this.#incarnation}`,
        dataAddress: `data:${this.name}`,
        memoryBytes: this.#options.memoryBytes,
        threads: 1,
        kernels: "simulated",
        backend: "simulated",
        canonVersion: 1,
        highestTerm: this.#highestTerm,
        pid: this.#incarnation,
        probeAddress: "",
      },
    });
  }

  #ended(session: Endpoint): void {
    if (this.#session !== session) return;
    this.#session = null;
    this.#joined = false;
    this.#process.timers.after(this.#backoff.next(), () => this.#dial());
  }

  #obey(session: Endpoint, { welcome, assign, release }: CoordinatorMessage): void {
    if (this.#session !== session) return;
    if (welcome != null && !this.#joined) {
      const term = Number(welcome.term);
      if (term < this.#highestTerm) {
        this.#world.count("stale coordinators refused");
        session.close(connectionLost);
        this.#ended(session);
        return;
      }
      this.#highestTerm = term;
      this.#joined = true;
      this.#backoff.reset();
      this.#replace(null);
    } else if (this.#joined && assign != null) this.#assigned(session, assign);
    else if (this.#joined && release != null) {
      const epoch = epochOf(release.epoch);
      if (epoch.term < this.#highestTerm || compareEpochs(epoch, this.#newest) < 0) return;
      this.#accept(epoch);
      this.#replace(null);
    }
  }

  #assigned(session: Endpoint, assign: Assign): void {
    const epoch = epochOf(assign.epoch);
    if (epoch.term < this.#highestTerm || compareEpochs(epoch, this.#newest) <= 0) {
      this.#world.trace.note(this.name, `drops the stale plan ${formatEpoch(epoch)}`);
      return;
    }
    this.#accept(epoch);
    this.#world.trace.note(this.name, `is stage ${assign.stage} of plan ${formatEpoch(epoch)}`);
    const { prefixLength, baseMs, rowMs } = this.#options;
    this.#replace(
      new PlanRun(assign, {
        world: this.#world,
        network: this.#network,
        process: this.#process,
        prefixLength,
        computed: (of) => {
          if (compareEpochs(of, this.#lastComputed) < 0) {
            const message = `${this.name} computes for epoch ${formatEpoch(of)} after ${formatEpoch(this.#lastComputed)}`;
            this.#world.violate("one owner per epoch", message);
          }
          this.#lastComputed = of;
        },
        loadMs: this.#random.between(20, 200),
        computeMs: (rows) => {
          this.#progress++;
          return (baseMs + rowMs * rows) * this.slowness * this.#random.between(0.9, 1.2);
        },
        report: (state) => {
          if (this.#session !== session || !this.#joined) return;
          const bytes = { weightBytes: 0, kvBytes: 0, workspaceBytes: 0, weightsFingerprint: "f" };
          session.send({ message: "stageState", stageState: { epoch, ...state, ...bytes } });
        },
      }),
    );
  }

  #accept(epoch: Epoch): void {
    this.#highestTerm = epoch.term;
    this.#newest = epoch;
  }

  #replace(plan: PlanRun | null): void {
    this.#plan?.end();
    this.#plan = plan;
    plan?.start();
  }

  #beat(): void {
    if (!this.#joined) return;
    this.#session?.send({
      message: "heartbeat",
      heartbeat: {
        progress: this.#progress,
        busy: this.#plan?.busy ?? false,
        steps: this.#plan?.steps ?? 0,
        busyUs: 0,
        residentBytes: 0,
        receivedBytes: 0,
        staleMessages: 0,
        loadedBytes: 0,
        loadBytes: 0,
        idleUs: 0,
      },
    });
  }
}

const epochOf = (epoch: Assign["epoch"]): Epoch => ({
  term: Number(epoch?.term ?? 0),
  plan: epoch?.plan ?? 0,
});
