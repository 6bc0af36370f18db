/**
 * A coordinator's process: the product's core and service, put together as coordinator/coordinator.ts does, with a
 * front in place of the API. It begins with what the ledger holds.
 */
import type { RequestId } from "../../common/ids.js";
import { formatEpoch } from "../../common/ids.js";
import type { Logger } from "../../common/log.js";
import { Core } from "../../coordinator/core.js";
import type { CorePorts } from "../../coordinator/core-ports.js";
import type { ModelInfo, RequestEvent } from "../../coordinator/inference.js";
import { tickMs } from "../../coordinator/membership/leases.js";
import type { PromptService } from "../../coordinator/prompt/service.js";
import type { LedgerEntry } from "../../coordinator/queue/queue.js";
import { Service } from "../../coordinator/service.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import type { Random } from "../random.js";
import { AnswerCheck, type Answers } from "./answers.js";
import { SimCoordinatorLinks } from "./coordinator-links.js";
import { Front } from "./front.js";
import { layerCount, stopToken, textOf, vocabulary } from "./model.js";
import type { Endpoint, Network } from "./network.js";
import { Process } from "./process.js";
import { SimQueue } from "./queue.js";
import type { SimRedis } from "./redis.js";
import type { Scenario } from "./scenario.js";
import { StepWatch } from "./step-watch.js";
import { controlAddress } from "./worker.js";
import type { World } from "./world.js";

const MB = 1_000_000;
/** Of the results, those that may come once more when their epoch is over, and how many of them at most. */
const keptResults = 0.1;
const maxOldResults = 16;

export interface CoordinatorContext {
  world: World;
  network: Network;
  redis: SimRedis;
  random: Random;
  scenario: Scenario;
  answers: Answers;
  /** Who gave out which epoch. */
  owners: Map<string, Process>;
}

export class SimCoordinator {
  readonly process: Process;
  readonly name: string;
  readonly #context: CoordinatorContext;
  readonly #queue: SimQueue;
  readonly #connections = new Map<number, Endpoint>();
  readonly #watches = new Map<number, StepWatch>();
  readonly #checks = new Map<RequestId, AnswerCheck>();
  readonly #ended = new Set<RequestId>();
  /** Of each request that the core has taken in, the choices that have not ended. */
  readonly #open = new Map<RequestId, number>();
  readonly #oldResults: StepResult__Output[] = [];
  #nextConnection = 1;
  #emitted = 0;
  #parts: { core: Core; service: Service } | null = null;

