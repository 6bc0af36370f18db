/**
 * Workers that compute nothing, for tests of the coordinator's core: a clock that stands until told
 * to move, and a "model" whose next token is a fixed function of the tokens before it.
 */
import { bytesFromInt32, int32FromBytes } from "../../common/bytes.js";
import { RelayError } from "../../common/errors.js";
import type { Epoch, RequestId } from "../../common/ids.js";
import { requestId } from "../../common/ids.js";
import { kvBlockSize } from "../../common/limits.js";
import { protocolVersion } from "../../common/package.js";
import { Core } from "../../coordinator/core.js";
import type { CorePorts } from "../../coordinator/core-ports.js";
import type { GenerationRequest, RequestEvent, SamplingParams } from "../../coordinator/inference.js";
import type { LayerRange } from "../../coordinator/placement/cut.js";
import { defaultTenant } from "../../coordinator/request-class.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { SequenceRows } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";

const MB = 1_000_000;
const fakeLayers = 4;
export const stopToken = 9;

/** What is drawn after some tokens. */
export type FakeModel = (tokens: readonly number[]) => number;

/** Next token of the fake model: the sum of all before it, modulo ten. */
export const nextToken = (tokens: readonly number[]): number =>
  tokens.reduce((sum, token) => sum + token, 1) % 10;

export const sampling = (overrides: Partial<SamplingParams> = {}): SamplingParams => ({
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  maxTokens: 8,
  minTokens: 0,
  ignoreEos: true,
  stop: [],
  stopTokenIds: [],
  includeStopInOutput: false,
  topLogprobs: -1,
  promptLogprobs: false,
  ...overrides,
});

export const generation = (
  id: string,
  promptTokens: number[],
  overrides: Partial<SamplingParams> = {},
): GenerationRequest => ({
  id: requestId(id),
  logId: `log-${id}`,
  endpoint: "completions",
  tenant: defaultTenant,
  class: "interactive",
  choices: [{ promptTokens, seed: "1" }],
  sampling: sampling(overrides),
  text: { skipSpecialTokens: true, chatReply: false },
});

export interface FakeClusterOptions {
  pipelineCount?: number;
  /** Of each pipeline. */
  stageCount?: number;
  cut?: readonly LayerRange[];
  maxBlocks?: number;
  prefillChunk?: number;
  recoveryTimeoutMs?: number;
  microBatches?: number;
  itlTargetMs?: number;
  workerMemoryMB?: number;
  prefixLength?: number;
  queueLimit?: number;
  speculation?: boolean;
  model?: FakeModel;
}

/** Blocks per sequence, and the token in each of their slots. */
interface FakeCache {
  tables: Map<number, number[]>;
  slots: Map<number, number>;
}

export class FakeCluster {
  nowMs = 0;
  readonly core: Core;
  readonly sent: { connection: number; message: CoordinatorMessage }[] = [];
  /** Steps that wait for an answer. */
  readonly steps: StepHeader[] = [];
  readonly events = new Map<RequestId, RequestEvent[]>();
  readonly ended = new Set<RequestId>();
  /** How often each request was told to have ended. */
  readonly endings = new Map<RequestId, number>();
  /** What left the core, in order: steps, and the types of events. */
  readonly order: string[] = [];
  /** The link to the first stage is found broken when a step is sent. */
  breakLink = false;
  /** Of every token of these pipelines: it is not finite. */
  readonly broken = new Set<number>();
  readonly logged: { level: string; message: string; fields: Record<string, unknown> | undefined }[] = [];
  readonly recoveries: { reason: string; afterMs: number }[] = [];
  private listener: Pick<CorePorts, "emit" | "ended"> | null = null;
  /** What the stages of each pipeline have. */
  private readonly caches = new Map<number, FakeCache>();
  /** Contexts that are read in slices. */
  readonly slices = new FakeSlices();
  readonly pipelineCount: number;
  private readonly prefixLength: number;
  private readonly workerMemoryMB: number;
  readonly stageCount: number;
  private readonly model: FakeModel;

