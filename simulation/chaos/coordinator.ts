/**
 * A coordinator's process: the product's core and service, put together as coordinator/coordinator.ts does, with a
 * front in place of the API. It begins with what the ledger holds.
 */
import { RelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import type { Logger } from "../../common/log.js";
import { Core } from "../../coordinator/core.js";
import type { CorePorts } from "../../coordinator/core-ports.js";
import type { ModelInfo } from "../../coordinator/inference.js";
import { tickMs } from "../../coordinator/membership/leases.js";
import type { PromptService } from "../../coordinator/prompt/service.js";
import { Service } from "../../coordinator/service.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import { SimCoordinatorLinks } from "./coordinator-links.js";
import { type CoordinatorContext, CoreWatch } from "./core-watch.js";
import { Front } from "./front.js";
import { layerCount, stopToken, textOf, vocabulary } from "./model.js";
import type { Endpoint } from "./network.js";
import { Process } from "./process.js";
import { SimQueue } from "./queue.js";
import { controlAddress } from "./worker.js";

const MB = 1_000_000;
/** How long a coordinator that shuts down lets go on what runs (coordinator/coordinator.ts). */
const drainLimitMs = 7_000;
const drainPollMs = 20;
/** Until it is gone: what it has to say is said. */
const goodbyeMs = 100;

export class SimCoordinator {
  readonly process: Process;
  readonly name: string;
  readonly #context: CoordinatorContext;
  readonly #queue: SimQueue;
  readonly #watch: CoreWatch;
  readonly #connections = new Map<number, Endpoint>();
  #nextConnection = 1;
  #isEnding = false;
  #parts: { core: Core; service: Service } | null = null;

  constructor(context: CoordinatorContext, name: string) {
    this.#context = context;
    this.name = name;
    this.process = new Process(context.world, name);
    this.#watch = new CoreWatch(context, this.process);
    this.#queue = new SimQueue(context.world, context.redis, this.process, this.#logger());
    this.#begin().catch((error: unknown) => {
      // As the command does: it ends, and whoever supervises it begins another one.
      context.world.trace.note(name, `cannot begin: ${String(error)}`);
      this.kill(false);
    });
  }

  /** null until it has read the ledger. */
  get core(): Core | null {
    return this.#parts?.core ?? null;
  }

  get service(): Service | null {
    return this.#parts?.service ?? null;
  }

  kill(silently: boolean): void {
    this.process.kill();
    this.#context.network.died(this.process, silently);
  }

  /** As on SIGTERM: nothing new is taken, what runs may end, and the rest is told to come again. */
  shutDown(): void {
    const { process } = this;
    if (this.#parts === null || this.#isEnding) return;
    this.#isEnding = true;
    const { core, service } = this.#parts;
    const untilMs = process.timers.nowMs() + drainLimitMs;
    const poll = () => {
      if (service.pendingCount > 0 && process.timers.nowMs() < untilMs) {
        process.timers.after(drainPollMs, poll);
        return;
      }
      service.close(new RelayError("draining", "the server shut down before the answer was complete"));
      core.membership.shutDown();
      process.timers.after(goodbyeMs, () => this.kill(false));
    };
    process.run(() => {
      service.drain();
      poll();
    });
  }

  /** The queue hands on what it has handed on before, as when the lock of a job has run out. */
  repeatJob(): void {
    this.#queue.repeat(this.#context.random);
  }

  /** Something of an epoch that is over comes after all, as over a stream that was overtaken by another one. */
  deliverOldResult(): void {
    this.process.run(() => {
      const core = this.core;
      if (core === null) return;
      const held = () => core.membership.planViews().map(({ epoch }) => epoch && formatEpoch(epoch));
      const before = held();
      const over = this.#watch.oldResults.filter(({ epoch }) => !before.includes(formatEpoch(epoch!)));
      if (over.length === 0) return;
      const result = this.#context.random.pick(over);
      const { world } = this.#context;
      world.count("results of old epochs");
      const emitted = this.#watch.emitted;
      core.stepResult(result);
      if (this.#watch.emitted === emitted && held().every((epoch, index) => epoch === before[index])) return;
      const message = `${this.name}: step ${result.step} of epoch ${formatEpoch(result.epoch!)}`;
      world.violate("an old epoch changes nothing", message);
    });
  }

  /** No plan ends because somebody said what cannot be: all workers are right. */
  checkReasons(): void {
    const reasons = this.core?.view().counters.placementsByReason ?? {};
    for (const code of ["corrupt_message", "internal"]) {
      if ((reasons[code] ?? 0) === 0) continue;
      this.#context.world.violate(
        "results are what was asked for",
        `${this.name}: a plan ended with ${code}`,
      );
    }
  }

  /** What must be as it was in the beginning when nobody asks for anything. @returns What is not; null when all is. */
  leftOver(): string | null {
    const { core, service } = this;
    if (core === null || service === null) return "the coordinator has not begun";
    if (service.pendingCount > 0) return `${service.pendingCount} requests have not ended`;
    if (core.requestCount > 0) return `the core has ${core.requestCount} requests`;
    const view = core.view();
    if (view.state !== "ready") return `the cluster is ${view.state}: ${view.reason}`;
    return null;
  }

  async #begin(): Promise<void> {
    const { process } = this;
    const { network, scenario, world } = this.#context;
    const term = await this.#queue.nextTerm();
    const sinceMs = world.loop.nowMs();
    const left = await this.#queue.ledger.read(vocabulary);
    this.#watch.requireNothingLost(left, sinceMs);
    world.trace.note(this.name, `begins with term ${term} and ${left.length} requests of the ledger`);
    const linkAddress = `links:${this.name}`;
    const links: SimCoordinatorLinks = new SimCoordinatorLinks(process, network, linkAddress, {
      opened: (epoch) => core.membership.resultLinkOpened(epoch),
      result: (result) => {
        this.#watch.result(result);
        core.stepResult(result);
      },
      broken: (epoch, error, stage) => core.membership.linkBroken(epoch, error, stage),
    });
    const core: Core = new Core(
      {
        queueLimit: scenario.queueLimit,
        microBatches: scenario.microBatches,
        prefillChunk: scenario.prefillChunk,
        speculation: scenario.speculation,
        itlTargetMs: 200,
        recoveryTimeoutMs: scenario.recoveryTimeoutMs,
        prefixLength: scenario.prefixLength,
        modelStopTokens: new Set([stopToken]),
        createDetokenizer: () => ({ push: textOf, flush: () => "" }),
        membership: {
          pipelineCount: scenario.pipelineCount,
          stageCount: scenario.stageCount,
          modelDirectory: "/model",
          configOverrides: "",
          prefixEncoder: "",
          fingerprint: "f",
          precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
          maxRows: 4_096,
          placementModel: {
            layerBytes: Array.from({ length: layerCount }, () => MB),
            embeddingBytes: MB,
            headBytes: MB,
            layerKvBytesPerToken: 1,
            workspace: { stage: MB, perThread: 0, first: 0, last: MB, lastPerThread: 0 },
            processBytes: 0,
          },
          maxBlocks: scenario.maxBlocks,
          clusterAddress: () => linkAddress,
          term,
        },
      },
      this.#ports(links),
      process.timers,
    );
    const service = new Service(
      {
        model: { id: "simulated", contextLength: 1_024, vocabSize: vocabulary } as ModelInfo,
        precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
        numericsId: () => (core.membership.numerics() === null ? null : "simulated/canon1/f"),
        term,
        recoveryTimeoutMs: scenario.recoveryTimeoutMs,
        probeAddress: null,
        grpcAddress: () => null,
      },
      {} as PromptService,
      this.#queue,
      () => core,
      this.#logger(),
      process.timers,
    );
    this.#parts = { core, service };
    network.listen(process, controlAddress, (endpoint) => this.#join(endpoint));
    process.timers.every(tickMs, () => core.tick());
    this.#queue.onUpChange((up) => {
      if (up) this.#queue.raiseTerm(core.membership.term);
    });
    service.restore(left);
    await this.#queue.start((request) => service.admit(request));
    const front = new Front(this.process, service, this.#context, this.name);
    front.open(network);
  }

  #ports(links: SimCoordinatorLinks): CorePorts {
    const { world } = this.#context;
    const service = () => this.#parts!.service;
    return {
      send: (connection, message) => {
        if (message.assign != null) this.#watch.requireOwner(message.assign.epoch as Epoch);
        this.#connections.get(connection)?.send(message);
      },
      disconnect: (connection) => {
        this.#connections.get(connection)?.close({ code: 1, details: "ended by the coordinator" });
        this.#connections.delete(connection);
      },
      planMade: (pipeline, epoch) => {
        world.count("plans");
        this.#watch.planMade(pipeline, epoch);
        links.begin(pipeline, epoch);
      },
      openResultLink: (pipeline, epoch, address, stageCount) =>
        links.dialLast(pipeline, epoch, address, stageCount),
      planOver: (pipeline) => {
        world.count("plans over");
        links.end(pipeline);
      },
      termRaised: (term) => this.#queue.raiseTerm(term),
      sendStep: (header) => {
        this.#watch.step(header);
        links.send(header);
      },
      emit: (id, event) => {
        this.#watch.event(id, event);
        service().emit(id, event);
      },
      ended: (id) => {
        this.#watch.end(id);
        service().ended(id);
      },
      stepFinished: () => {},
      readyChanged: () => service().readinessChanged(),
      recovered: (reason, afterMs) => {
        world.count("recoveries");
        service().recovered(reason, afterMs / 1_000);
      },
      log: (level, message, fields) => {
        if (message === "request admitted") {
          this.#watch.admitted(fields!["completionId"] as RequestId, Number(fields!["choices"]));
        }
        if (level !== "debug") world.trace.note(this.name, message);
      },
    };
  }

  #join(endpoint: Endpoint): void {
    const connection = this.#nextConnection++;
    const membership = this.core!.membership;
    this.#connections.set(connection, endpoint);
    endpoint.onMessage = (message) => membership.message(connection, message as WorkerMessage__Output);
    endpoint.onClose = () => {
      if (this.#connections.delete(connection)) membership.gone(connection, "its control stream ended");
    };
  }

  #logger(): Logger {
    const { trace } = this.#context.world;
    const note = (_fields: unknown, message?: string) => trace.note(this.name, message ?? String(_fields));
    const silent = () => {};
    return { debug: silent, info: note, warn: note, error: note } as unknown as Logger;
  }
}
