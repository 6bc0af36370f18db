/**
 * The worker process as a library: joins a coordinator, holds one stage of the model and passes steps
 * on. It keeps living through anything that the coordinator can mend: a failed stage, a lost neighbour,
 * a coordinator that is away. It ends when its GPU fails for good.
 */
import { randomUUID } from "node:crypto";
import { advertisedAddress, requireAdvertisable } from "../common/address.js";
import { RelayError, toRelayError } from "../common/errors.js";
import { logGrpcTo } from "../common/grpc.js";
import { type Epoch, formatEpoch } from "../common/ids.js";
import type { Logger } from "../common/log.js";
import { protocolVersion, softwareVersion } from "../common/package.js";
import { Probe } from "../common/probe.js";
import { requireTrustedAddress, type WorkerTrust } from "../common/tls.js";
import { chooseDevice, freeGpuBytes, type Gpu, type TensorRounding } from "../native/index.js";
import type { Assign__Output } from "../proto/generated/glm/relay/internal/v1/Assign.js";
import type { Heartbeat } from "../proto/generated/glm/relay/internal/v1/Heartbeat.js";
import type { Register } from "../proto/generated/glm/relay/internal/v1/Register.js";
import type { StageState } from "../proto/generated/glm/relay/internal/v1/StageState.js";
import { acceptLink } from "../proto/link/hello.js";
import { Control } from "./control/control.js";
import { EpochGate } from "./control/epoch-gate.js";
import { type StaleMessage, WorkerMetrics } from "./metrics.js";
import { WorkerServer } from "./server/server.js";
import type { Engine } from "./stage/engine.js";
import { nativeEngine, type WeightCacheDirectory } from "./stage/native-engine.js";
import { decodeAssign } from "./stage/plan.js";
import { PlanRun } from "./stage/run.js";
import { StageHost } from "./stage/stage-host.js";
import { followWeightCache } from "./stage/weight-cache.js";

/** Who drains and sees no step for so long is not needed any more. */
const drainQuietMs = 1_000;
const drainPollMs = 50;
/** A running step may take so long after the order to close; its sequences are replayed otherwise. */
const stepDrainMs = 2_000;
/** Freeing the stage waits for what the engine still runs; the end of the process frees it too. */
const stageCloseMs = 1_500;

export interface WorkerOptions extends WorkerTrust {
  /** Stable name over restarts. */
  id: string;
  /** host:port */
  coordinator: string;
  /** host:port; port 0 takes a free one. */
  listen: string;
  /** host:port that others dial, port 0 the bound one; absent: where it listens. */
  advertise?: string | undefined;
  /** Offered for weights, KV cache and workspace. */
  memoryBytes: number;
  /** "auto", "cpu" or "cuda:N"; absent: cpu. */
  device?: string;
  /** What of a GPU's free bytes is offered instead of memoryBytes; absent: memoryBytes. */
  gpuMemoryBytes?: (freeBytes: number) => number;
  threads: number;
  /** The processor that each of them stays on; absent or null: the system moves them. */
  cpus?: readonly number[] | null;
  /** Seconds for which a worker that is closed goes on while steps come; default 0. */
  drainTimeout?: number | undefined;
  /** Plain HTTP for /livez, /readyz, /metrics; absent: none. 0 takes a free one. */
  probePort?: number;
  /** Default 127.0.0.1. */
  probeHost?: string | undefined;
  log: Logger;
  /** Packed weights are kept there for the next load; absent or null: nowhere. */
  weightCache?: WeightCacheDirectory | null;
  /** Hears how far the rounded weights of a new stage are from the stored ones. */
  onRounded?: (roundings: readonly TensorRounding[]) => void;
}

export interface RunningWorker {
  /** host:port of the Link service, as bound. */
  readonly address: string;
  /** host:port of the probes; null without them. */
  readonly probeAddress: string | null;
  /** Resolves when the worker has ended, with the exit status its process should have and why. */
  readonly closed: Promise<{ code: number; reason: string }>;
  /**
   * Goes on while steps come, until the coordinator has released it, but no longer than drainTimeout; then leaves
   * the cluster in order, within 5 s. Also when called twice.
   */
  close(reason: string): Promise<void>;
  /** Ends the going on of close. */
  hurry(): void;
}

/**
 * Starts a worker; it serves its port when this resolves, and joins as soon as a coordinator is there.
 * @param engine stands in for the native engine in tests.
 * @throws RelayError invalid_configuration when an address or the device cannot be used.
 */
export async function startWorker(options: WorkerOptions, engine?: Engine): Promise<RunningWorker> {
  logGrpcTo(options.log);
  const worker = engine === undefined ? onDevice(options) : new Worker(options, engine);
  await worker.start();
  return worker;
}