  constructor({
    pipelineCount = 1,
    stageCount = 2,
    cut,
    maxBlocks = 64,
    prefillChunk = 256,
    recoveryTimeoutMs = 600_000,
    microBatches,
    itlTargetMs = 200,
    prefixLength = 0,
    queueLimit = 10_000,
    workerMemoryMB = 100,
    speculation = false,
    model = nextToken,
  }: FakeClusterOptions = {}) {
    this.pipelineCount = pipelineCount;
    this.stageCount = stageCount;
    this.model = model;
    this.prefixLength = prefixLength;
    this.workerMemoryMB = workerMemoryMB;
    const ports: CorePorts = {
      send: (connection, message) => this.sent.push({ connection, message }),
      disconnect: () => {},
      planMade: (pipeline) => {
        const others = this.steps.filter((step) => step.pipeline !== pipeline);
        this.steps.splice(0, this.steps.length, ...others);
        this.slices.clear(pipeline);
        this.caches.set(pipeline, { tables: new Map(), slots: new Map() });
      },
      openResultLink: (_pipeline, epoch) => this.core.membership.resultLinkOpened(epoch),
      planOver: () => {},
      termRaised: () => {},
      sendStep: (header) => {
        this.order.push("step");
        if (this.breakLink) {
          const broken = new RelayError("worker_lost", "stage 0 left");
          this.core.membership.linkBroken(this.core.membership.epoch!, broken, 0);
        } else this.steps.push(header);
      },
      emit: (id, event) => {
        this.order.push(event.type);
        const list = this.events.get(id) ?? [];
        this.events.set(id, [...list, event]);
        this.listener?.emit(id, event);
      },
      ended: (id) => {
        this.ended.add(id);
        this.endings.set(id, (this.endings.get(id) ?? 0) + 1);
        this.listener?.ended(id);
      },
      stepFinished: () => {},
      readyChanged: () => {},
      recovered: (reason, afterMs) => this.recoveries.push({ reason, afterMs }),
      log: (level, message, fields) => this.logged.push({ level, message, fields }),
    };
    this.core = new Core(
      {
        queueLimit,
        microBatches: microBatches ?? null,
        itlTargetMs,
        speculation,
        prefixLength,
        prefillChunk,
        recoveryTimeoutMs,
        modelStopTokens: new Set([stopToken]),
        createDetokenizer: () => ({ push: (token) => `${token}`, flush: () => "" }),
        membership: {
          pipelineCount,
          stageCount,
          cut,
          modelDirectory: "/model",
          configOverrides: '{"seq_length":64}',
          prefixEncoder: "/prefix",
          fingerprint: "f",
          precision: { dtype: "float32", kvType: "float32", weights: null, head: null },
          placementModel: {
            layerBytes: Array.from({ length: fakeLayers }, () => MB),
            embeddingBytes: MB,
            headBytes: MB,
            layerKvBytesPerToken: 100,
            workspace: { stage: MB, perThread: 0, first: 0, last: MB, lastPerThread: 0 },
            processBytes: 0,
          },
          maxRows: 512,
          maxBlocks,
          clusterAddress: () => "127.0.0.1:1",
          term: 5,
        },
      },
      ports,
      { nowMs: () => this.nowMs },
    );
  }

  /** Who is told of requests beside the test. */
  listen(listener: Pick<CorePorts, "emit" | "ended">): void {
    this.listener = listener;
  }

  join(connection: number, overrides: Partial<NonNullable<WorkerMessage__Output["register"]>> = {}): void {
    this.core.membership.message(connection, {
      message: "register",
      register: {
        protocolVersion,
        softwareVersion: "0",
        worker: `worker-${connection}`,
        incarnation: "i",
        dataAddress: `127.0.0.1:${1000 + connection}`,
        memoryBytes: this.workerMemoryMB * MB,
        threads: 1,
        kernels: "scalar",
        backend: "cpu",
        canonVersion: 1,
        highestTerm: 0,
        pid: connection,
        probeAddress: "",
        ...overrides,
      },
    });
  }

