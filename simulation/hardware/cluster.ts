/**
 * The coordinator's core in virtual time, in front of workers that compute nothing and take as long as their timing
 * model says. Everything that the core hears comes as an event: messages of workers, answers of last stages, ticks.
 */
import { type ErrorCode, RelayError } from "../../common/errors.js";
import type { Epoch, PipelineId, RequestId } from "../../common/ids.js";
import { heartbeatMs } from "../../common/limits.js";
import { protocolVersion } from "../../common/package.js";
import { Core } from "../../coordinator/core.js";
import type { CorePorts } from "../../coordinator/core-ports.js";
import type { GenerationRequest, RequestEvent } from "../../coordinator/inference.js";
import { tickMs } from "../../coordinator/membership/leases.js";
import type { Assign } from "../../proto/generated/glm/relay/internal/v1/Assign.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { EventLoop } from "../event-loop.js";
import type { Assumptions } from "./assumptions.js";
import { DrawnTokens } from "./drawn-tokens.js";
import { type Hardware, stagesOf } from "./hardware.js";
import { Link } from "./link.js";
import type { SimulatedModel } from "./model-work.js";
import { ComputedLengths, type PipelineRun, type RunStage, type Travel } from "./run.js";
import { stepWork } from "./step-work.js";
import type { Segment } from "./timeline.js";
import { RooflineTimer, type StageTimer } from "./timing.js";
import { type SimulatedWorker, simulatedWorkers } from "./worker.js";

/** Of a step's header, and of a result: bytes per message and per sequence, about. */
const headerBytes = 100;
const sequenceBytes = 80;
/** A result comes to the coordinator from wherever the last stage is; so does a header to the first. */
const tokenBytes = 4;

export interface ClusterOptions {
  model: SimulatedModel;
  hardware: Hardware;
  assumptions: Assumptions;
  seed: number;
  /** Probability that the next token of a draft holds; null: nothing is guessed. */
  acceptance: number | null;
  itlTargetMs: number;
  prefillChunk: number;
  /** Micro-batches in flight; null: by what is measured. */
  microBatches: number | null;
  queueLimit: number;
  recoveryTimeoutMs: number;
  /** Takes the place of the roofline. */
  timer?: (stage: Omit<RunStage, "timer">) => StageTimer;
}

export interface ClusterEvents {
  emit(request: RequestId, event: RequestEvent): void;
  ended(request: RequestId): void;
  recovered(reason: ErrorCode, afterMs: number): void;
  computed(worker: number, segment: Segment): void;
}

/** KV blocks of a pipeline: no card of today holds as many. */
const maxBlocks = 4_000_000;

export class SimulatedCluster {
  readonly core: Core;
  readonly workers: readonly SimulatedWorker[];
  readonly #loop: EventLoop;
  readonly #options: ClusterOptions;
  readonly #events: ClusterEvents;
  readonly #runs = new Map<PipelineId, PipelineRun>();
  readonly #lengths = new ComputedLengths();
  readonly #drawn: DrawnTokens;
  readonly #coordinatorLink: Link;
  #coordinatorFreeAtMs = 0;
  #connections: number;
  /** Rows built again after losses and preemptions, and all steps that were answered. */
  replayedRows = 0;
  steps = 0;
  rows = 0;
  /** Of all answered steps, from sending to answer. */
  roundTripMs = 0;