function onDevice(options: WorkerOptions): Worker {
  const { device = "cpu", memoryBytes, gpuMemoryBytes, weightCache, cpus, log } = options;
  const gpu = deviceOf(device);
  const engine = nativeEngine(weightCache, cpus, gpu);
  if (gpu === null) return new Worker(options, engine);
  const freeBytes = freeGpuBytes(gpu);
  const offered = gpuMemoryBytes?.(freeBytes) ?? memoryBytes;
  log.info(
    { gpu: gpu.name, computeCapability: gpu.computeCapability, memoryBytes: offered },
    `computes on cuda:${gpu.index}`,
  );
  if (offered > freeBytes) {
    log.warn({ memoryBytes: offered, freeBytes }, "offers more memory than is free on the GPU");
  }
  return new Worker({ ...options, memoryBytes: offered }, engine);
}

function deviceOf(wanted: string): Gpu | null {
  try {
    return chooseDevice(wanted);
  } catch (error) {
    throw new RelayError("invalid_configuration", (error as Error).message);
  }
}

class Worker implements RunningWorker {
  address = "";
  probeAddress: string | null = null;
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly #options: WorkerOptions;
  readonly #engine: Engine;
  readonly #incarnation = randomUUID();
  readonly #gate = new EpochGate();
  readonly #metrics: WorkerMetrics;
  readonly #host: StageHost;
  readonly #server: WorkerServer;
  readonly #probe: Probe | null;
  readonly #control: Control;
  #resolveClosed!: (end: { code: number; reason: string }) => void;
  #closing = false;
  #hurried = false;
  #plan: PlanRun | null = null;
  #linked = false;

  constructor(options: WorkerOptions, engine: Engine) {
    this.#options = options;
    this.#engine = engine;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#metrics = new WorkerMetrics(engine, () => this.#plan);
    this.#host = new StageHost(engine, options.threads, (stage) =>
      followWeightCache(stage, options.log, this.#metrics),
    );
    this.#server = new WorkerServer((call) =>
      acceptLink(call, () => ({ plan: this.#plan, newest: this.#gate.newest })),
    );
    this.#probe = this.#createProbe();
    this.#control = new Control({
      coordinator: options.coordinator,
      insecureWorkers: options.insecureWorkers,
      log: options.log,
      register: () => this.#register(),
      heartbeat: () => this.#heartbeat(),
      onWelcome: (term) => this.#onWelcome(term),
      onAssign: (assign) => this.#onAssign(assign),
      onRelease: ({ epoch, reason }) => this.#onRelease(epoch, reason),
      onRefused: (code, message) => void this.#end(1, `refused by the coordinator: ${code}: ${message}`),
    });
  }

  async start(): Promise<void> {
    const { listen, advertise } = this.#options;
    requireTrustedAddress(listen, this.#options);
    requireAdvertisable(listen, advertise, { listen: "--listen", advertise: "--advertise" });
    this.address = await this.#server.listen(listen, this.#options);
    try {
      this.probeAddress = (await this.#probe?.listen()) ?? null;
    } catch (error) {
      await this.#server.close();
      throw error;
    }
    void this.#control.run();
  }

  async close(reason: string): Promise<void> {
    await this.#end(0, reason);
  }

  hurry(): void {
    this.#hurried = true;
  }

  #createProbe(): Probe | null {
    const { probePort, probeHost } = this.#options;
    if (probePort === undefined) return null;
    this.#metrics.addProcessMetrics();
    return new Probe({
      host: probeHost,
      port: probePort,
      metrics: this.#metrics,
      notReady: () => {
        if (this.#closing) return "draining";
        if (!this.#control.joined) return "no session with the coordinator";
        return this.#linked ? null : "not linked";
      },
    });
  }

  #register(): Register {
    const { id, memoryBytes, threads } = this.#options;
    const { kernels, backend, canonVersion } = this.#engine;
    return {
      protocolVersion,
      softwareVersion,
      worker: id,
      incarnation: this.#incarnation,
      dataAddress: advertisedAddress(this.address, this.#options.advertise),
      memoryBytes,
      threads,
      kernels,
      backend,
      canonVersion,
      highestTerm: this.#gate.highestTerm,
      pid: process.pid,
      probeAddress: this.probeAddress ?? "",
    };
  }

  #heartbeat(): Heartbeat {
    return {
      progress: this.#host.progress,
      busy: this.#host.busy,
      steps: this.#host.steps,
      busyUs: this.#host.busyUs,
      idleUs: this.#metrics.idleUs,
      residentBytes: process.memoryUsage.rss(),
      receivedBytes: this.#metrics.receivedBytes,
      staleMessages: this.#metrics.staleMessages,
      loadedBytes: this.#host.loading?.loadedBytes ?? 0,
      loadBytes: this.#host.loading?.totalBytes ?? 0,
    };
  }

  /** A new session: the coordinator knows nothing of what went on before it. */
  #onWelcome(term: number): boolean {
    if (!this.#gate.admitTerm(term)) {
      this.#dropStale("welcome", `term ${term}`);
      return false;
    }
    this.#replacePlan(null);
    return true;
  }

  #onAssign(assign: Assign__Output): void {
    const epoch = assign.epoch ?? { term: 0, plan: 0 };
    if (this.#closing) return;
    if (!this.#gate.admitAssign(epoch)) {
      this.#dropStale("assign", `epoch ${formatEpoch(epoch)}`);
      return;
    }
    this.#replacePlan(null);
    try {
      const plan = decodeAssign(assign);
      this.#options.log.info({ ...plan, epoch: formatEpoch(epoch) }, "assigned");
      this.#replacePlan(this.#planRun(plan));
    } catch (error) {
      const { message: detail, code: errorCode } = toRelayError(error);
      this.#control.report({ epoch, phase: "FAILED", detail, errorCode });
    }
  }

  #onRelease(released: Epoch | null, reason: string): void {
    const epoch = released ?? { term: 0, plan: 0 };
    if (!this.#gate.admitRelease(epoch)) {
      this.#dropStale("release", `epoch ${formatEpoch(epoch)}`);
      return;
    }
    this.#options.log.info({ epoch: formatEpoch(epoch), reason }, "released");
    this.#replacePlan(null);
  }

