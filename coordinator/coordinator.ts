/**
 * The live coordinator: gives the core its clock, sockets, queue and store, and serves the API.
 * Everything that decides is in the core; everything here moves bytes.
 */
import { Server } from "@grpc/grpc-js";
import { Registry } from "prom-client";
import type { Model, OpenOptions } from "../checkpoint/index.js";
import { overridesText } from "../checkpoint/overrides.js";
import { advertisedAddress } from "../common/address.js";
import { systemClock } from "../common/clock.js";
import { RelayError } from "../common/errors.js";
import { logGrpcTo, serverOptions } from "../common/grpc.js";
import type { Logger } from "../common/log.js";
import { Probe } from "../common/probe.js";
import type { WorkerTrust } from "../common/tls.js";
import { formatName, type KvType, type Precision, type Quantization } from "../models/quantization.js";
import type { DType } from "../models/shape.js";
import { internalProto } from "../proto/load.js";
import { ApiKeys } from "./api/keys.js";
import { type Api, createApi } from "./api/server.js";
import { openBatches } from "./batches/open.js";
import { Core, queueLimit } from "./core.js";
import { openData } from "./files/open.js";
import type { ModelInfo } from "./inference.js";
import { tickMs } from "./membership/leases.js";
import { ControlServer } from "./membership/server.js";
import { openModelInThread } from "./open-model.js";
import { CoordinatorLinks } from "./pipeline/links.js";
import type { LayerRange } from "./placement/cut.js";
import { engineRows, placementModel } from "./placement/model.js";
import { createPromptService } from "./prompt/service.js";
import { BullmqQueue } from "./queue/bullmq-queue.js";
import { blocksFor } from "./scheduler/block-pool.js";
import { Service } from "./service.js";
import {
  requireAllLayers,
  requireAllowedAddresses,
  requireStageCount,
  requireWorkerCount,
} from "./start-checks.js";
import { bindWorkerPort, closeWorkerPort } from "./worker-port.js";

/** KV blocks for more full-length sequences than this are not planned, however much memory is offered. */
const maxFullSequences = 64;
/** Prompt tokens of one sequence in one step: long prompts leave room for others' decodes in between. */
const defaultPrefillChunk = 256;
/** Five tokens a second are read without effort; far slower machines still get a block per step. */
const defaultItlTargetMs = 200;
export const defaultRecoveryTimeoutS = 600;
/** What runs at shutdown may finish within this. */
export const defaultDrainTimeoutS = 30;
const drainPollMs = 20;
/** For the errors of what is left to be written down. */
const settleLimitMs = 500;

export type SpeculationMode = "auto" | "off";

export interface CoordinatorOptions extends OpenOptions, WorkerTrust {
  /** Model directory. */
  model: string;
  stages: number;
  /** Each of them holds the model once, in so many stages; default 1. */
  pipelines?: number;
  /** Layers of each stage, one range per stage without gaps from 0 on; absent: placement decides. */
  layers?: readonly LayerRange[];
  host: string;
  /** 0 picks a free one. */
  port: number;
  /** Of the gRPC API on the same host; 0 picks a free one, absent: none. */
  grpcPort?: number;
  /** host:port for workers. */
  clusterListen: string;
  /** host:port that workers dial, port 0 the bound one; absent: where it listens. */
  clusterAdvertise?: string | undefined;
  /** File with the keys that callers of the API must have; absent: none is asked for. */
  apiKeysFile?: string | undefined;
  /** Serve an API without keys beyond loopback, too. */
  insecureNoAuth?: boolean | undefined;
  redis: string;
  /** Namespace of this cluster's keys in Redis. */
  name: string;
  dtype?: DType;
  /** Default: dtype. */
  kvType?: KvType;
  quantization: Quantization;
  /** Micro-batches in flight in each pipeline; default: by what is measured. */
  microBatches?: number;
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs?: number;
  /** Prompt tokens of one sequence in one step. */
  prefillChunk?: number;
  /** Decodes carry drafts where that pays, or never; default auto. */
  speculation?: SpeculationMode;
  /** Seconds that interrupted requests wait for the next pipeline. */
  recoveryTimeoutS?: number;
  /** Directory of files and batches, for one coordinator alone; absent: neither is offered. */
  data?: string;
  /** Of it: see DataOptions. */
  diskReserve?: number;
  filesDays?: number;
  filesBytes?: number;
  /** Seconds for what runs to finish when the coordinator is closed; default defaultDrainTimeoutS. */
  drainTimeout?: number | undefined;
  /** Plain HTTP for /livez, /readyz, /metrics; absent: none. 0 takes a free one. */
  probePort?: number;
  /** Default 127.0.0.1. */
  probeHost?: string | undefined;
  log: Logger;
}