  report(connection: number, epoch: Epoch, phase: "LOADED" | "LINKED" | "FAILED", errorCode = ""): void {
    this.core.membership.message(connection, {
      message: "stageState",
      stageState: {
        epoch,
        phase,
        detail: errorCode,
        errorCode,
        weightBytes: 0,
        kvBytes: 0,
        workspaceBytes: 0,
        weightsFingerprint: "f",
      },
    });
  }

  heartbeat(
    connection: number,
    progress: number,
    busy = false,
    loading = { loadedBytes: 0, loadBytes: 0 },
  ): void {
    this.core.membership.message(connection, {
      message: "heartbeat",
      heartbeat: {
        progress,
        busy,
        steps: 0,
        busyUs: 0,
        residentBytes: 0,
        receivedBytes: 0,
        staleMessages: 0,
        ...loading,
        idleUs: 0,
      },
    });
  }

  /** Joins all workers, links them and answers the warm-ups. */
  start(): Epoch {
    const workers = this.pipelineCount * this.stageCount;
    for (let connection = 1; connection <= workers; connection++) this.join(connection);
    return this.link();
  }

  /** Answers the assignments of all plans that are being formed, and then every step. @returns the newest epoch. */
  link(): Epoch {
    this.linkOnly();
    this.answerAll();
    return this.core.membership.epoch!;
  }

  /** The same without the steps. */
  linkOnly(): void {
    for (const { epoch, phase } of this.core.membership.planViews()) {
      if (phase !== "loading" || epoch === null) continue;
      const assigned = this.sent.flatMap(({ connection, message }) =>
        message.assign != null && message.assign.epoch?.plan === epoch.plan ? [connection] : [],
      );
      for (const connection of assigned) this.report(connection, epoch, "LOADED");
      for (const connection of assigned) this.report(connection, epoch, "LINKED");
    }
  }

  /** Moves time in ticks; every member of `alive` sends idle heartbeats meanwhile. */
  pass(ms: number, alive: number[] = []): void {
    for (const end = this.nowMs + ms; this.nowMs < end; ) {
      this.nowMs += 100;
      if (this.nowMs % 500 === 0) for (const connection of alive) this.heartbeat(connection, this.nowMs);
      this.core.tick();
    }
  }

  /**
   * Answers the oldest step as the last stage would, from what stands in the blocks that it names.
   * @param pipeline Of this pipeline; default: of any.
   */
  answer(pipeline?: number): void {
    const index = this.steps.findIndex((step) => pipeline === undefined || step.pipeline === pipeline);
    const [header] = this.steps.splice(index, 1) as [StepHeader];
    const cache = this.caches.get(header.pipeline!)!;
    const { tables, slots } = cache;
    for (const ended of header.ended ?? []) tables.delete(ended);
    for (const { from, to } of header.copies ?? []) {
      for (let at = 0; at < kvBlockSize; at++) {
        slots.set(to! * kvBlockSize + at, slots.get(from! * kvBlockSize + at)!);
      }
    }
    const sequences = header.sequences!;
    const slice = this.slices.take(header);
    // All rows of a step are stored before any is read.
    for (const rows of slice === null ? sequences : [slice, ...sequences]) {
      const table = [...(tables.get(rows.sequence!) ?? []), ...int32FromBytes(rows.newBlocks as Uint8Array)];
      tables.set(rows.sequence!, table);
      for (const [i, token] of int32FromBytes(rows.tokenIds as Uint8Array).entries()) {
        slots.set(this.slot(table, rows.validLength! + i), token);
      }
    }
    const result: StepResult__Output = {
      epoch: { term: Number(header.epoch!.term), plan: header.epoch!.plan! },
      pipeline: header.pipeline!,
      step: Number(header.step),
      stageUs: this.stageTimes(sequences, header.pipeline!),
      sequences: sequences.map((rows) => {
        const targets = [...int32FromBytes(rows.scoreTargets as Uint8Array)].filter((target) => target >= 0);
        return {
          sequence: rows.sequence!,
          drawn:
            rows.sampling == null
              ? []
              : this.draw(rows, cache).map((token) => this.token(token, !this.broken.has(header.pipeline!))),
          drawnPosition: rows.sampling == null ? 0 : rows.validLength! + rows.rowCount! - rows.draftRows!,
          scores: targets.map((target) => this.token(target)),
        };
      }),
    };
    this.core.stepResult(result);
  }