  #planRun(plan: ReturnType<typeof decodeAssign>): PlanRun {
    return new PlanRun(plan, {
      host: this.#host,
      metrics: this.#metrics,
      trust: { insecureWorkers: this.#options.insecureWorkers },
      log: this.#options.log,
      report: (state) => this.#report(state),
      rounded: (roundings) => this.#options.onRounded?.(roundings),
      linkedChanged: (linked) => this.#setLinked(linked),
    });
  }

  #replacePlan(next: PlanRun | null): void {
    this.#plan?.end();
    this.#plan = next;
    next?.start();
  }

  #setLinked(linked: boolean): void {
    if (this.#closing && linked) return;
    this.#linked = linked;
    this.#server.setServing(linked);
  }

  #dropStale(message: StaleMessage, what: string): void {
    this.#metrics.stale(message);
    this.#options.log.warn({ message, what, highestTerm: this.#gate.highestTerm }, "stale message dropped");
  }

  /** Once the device is lost, another process may be able to use it: whoever supervises this one starts it. */
  #report(state: StageState): void {
    this.#control.report(state);
    const { deviceLost } = this.#host;
    if (deviceLost === null) return;
    this.hurry();
    void this.#end(1, `the device is lost to this process: ${deviceLost.message}`);
  }

  /** While this plan of ours has work, and the coordinator has not ended it. */
  async #drain(limitMs: number): Promise<void> {
    const plan = this.#plan;
    const endMs = performance.now() + limitMs;
    let quietSinceMs = performance.now();
    let { steps } = this.#host;
    while (plan !== null && this.#plan === plan && this.#linked && this.#control.joined && !this.#hurried) {
      const nowMs = performance.now();
      if (this.#host.busy || this.#host.steps !== steps) quietSinceMs = nowMs;
      steps = this.#host.steps;
      if (nowMs >= endMs || nowMs - quietSinceMs >= drainQuietMs) return;
      await new Promise((resolve) => setTimeout(resolve, drainPollMs));
    }
  }

  /** Out of rotation first, then goodbye, then the running step, then the doors. */
  async #end(code: number, reason: string): Promise<void> {
    if (this.#closing) {
      await this.closed;
      return;
    }
    this.#closing = true;
    this.#server.setServing(false);
    await this.#drain((this.#options.drainTimeout ?? 0) * 1_000);
    const leaving = this.#control.leave(reason);
    const plan = this.#plan;
    if (plan !== null) {
      await within(stepDrainMs, plan.drain());
      plan.leave(reason);
    }
    await leaving;
    await Promise.all([this.#server.close(), this.#probe?.close(), within(stageCloseMs, this.#host.close())]);
    this.#options.log.info({ reason }, "worker ended");
    this.#resolveClosed({ code, reason });
  }
}

/** Waits for the work, but not longer; what it comes to does not matter any more. */
async function within(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([work.catch(() => undefined), timeout]);
  clearTimeout(timer);
}