export interface RunningCoordinator {
  url: string;
  /** host:port of the gRPC API; null without it. */
  grpcAddress: string | null;
  clusterAddress: string;
  /** host:port of the probes; null without them. */
  probeAddress: string | null;
  /** Resolves when a token has travelled through all stages for the first time. */
  ready: Promise<void>;
  closed: Promise<{ code: number; reason: string }>;
  /** Refuses new requests, finishes what runs within drainTimeout, ends the rest with an error. */
  close(reason: string): Promise<void>;
  /** Ends the waiting of close. */
  hurry(): void;
}

/** @throws RelayError for a bad model, more stages than layers, Redis away or unfit, an address that may not be used. */
export async function startCoordinator(options: CoordinatorOptions): Promise<RunningCoordinator> {
  const { log } = options;
  logGrpcTo(log);
  const undo: (() => Promise<unknown>)[] = [];
  try {
    const keys = options.apiKeysFile === undefined ? null : await ApiKeys.open(options.apiKeysFile, log);
    undo.push(async () => keys?.close());
    requireAllowedAddresses(options, keys !== null);
    const registry = new Registry();
    let api: Api | null = null;
    // First of all: the process lives, and says that it is not ready, while it reads the model.
    const probe = createProbe(options, registry, {
      api: () => api,
      notReady: () => (api === null ? "starting" : (service.notReady()?.message ?? null)),
    });
    const probeAddress = (await probe?.listen()) ?? null;
    undo.push(async () => probe?.close());
    // Before anything that another coordinator on the same directory would notice.
    const data = options.data === undefined ? null : await openData({ ...options, data: options.data }, log);
    undo.push(async () => data?.close());
    const model = await openModelInThread(options.model, {
      overrides: options.overrides,
      prefixEncoder: options.prefixEncoder,
    });
    for (const warning of model.warnings) log.warn(warning);
    requireStageCount(options.stages, model.shape.layerCount);
    requireAllLayers(options.layers, model.shape.layerCount);
    requireWorkerCount(options.pipelines ?? 1, options.stages);
    const dtype = options.dtype ?? model.dtype;
    const precision: Precision = { ...options.quantization, dtype, kvType: options.kvType ?? dtype };
    const queue = await BullmqQueue.open(options.redis, options.name, log, registry);
    undo.push(() => queue.close());
    const prompt = await createPromptService(model.directory, model.card);
    undo.push(() => prompt.close());
    const term = await queue.nextTerm();
    const left = await queue.ledger.read(model.shape.tokenCount);

    const recoveryTimeoutMs = (options.recoveryTimeoutS ?? defaultRecoveryTimeoutS) * 1_000;
    let clusterAddress = options.clusterListen;
    let becameReady: () => void = () => {};
    const ready = new Promise<void>((resolve) => {
      becameReady = resolve;
    });

    const control = new ControlServer(
      {
        message: (connection, message) => core.membership.message(connection, message),
        gone: (connection, reason) => core.membership.gone(connection, reason),
      },
      log,
    );
    const { insecureWorkers } = options;
    const links = new CoordinatorLinks(
      {
        opened: (epoch) => core.membership.resultLinkOpened(epoch),
        result: (result) => core.stepResult(result),
        broken: (epoch, error, stage) => core.membership.linkBroken(epoch, error, stage),
      },
      { insecureWorkers },
    );
    const core: Core = new Core(
      {
        queueLimit,
        microBatches: options.microBatches ?? null,
        prefillChunk: options.prefillChunk ?? defaultPrefillChunk,
        speculation: options.speculation !== "off",
        itlTargetMs: options.itlTargetMs ?? defaultItlTargetMs,
        recoveryTimeoutMs,
        prefixLength: model.prefixLength,
        modelStopTokens: new Set(model.stopTokens),
        createDetokenizer: (text) => prompt.createDetokenizer(text),
        membership: {
          pipelineCount: options.pipelines ?? 1,
          stageCount: options.stages,
          cut: options.layers,
          modelDirectory: model.directory,
          configOverrides: overridesText(options.overrides),
          prefixEncoder: options.prefixEncoder ?? "",
          fingerprint: model.fingerprint,
          precision,
          maxRows: engineRows(model),
          placementModel: placementModel(model, precision, engineRows(model)),
          maxBlocks: maxFullSequences * blocksFor(model.prefixLength + model.contextLength),
          clusterAddress: () => clusterAddress,
          term,
        },
      },
      {
        send: (connection, message) => control.send(connection, message),
        disconnect: (connection) => control.disconnect(connection),
        planMade: (pipeline, epoch) => links.begin(pipeline, epoch),
        openResultLink: (pipeline, epoch, address, stageCount) =>
          links.dialLast(pipeline, epoch, address, stageCount),
        planOver: (pipeline) => links.end(pipeline),
        termRaised: (raised) => queue.raiseTerm(raised),
        sendStep: (header) => links.send(header),
        emit: (id, event) => service.emit(id, event),
        ended: (id) => service.ended(id),
        stepFinished: (rows) => service.stepFinished(rows),
        readyChanged: (isReady) => {
          service.readinessChanged();
          if (isReady) becameReady();
        },
        recovered: (reason, afterMs) => {
          log.info({ reason, ms: Math.round(afterMs) }, "serving again");
          service.recovered(reason, afterMs / 1_000);
        },
        log: (level, message, fields) => log[level](fields ?? {}, message),
      },
      systemClock,
    );
    const service = new Service(
      {
        model: modelInfo(model),
        precision,
        numericsId: () => numericsId(core, model, precision),
        term,
        recoveryTimeoutMs,
        probeAddress,
        grpcAddress: () => api?.grpcAddress ?? null,
      },
      prompt,
      queue,
      () => core,
      log,
    );

    const grpc = new Server(serverOptions);
    grpc.addService(internalProto.Membership.service, control.handlers);
    grpc.addService(internalProto.Link.service, links.handlers);
    const bound = await bindWorkerPort(grpc, options.clusterListen, { insecureWorkers });
    clusterAddress = advertisedAddress(bound, options.clusterAdvertise);
    undo.push(() => closeWorkerPort(grpc));
    log.info({ address: bound, advertised: clusterAddress, probes: probeAddress }, "waiting for workers");

    // It may have forgotten its last second, and would give the same number to the next process.
    queue.onUpChange((up) => {
      if (up) queue.raiseTerm(core.membership.term);
    });
    const ticker = setInterval(() => core.tick(), tickMs);
    undo.push(async () => clearInterval(ticker));
    service.restore(left);
    await queue.start((request) => service.admit(request));
    const { host, port, grpcPort } = options;
    const batches =
      data === null ? null : await openBatches({ ...options, data, model: service.model.id, term, registry });
    undo.push(async () => batches?.close());
    const offered = {
      files: data?.files ?? null,
      batches: batches?.service ?? null,
      webhookHosts: batches?.webhookHosts,
    };
    const served = await createApi(service, { host, port, grpcPort, keys, log, registry, ...offered }).catch(
      (error) => {
        if (error instanceof RelayError) throw error;
        throw new RelayError("invalid_configuration", `cannot serve on ${host}:${port}: ${reasonOf(error)}`, {
          cause: error,
        });
      },
    );
    api = served;
    log.info({ url: served.address, grpc: served.grpcAddress }, "serving the API");
    undo.push(() => served.close());
    batches?.start(served.lines);

    let resolveClosed: (end: { code: number; reason: string }) => void = () => {};
    const closed = new Promise<{ code: number; reason: string }>((resolve) => {
      resolveClosed = resolve;
    });
    let closing: Promise<void> | null = null;
    const hurried = new AbortController();
    const drainLimitMs = (options.drainTimeout ?? defaultDrainTimeoutS) * 1_000;
    const close = async (reason: string): Promise<void> => {
      log.info({ reason, pending: service.pendingCount }, "draining");
      service.drain();
      batches?.drain();
      await noneLeft(service, drainLimitMs, hurried.signal);
      service.close(new RelayError("draining", "the server shut down before the answer was complete"));
      await noneLeft(service, settleLimitMs);
      await batches?.close();
      await served.close();
      core.membership.shutDown();
      control.close();
      clearInterval(ticker);
      await closeWorkerPort(grpc);
      await queue.close();
      await prompt.close();
      await data?.close();
      keys?.close();
      await probe?.close();
      resolveClosed({ code: 0, reason });
    };
    return {
      url: served.address,
      grpcAddress: served.grpcAddress,
      clusterAddress,
      probeAddress,
      ready,
      closed,
      close: (reason) => {
        closing ??= close(reason);
        return closing;
      },
      hurry: () => hurried.abort(),
    };
  } catch (error) {
    for (const step of undo.reverse()) await step().catch(() => {});
    throw error;
  }
}

