/**
 * One simulation from its description to its figures. The same description and seed give the same figures, to the
 * last digit.
 */
import type { ClusterView, StageView } from "../../coordinator/inference.js";
import { type RequestClass, requestClasses } from "../../coordinator/request-class.js";
import { EventLoop } from "../event-loop.js";
import { Random } from "../random.js";
import { type ClassTimes, Clients } from "./clients.js";
import { type ClusterOptions, SimulatedCluster } from "./cluster.js";
import { wrong } from "./hardware.js";
import type { LoadPart } from "./load.js";
import { Timeline } from "./timeline.js";
import type { SimulatedWorker } from "./worker.js";

/** A pipeline that has not formed by then never will. */
const formLimitMs = 24 * 3_600_000;
/** Of virtual time, in which requests are answered. */
export const virtualLimitMs = 30 * 24 * 3_600_000;
/** KV blocks in use are looked at so often, times that many workers: a look costs their number. */
const sampleMs = 200;
const sampleWorkers = 64;

export interface Kill {
  /** Its number. */
  worker: number;
  atMs: number;
  /** Its process is there again after that; null: never. */
  backAfterMs: number | null;
}

export interface SimulationOptions extends ClusterOptions {
  load: readonly LoadPart[];
  /** Loads that are over before, one after the other; not counted, but the coordinator has learnt from them. */
  earlier?: readonly LoadPart[];
  kills: readonly Kill[];
  /** Virtual time after which it ends though requests are open. */
  limitMs: number;
  /** Span of the timeline, ms after the load began. */
  timeline: { fromMs: number; toMs: number };
}

export interface StageFigures {
  pipeline: number;
  stage: number;
  worker: string;
  device: string;
  layerBegin: number;
  layerEnd: number;
  weightBytes: number;
  kvBytes: number;
  memoryBytes: number;
  /** Of the measured span, the share in which it computed. */
  utilisation: number;
}

export interface SimulationFigures {
  /** From the first request to the last token. */
  seconds: number;
  requests: number;
  failed: number;
  /** Of the first one that failed. */
  failure: string | null;
  /** Requests were open when the time was over. */
  cutOff: boolean;
  tokens: number;
  /** While all clients were busy, or requests came; null when that never was. */
  fullLoad: { seconds: number; tokensPerSecond: number } | null;
  tokensPerSecond: number;
  ttftMs: ClassTimes["ttftMs"];
  itlMs: ClassTimes["itlMs"];
  classes: Partial<Record<RequestClass, ClassTimes>>;
  stages: StageFigures[];
  utilisation: number;
  bubbleRatio: number;
  /** Of the blocks of all pipelines: mean over time, and most. */
  kv: { blocks: number; tokens: number; mean: number; most: number };
  steps: number;
  rowsPerStep: number;
  /** In flight in all pipelines, in the mean over time. */
  microBatches: number;
  preemptions: number;
  draftedTokens: number;
  acceptedTokens: number;
  replayedRows: number;
  recoveries: { reason: string; seconds: number }[];
}

export interface Simulation {
  figures: SimulationFigures;
  timeline: Timeline;
  workers: readonly SimulatedWorker[];
}

/** @throws RelayError invalid_configuration when the model does not fit, or a kill names no worker. */
export function simulate(options: SimulationOptions): Simulation {
  const loop = new EventLoop();
  const recoveries: SimulationFigures["recoveries"] = [];
  let timeline: Timeline | null = null;
  let clients: Clients | null = null;
  const cluster: SimulatedCluster = new SimulatedCluster(loop, options, {
    emit: (id, event) => clients?.emit(id, event),
    ended: (id) => clients?.ended(id),
    recovered: (reason, afterMs) => void recoveries.push({ reason, seconds: afterMs / 1_000 }),
    computed: (worker, segment) => timeline?.add(worker, segment),
  });
  const { model, load, earlier = [] } = options;
  const { contextLength, prefix } = model;
  let sentBefore = 0;
  const clientsOf = (parts: readonly LoadPart[], random: Random) =>
    new Clients(loop, random, { parts, contextLength, prefix, sentBefore }, (request) =>
      cluster.admit(request),
    );
  for (const { worker } of options.kills) {
    if (cluster.workers[worker] === undefined) {
      throw wrong("--kill", `worker${worker}`, `worker0 to worker${cluster.workers.length - 1}`);
    }
  }

  form(loop, cluster);
  for (const [index, part] of earlier.entries()) {
    clients = clientsOf([part], new Random(options.seed).fork(`earlier ${index}`));
    sentBefore += part.requests;
    clients.begin();
    while (!clients.done && loop.nowMs() < virtualLimitMs) loop.step();
  }
  cluster.forget();
  clients = clientsOf(load, new Random(options.seed));
  const startMs = loop.nowMs();
  timeline = new Timeline(cluster.workers.length, startMs, options.timeline);
  const kv = watchKv(loop, cluster);
  const busy = new BusySpan(loop, cluster.workers);
  clients.onFull = (begins) => (begins ? busy.begin() : busy.end());
  for (const { worker, atMs, backAfterMs } of options.kills) {
    loop.at(startMs + atMs, () => cluster.kill(cluster.workers[worker]!, backAfterMs));
  }
  const { stages, counters: before } = cluster.core.view();
  clients.begin();
  const endMs = startMs + Math.min(options.limitMs, virtualLimitMs);
  while (!clients.done && loop.nowMs() < endMs) loop.step();
  const figures = figuresOf({ loop, cluster, clients, startMs, stages, busy, kv, before });
  return { figures: { ...figures, recoveries }, timeline, workers: cluster.workers };
}