  /** Row after row from the last decided one on, as long as what was drawn is the next row's token. */
  private draw(rows: SequenceRows, { tables, slots }: FakeCache): number[] {
    const table = tables.get(rows.sequence!)!;
    const end = rows.validLength! + rows.rowCount!;
    const text = Array.from({ length: end }, (_, at) => slots.get(this.slot(table, at))!);
    const drawn: number[] = [];
    for (let length = end - rows.draftRows!; length <= end; length++) {
      drawn.push(this.model(text.slice(0, length)));
      if (drawn.at(-1) !== text[length]) break;
    }
    return drawn;
  }

  private slot(table: readonly number[], position: number): number {
    const at = this.prefixLength + position;
    return table[Math.floor(at / kvBlockSize)]! * kvBlockSize + (at % kvBlockSize);
  }

  /** Nothing takes any time unless a test says what does. */
  stageTimes: (sequences: SequenceRows[], pipeline: number) => number[] = (_, pipeline) =>
    this.core.view().pipelines[pipeline]!.stages.map(() => 0);

  answerAll(): void {
    for (let round = 0; this.steps.length > 0; round++) {
      if (round > 10_000) throw new Error("the core never stops sending steps");
      this.answer();
    }
  }

  tokensOf(id: string): number[] {
    return (this.events.get(requestId(id)) ?? []).flatMap((event) =>
      event.type === "tokens" ? event.tokens : [],
    );
  }

  private token(token: number, finite = true) {
    return {
      token,
      logprob: -token,
      rank: 1,
      topTokens: bytesFromInt32([]),
      topLogprobs: Buffer.alloc(0),
      finite,
    };
  }
}

/** How far contexts have been read, layer by layer, by the header's own word. */
class FakeSlices {
  /** First layer that is not computed yet, by sequence, of each pipeline. */
  private readonly pipelines = new Map<number, Map<number, number>>();
  /** Layers of every slice that was answered. */
  readonly seen: { sequence: number; layerBegin: number; layerEnd: number; others: number }[] = [];

  /** The rows of the header's slice, which goes on where the one before it ended; null without one. */
  take({ pipeline, slice, sequences, ended }: StepHeader): SequenceRows | null {
    const layers = this.pipelines.get(pipeline!)!;
    for (const sequence of ended ?? []) layers.delete(sequence);
    if (slice?.rows != null) {
      const { rows, layerBegin = 0, layerEnd = 0 } = slice;
      const sequence = rows.sequence!;
      if (layerBegin !== (layers.get(sequence) ?? 0) || layerEnd <= layerBegin) {
        throw new Error(`sequence ${sequence}: slice [${layerBegin}, ${layerEnd}) is out of order`);
      }
      layers.set(sequence, layerEnd);
      this.seen.push({ sequence, layerBegin, layerEnd, others: sequences!.length });
    }
    for (const { sequence } of sequences!) {
      const layer = layers.get(sequence!);
      if (layer === undefined || layer === fakeLayers) continue;
      throw new Error(`sequence ${sequence} has rows, but its context is read up to layer ${layer} only`);
    }
    return slice?.rows ?? null;
  }

  /** A plan was made: nothing is computed. */
  clear(pipeline: number): void {
    this.pipelines.set(pipeline, new Map());
  }
}

/** What a fake model answers when undisturbed. */
export function expectedTokens(prompt: readonly number[], count: number, model = nextToken): number[] {
  const tokens = [...prompt];
  for (let n = 0; n < count; n++) tokens.push(model(tokens));
  return tokens.slice(prompt.length);
}