  constructor(context: CoordinatorContext, name: string) {
    this.#context = context;
    this.name = name;
    this.process = new Process(context.world, name);
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

  /** Something of an epoch that is over comes after all, as over a stream that was overtaken by another one. */
  deliverOldResult(): void {
    this.process.run(() => {
      const core = this.core;
      if (core === null) return;
      const held = () => core.membership.planViews().map(({ epoch }) => epoch && formatEpoch(epoch));
      const before = held();
      const over = this.#oldResults.filter(({ epoch }) => !before.includes(formatEpoch(epoch!)));
      if (over.length === 0) return;
      const result = this.#context.random.pick(over);
      const { world } = this.#context;
      world.count("results of old epochs");
      const emitted = this.#emitted;
      core.stepResult(result);
      if (this.#emitted === emitted && held().every((epoch, index) => epoch === before[index])) return;
      const message = `${this.name}: step ${result.step} of epoch ${formatEpoch(result.epoch!)}`;
      world.violate("an old epoch changes nothing", message);
    });
  }

  /** No plan ends because somebody said what cannot be: all workers are right. */
  checkReasons(): void {
    const reasons = this.core?.view().counters.placementsByReason ?? {};
    for (const code of ["corrupt_message", "internal", "stage_failed"]) {
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
    this.#requireNothingLost(left, sinceMs);
    world.trace.note(this.name, `begins with term ${term} and ${left.length} requests of the ledger`);
    const linkAddress = `links:${this.name}`;
    const links: SimCoordinatorLinks = new SimCoordinatorLinks(process, network, linkAddress, {
      opened: (epoch) => core.membership.resultLinkOpened(epoch),
      result: (result) => {
        this.#noteResult(result);
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
        if (message.assign != null) this.#requireOwner(formatEpoch(message.assign.epoch as never));
        this.#connections.get(connection)?.send(message);
      },
      disconnect: (connection) => {
        this.#connections.get(connection)?.close({ code: 1, details: "ended by the coordinator" });
        this.#connections.delete(connection);
      },
      planMade: (pipeline, epoch) => {
        world.count("plans");
        this.#watches.set(pipeline, new StepWatch(world, epoch, this.#context.scenario.prefixLength));
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
        this.#noteStep(header);
        links.send(header);
      },
      emit: (id, event) => {
        this.#noteEvent(id, event);
        service().emit(id, event);
      },
      ended: (id) => {
        this.#noteEnd(id);
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
          this.#noteAdmitted(fields!["completionId"] as RequestId, Number(fields!["choices"]));
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

  #requireOwner(epoch: string): void {
    const { owners, world } = this.#context;
    const owner = owners.get(epoch);
    owners.set(epoch, this.process);
    // One that is dead, and that neither Redis nor a worker remembers, is nobody's leader.
    if (owner === undefined || owner === this.process || !owner.alive) return;
    world.violate("one owner per epoch", `${this.name} gives out epoch ${epoch}, as ${owner.name} does`);
  }

  #noteStep(header: StepHeader): void {
    const { world } = this.#context;
    this.#watches.get(header.pipeline!)?.sent(header);
    world.count("steps");
    world.count("copies", header.copies?.length ?? 0);
    if (header.slice != null) world.count("slices");
    for (const { draftRows = 0 } of header.sequences ?? []) if (draftRows > 0) world.count("drafts");
  }

  #noteResult(result: StepResult__Output): void {
    this.#watches.get(result.pipeline)?.finished(result.step);
    if (this.#context.random.chance(keptResults)) {
      this.#oldResults.push(result);
      if (this.#oldResults.length > maxOldResults) this.#oldResults.shift();
    }
    for (const { drawn } of result.sequences) {
      if (drawn.length > 1) this.#context.world.count("guessed tokens", drawn.length - 1);
    }
  }

  #noteEvent(id: RequestId, event: RequestEvent): void {
    const { world, answers } = this.#context;
    this.#emitted++;
    const attempt = answers.get(id);
    if (attempt === undefined) return;
    let check = this.#checks.get(id);
    if (check === undefined) {
      check = new AnswerCheck(attempt.expected);
      this.#checks.set(id, check);
    }
    if (event.type === "finish") this.#open.set(id, (this.#open.get(id) ?? 1) - 1);
    if (event.type === "finish" || event.type === "error") {
      const code = event.type === "error" ? ` ${event.error.code}` : "";
      world.trace.note(this.name, `${id}: ${event.type}${code}`);
    }
    if (attempt.leftAt === this.name) {
      world.violate("nobody computes for those who left", `${this.name}: ${event.type} of ${id}`);
    }
    const wrong = check.take(event);
    if (wrong !== null) world.violate(wrong.invariant, `${this.name}, ${id}: ${wrong.message}`);
  }

  #noteAdmitted(id: RequestId, choices: number): void {
    const { world, answers, scenario } = this.#context;
    if (answers.get(id) === undefined) return;
    this.#open.set(id, choices);
    const open = [...this.#open.values()].reduce((sum, count) => sum + count, 0);
    if (open <= scenario.queueLimit) return;
    world.violate("the queue limit holds", `${this.name}: ${open} sequences of ${scenario.queueLimit}`);
  }

  #noteEnd(id: RequestId): void {
    const { world, answers } = this.#context;
    const attempt = answers.get(id);
    if (attempt === undefined) return;
    attempt.ended = true;
    this.#open.delete(id);
    if (this.#ended.has(id)) world.violate("a request ends exactly once", `${this.name}: ${id} ended twice`);
    this.#ended.add(id);
  }

  /** What a coordinator that is dead had accepted and not ended stands in the ledger, or still in the queue. */
  #requireNothingLost(left: readonly LedgerEntry[], sinceMs: number): void {
    const { answers, redis, world } = this.#context;
    const there = new Set(left.map(({ request }) => request.id));
    for (const { request, accepted, ended } of answers.attempts()) {
      // By one that lives beside this one, while this one was reading.
      if (accepted !== null && accepted.atMs >= sinceMs) continue;
      if (accepted === null || ended || there.has(request.id)) continue;
      // It was ended then; a reader that is slow may not have come so far as to see it.
      if ((request.deadlineMs ?? Number.POSITIVE_INFINITY) <= this.process.timers.timeOfDayMs()) continue;
      // Redis and the coordinator together may lose what is young; one of them alone must not.
      if (redis.tailLostAtMs >= accepted.atMs) continue;
      if (redis.get(`sim:job:${request.id}`) !== undefined) continue;
      world.violate("nothing accepted is lost", `${this.name} does not find ${request.id}`);
    }
  }

  #logger(): Logger {
    const { trace } = this.#context.world;
    const note = (_fields: unknown, message?: string) => trace.note(this.name, message ?? String(_fields));
    const silent = () => {};
    return { debug: silent, info: note, warn: note, error: note } as unknown as Logger;
  }
}