/** Until all pipelines serve. @throws RelayError */
function form(loop: EventLoop, cluster: SimulatedCluster): void {
  const all = () => cluster.core.view().pipelines.every(({ state }) => state === "ready");
  let looked = -1;
  while (true) {
    loop.step();
    // Looking at all workers after every event would cost more than the events.
    if (Math.floor(loop.nowMs() / 100) === looked) continue;
    looked = Math.floor(loop.nowMs() / 100);
    cluster.requireFit();
    if (all()) return;
    if (loop.nowMs() > formLimitMs) throw new Error("the simulated pipelines never formed");
  }
}

interface KvWatch {
  sum: number;
  samples: number;
  most: number;
}

function watchKv(loop: EventLoop, cluster: SimulatedCluster): KvWatch {
  const watch: KvWatch = { sum: 0, samples: 0, most: 0 };
  const everyMs = sampleMs * Math.ceil(cluster.workers.length / sampleWorkers);
  loop.every(everyMs, () => {
    const { used, total } = cluster.core.view().blocks;
    const ratio = total === 0 ? 0 : used / total;
    watch.sum += ratio;
    watch.samples++;
    watch.most = Math.max(watch.most, ratio);
  });
  return watch;
}

/** How long workers computed within a span of time. */
class BusySpan {
  readonly #loop: EventLoop;
  readonly #workers: readonly SimulatedWorker[];
  readonly #all: { atMs: number; busyMs: number[] };
  #from: { atMs: number; busyMs: number[] };
  #to: { atMs: number; busyMs: number[] } | null = null;

  constructor(loop: EventLoop, workers: readonly SimulatedWorker[]) {
    this.#loop = loop;
    this.#workers = workers;
    this.#all = this.#now();
    this.#from = this.#all;
  }

  begin(): void {
    this.#from = this.#now();
  }

  end(): void {
    this.#to = this.#now();
  }

  /** Share of the span, at most 1; of all the time when there was none. */
  of(worker: number): number {
    const ended = this.#to !== null && this.#to.atMs > this.#from.atMs;
    const [from, to] = ended ? [this.#from, this.#to!] : [this.#all, this.#now()];
    const spanMs = to.atMs - from.atMs;
    return spanMs === 0 ? 0 : Math.min(1, (to.busyMs[worker]! - from.busyMs[worker]!) / spanMs);
  }

  #now() {
    return { atMs: this.#loop.nowMs(), busyMs: this.#workers.map(({ busyMs }) => busyMs) };
  }
}

interface Ended {
  loop: EventLoop;
  cluster: SimulatedCluster;
  clients: Clients;
  startMs: number;
  /** Of the plans with which it began. */
  stages: readonly StageView[];
  busy: BusySpan;
  kv: KvWatch;
  /** Counters when the load began. */
  before: Pick<ClusterView["counters"], "preemptions" | "draftedTokens" | "acceptedTokens">;
}

function figuresOf(ended: Ended): Omit<SimulationFigures, "recoveries"> {
  const { loop, cluster, clients, startMs, busy, kv } = ended;
  const seconds = (loop.nowMs() - startMs) / 1_000;
  const view = cluster.core.view();
  const stages = ended.stages.map((stage) => stageFigures(stage, cluster, busy));
  const utilisation = stages.reduce((sum, stage) => sum + stage.utilisation, 0) / stages.length;
  const classes = requestClasses.flatMap((of) => {
    const times = clients.times(of);
    return times.requests + times.tokens === 0 ? [] : [[of, times] as const];
  });
  const first = classes[0]?.[1];
  const { before } = ended;
  const preemptions = view.counters.preemptions - before.preemptions;
  const draftedTokens = view.counters.draftedTokens - before.draftedTokens;
  const acceptedTokens = view.counters.acceptedTokens - before.acceptedTokens;
  return {
    seconds,
    requests: clients.finished,
    failed: clients.failed,
    failure: clients.failure,
    cutOff: !clients.done,
    tokens: clients.tokens,
    fullLoad: fullLoadOf(clients),
    tokensPerSecond: seconds === 0 ? 0 : clients.tokens / seconds,
    ttftMs: first?.ttftMs ?? null,
    itlMs: first?.itlMs ?? null,
    classes: Object.fromEntries(classes),
    stages,
    utilisation,
    bubbleRatio: 1 - utilisation,
    kv: {
      blocks: view.blocks.total,
      tokens: view.blocks.total * view.blocks.size,
      mean: kv.samples === 0 ? 0 : kv.sum / kv.samples,
      most: kv.most,
    },
    steps: cluster.steps,
    rowsPerStep: cluster.steps === 0 ? 0 : cluster.rows / cluster.steps,
    microBatches: seconds === 0 ? 0 : cluster.roundTripMs / (1_000 * seconds),
    preemptions,
    draftedTokens,
    acceptedTokens,
    replayedRows: cluster.replayedRows,
  };
}

function fullLoadOf({ full }: Clients): SimulationFigures["fullLoad"] {
  const { fromMs, toMs, fromTokens, toTokens } = full;
  if (fromMs === null || toMs === null || toMs <= fromMs) return null;
  const seconds = (toMs - fromMs) / 1_000;
  return { seconds, tokensPerSecond: (toTokens - fromTokens) / seconds };
}

function stageFigures(view: StageView, cluster: SimulatedCluster, busy: BusySpan): StageFigures {
  const { pipeline, stage, worker, layerBegin, layerEnd, weightBytes, kvBytes, memoryBytes } = view;
  const { index, device } = cluster.workers.find(({ id }) => id === worker)!;
  return {
    ...{ pipeline, stage, worker, device: device.name, layerBegin, layerEnd },
    ...{ weightBytes, kvBytes, memoryBytes, utilisation: busy.of(index) },
  };
}