  constructor(loop: EventLoop, options: ClusterOptions, events: ClusterEvents) {
    this.#loop = loop;
    this.#options = options;
    this.#events = events;
    const { hardware, seed, acceptance } = options;
    this.workers = simulatedWorkers(hardware, loop);
    this.#connections = this.workers.length;
    this.#drawn = new DrawnTokens(seed, acceptance ?? 0);
    this.#coordinatorLink = new Link(this.#isOneHost ? hardware.withinHost : hardware.betweenHosts);
    this.core = new Core(this.#coreConfig(), this.#ports(), loop);
    for (const worker of this.workers) loop.at(0, () => this.#join(worker));
    loop.every(tickMs, () => this.core.tick());
    loop.every(heartbeatMs, () => this.#heartbeats());
  }

  /** The coordinator is on the host of every worker. */
  get #isOneHost(): boolean {
    return this.#options.hardware.hosts.length === 1;
  }

  /** @throws RelayError invalid_configuration when the model does not fit, naming the missing bytes. */
  requireFit(): void {
    const reason = this.core.membership.notFormedReason;
    if (reason.startsWith("the model does not fit")) throw new RelayError("invalid_configuration", reason);
  }

  admit(request: GenerationRequest): void {
    this.core.admit(request);
  }

  /** Steps up to now are not counted. */
  forget(): void {
    this.replayedRows = 0;
    this.steps = 0;
    this.rows = 0;
    this.roundTripMs = 0;
  }

  /**
   * A worker's process dies now: its streams break at once.
   * @param backAfterMs Its process is started again after that; null: never.
   */
  kill(worker: SimulatedWorker, backAfterMs: number | null): void {
    if (!worker.alive) return;
    worker.alive = false;
    worker.loaded = "";
    worker.processor.clear();
    this.core.membership.gone(worker.connection, "killed by the simulation");
    if (backAfterMs === null) return;
    this.#loop.after(backAfterMs, () => {
      worker.connection = ++this.#connections;
      this.#join(worker);
    });
  }