/** Waits until no request is left, but no longer than the limit, nor once somebody hurries. */
async function noneLeft(service: Service, limitMs: number, hurried?: AbortSignal): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (service.pendingCount > 0 && performance.now() < deadline && hurried?.aborted !== true) {
    await new Promise((resolve) => setTimeout(resolve, drainPollMs));
  }
}

/** Until the API is there the page holds what is counted so far. */
function createProbe(
  { probePort: port, probeHost: host }: Pick<CoordinatorOptions, "probePort" | "probeHost">,
  registry: Registry,
  state: { api(): Api | null; notReady(): string | null },
): Probe | null {
  if (port === undefined) return null;
  const metrics = {
    contentType: registry.contentType,
    scrape: () => state.api()?.metrics() ?? registry.metrics(),
  };
  return new Probe({ host, port, metrics, notReady: state.notReady });
}

function modelInfo(model: Model): ModelInfo {
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  return {
    id: model.id,
    createdS: Math.floor(Date.now() / 1000),
    contextLength: model.contextLength,
    vocabSize: model.shape.vocabSize,
    tokenCount: model.shape.tokenCount,
    hiddenSize: model.shape.hiddenSize,
    parameterCount: model.parameterCount,
    weightBytes: sum(model.layerBytes) + model.embeddingBytes + model.headBytes,
    defaults: model.sampling,
    prefixModel: model.prefixModel,
  };
}

function reasonOf(error: unknown): string {
  if ((error as NodeJS.ErrnoException).code === "EADDRINUSE") return "another process uses this port";
  return error instanceof Error ? error.message : String(error);
}

/** Everything on which the tokens of a response depend beside the request itself (DESIGN.md). */
function numericsId(core: Core, model: Model, precision: Precision): string | null {
  const numerics = core.membership.numerics();
  if (numerics === null) return null;
  const { dtype, kvType, weights, head } = precision;
  return [
    numerics.backend,
    `canon${numerics.canonVersion}`,
    dtype,
    `kv-${kvType}`,
    `weights-${formatName(weights)}`,
    `head-${formatName(head)}`,
    model.fingerprint.slice(0, 16),
  ].join("/");
}