  #coreConfig() {
    const { model, hardware, queueLimit, recoveryTimeoutMs } = this.#options;
    const { microBatches, itlTargetMs, prefillChunk, acceptance } = this.#options;
    const inHost = hardware.hosts.every(({ devices }) => devices.every((device) => device.embeddingInHost));
    const { placement, precision, maxRows } = model;
    return {
      queueLimit,
      microBatches,
      itlTargetMs,
      speculation: acceptance !== null,
      prefixLength: 0,
      prefillChunk,
      recoveryTimeoutMs,
      modelStopTokens: new Set<number>(),
      createDetokenizer: () => ({ push: () => "", flush: () => "" }),
      membership: {
        pipelineCount: hardware.pipelines,
        stageCount: stagesOf(hardware),
        modelDirectory: "",
        configOverrides: "",
        prefixEncoder: "",
        fingerprint: "",
        precision,
        placementModel: {
          ...placement,
          embeddingBytes: inHost ? 0 : placement.embeddingBytes,
          // What placement calls threads is the speed of a worker here; what a process needs is reserved.
          workspace: { ...placement.workspace, perThread: 0, lastPerThread: 0 },
          processBytes: 0,
        },
        maxRows,
        maxBlocks,
        clusterAddress: () => "coordinator",
        term: 1,
      },
    };
  }

  #ports(): CorePorts {
    return {
      send: (connection, message) => this.#received(connection, message),
      disconnect: () => {},
      planMade: (pipeline, epoch) => {
        this.#end(pipeline);
        this.#runs.set(pipeline, { pipeline, epoch, stages: [], over: false });
      },
      openResultLink: (_pipeline, epoch) =>
        void this.#loop.after(this.#options.assumptions.linkMs, () =>
          this.core.membership.resultLinkOpened(epoch),
        ),
      planOver: (pipeline) => this.#end(pipeline),
      termRaised: () => {},
      sendStep: (header) => this.#send(header),
      emit: (id, event) => this.#events.emit(id, event),
      ended: (id) => this.#events.ended(id),
      stepFinished: (rows) => {
        this.steps++;
        this.rows += rows;
      },
      readyChanged: () => {},
      recovered: (reason, afterMs) => this.#events.recovered(reason, afterMs),
      log: () => {},
    };
  }

  #end(pipeline: PipelineId): void {
    const run = this.#runs.get(pipeline);
    if (run === undefined) return;
    run.over = true;
    for (const { worker } of run.stages) worker.processor.clear();
    this.#runs.delete(pipeline);
  }

  #join(worker: SimulatedWorker): void {
    worker.alive = true;
    const { device, connection, id } = worker;
    this.core.membership.message(connection, {
      message: "register",
      register: {
        protocolVersion,
        softwareVersion: "0",
        worker: id,
        incarnation: String(connection),
        dataAddress: id,
        memoryBytes: device.memoryBytes - device.reservedBytes,
        threads: Math.max(1, Math.round(device.bandwidth / 1e9)),
        kernels: device.name,
        backend: "simulated",
        canonVersion: 0,
        highestTerm: 0,
        pid: worker.index,
        probeAddress: "",
      },
    });
  }

  #heartbeats(): void {
    const progress = Math.floor(this.#loop.nowMs());
    for (const { alive, connection, processor, steps, busyMs } of this.workers) {
      if (!alive) continue;
      this.core.membership.message(connection, {
        message: "heartbeat",
        heartbeat: {
          progress,
          busy: processor.busy,
          steps,
          busyUs: Math.round(busyMs * 1_000),
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

  /** A message on a worker's control stream. */
  #received(connection: number, { assign }: CoordinatorMessage): void {
    const worker = this.workers.find((each) => each.connection === connection);
    if (assign == null || worker === undefined) return;
    const run = this.#runs.get(assign.pipeline as PipelineId)!;
    const layers = { layerBegin: assign.layerBegin!, layerEnd: assign.layerEnd! };
    const { model, assumptions, timer } = this.#options;
    run.stages[assign.stage!] = {
      worker,
      layers,
      timer: timer?.({ worker, layers }) ?? new RooflineTimer(model, layers, worker.device, assumptions),
    };
    const report = (phase: "LOADED" | "LINKED") => {
      if (!run.over && worker.connection === connection && worker.alive)
        this.#report(worker, run.epoch, phase);
    };
    const loadMs = this.#loadMs(worker, assign);
    this.#loop.after(loadMs, () => report("LOADED"));
    this.#loop.after(loadMs + assumptions.linkMs, () => report("LINKED"));
  }

  /** Of the layers that it does not hold already; from then on it does. */
  #loadMs(worker: SimulatedWorker, { layerBegin = 0, layerEnd = 0 }: Assign): number {
    const { placement, layers } = this.#options.model;
    const wanted = `${layerBegin}..${layerEnd}`;
    if (worker.loaded === wanted) return 0;
    worker.loaded = wanted;
    let bytes = layerEnd === layers.length ? placement.headBytes : 0;
    for (let layer = layerBegin; layer < layerEnd; layer++) bytes += placement.layerBytes[layer]!;
    return (1_000 * bytes) / this.#options.assumptions.loadBandwidth;
  }

  #report(worker: SimulatedWorker, epoch: Epoch, phase: "LOADED" | "LINKED"): void {
    this.core.membership.message(worker.connection, {
      message: "stageState",
      stageState: {
        epoch,
        phase,
        detail: "",
        errorCode: "",
        weightBytes: 0,
        kvBytes: 0,
        workspaceBytes: 0,
        weightsFingerprint: "",
      },
    });
  }

  #send(header: StepHeader): void {
    const run = this.#runs.get(header.pipeline as PipelineId);
    if (run === undefined || run.over) return;
    const work = stepWork(header);
    const rows = this.#lengths.note(header);
    // A context that is read in slices is in many steps, and built again once.
    if ((header.slice?.layerBegin ?? 0) === 0) this.replayedRows += rows.replayRows;
    const sequences = header.sequences?.length ?? 0;
    const tokens = work.rows + (work.slice?.rows ?? 0);
    const bytes = headerBytes + sequenceBytes * sequences + tokenBytes * tokens;
    const travel: Travel = { run, header, work, rows, stageUs: [], sentMs: this.#loop.nowMs() };
    const { worker } = run.stages[0]!;
    this.#message(this.#coordinatorLink, bytes, this.#isOneHost ? worker : null, (atMs) =>
      this.#compute(travel, 0, atMs),
    );
  }

  /**
   * Sends a message. Where the cores that compute handle it, it takes one of them as long as it is on its way: what
   * lasts between two processes of one machine is work of both.
   * @param within   The worker at one of its ends, if both are on one host.
   * @param received Told when it arrives; of an own processor's steps that is known at once.
   */
  #message(
    link: Link,
    bytes: number,
    within: SimulatedWorker | null,
    received: (atMs: number) => void,
  ): void {
    const now = this.#loop.nowMs();
    if (within === null || !sharesCores(within)) {
      received(link.arrivalMs(now, bytes));
      return;
    }
    this.#loop.at(link.sentMs(now, bytes), () =>
      this.#takeCore(within, link.latencyMs, () => received(this.#loop.nowMs())),
    );
  }

  /** @param near Whoever reads it is on the worker's host. */
  #messageFrom(
    worker: SimulatedWorker,
    near: boolean,
    bytes: number,
    received: (atMs: number) => void,
  ): void {
    this.#message(near ? worker.local : worker.uplink, bytes, near ? worker : null, received);
  }

  /** On the host of a worker that shares its cores. */
  #takeCore({ device, shared }: SimulatedWorker, ms: number, done: () => void): void {
    const share = { memory: 0, arithmetic: 1 / device.shared!.cores!, crowding: 1 };
    shared!.begin({ cost: { ms, share }, done }, () => undefined);
  }

  #compute(travel: Travel, stage: number, atMs: number): void {
    const { run, work, rows, header } = travel;
    if (run.over) return;
    const { worker, timer } = run.stages[stage]!;
    const job = {
      cost: timer.cost(work),
      done: (startMs: number, busyMs: number) => {
        worker.busyMs += busyMs;
        worker.steps++;
        travel.stageUs.push(Math.round(busyMs * 1_000));
        this.#events.computed(worker.index, {
          startMs,
          endMs: startMs + busyMs,
          pipeline: run.pipeline,
          step: Number(header.step),
          ...rows,
        });
        this.#forward(travel, stage);
      },
    };
    worker.processor.submit(job, atMs);
  }

  /** Activations go to the next stage, or the result to the coordinator. */
  #forward(travel: Travel, stage: number): void {
    const { run, work } = travel;
    const { worker, layers } = run.stages[stage]!;
    const next = run.stages[stage + 1];
    const fixed = headerBytes + sequenceBytes * work.parts.length;
    if (next === undefined) {
      this.#messageFrom(worker, this.#isOneHost, fixed, (atMs) =>
        this.#loop.at(atMs, () => this.#answer(travel)),
      );
      return;
    }
    const sliced = work.slice?.layerEnd === layers.layerEnd ? work.slice.rows : 0;
    const bytes = fixed + (work.rows + sliced) * this.#options.model.rowBytes;
    this.#messageFrom(worker, next.worker.host === worker.host, bytes, (atMs) =>
      this.#compute(travel, stage + 1, atMs),
    );
  }

  /** The coordinator reads results one after the other, and sends the next step with each. */
  #answer(travel: Travel): void {
    const { coordinatorStepUs, coordinatorSequenceUs, answersUs } = this.#options.assumptions;
    const us = coordinatorStepUs + coordinatorSequenceUs * travel.work.parts.length;
    const startMs = Math.max(this.#loop.nowMs(), this.#coordinatorFreeAtMs);
    this.#coordinatorFreeAtMs = startMs + us / 1_000;
    this.#loop.at(this.#coordinatorFreeAtMs, () => {
      const { run, header, stageUs, sentMs } = travel;
      if (run.over) return;
      this.roundTripMs += this.#loop.nowMs() - sentMs;
      this.core.stepResult({
        epoch: run.epoch,
        pipeline: run.pipeline,
        step: Number(header.step),
        stageUs,
        sequences: (header.sequences ?? []).map((rows) => this.#drawn.of(rows)),
      });
      const { worker } = run.stages[0]!;
      if (this.#isOneHost && sharesCores(worker)) this.#takeCore(worker, answersUs / 1_000, () => undefined);
    });
  }
}

const sharesCores = ({ device }: SimulatedWorker): boolean => (device.shared?.cores ?? null) !== null;
