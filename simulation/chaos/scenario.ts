/** What a seed stands for: the shape of the cluster, what is asked of it, and which faults there are. */
import type { GenerationRequest, PromptContext } from "../../coordinator/inference.js";
import type { Random } from "../random.js";
import { vocabulary } from "./model.js";
import type { NetworkConditions } from "./network.js";

export const faultKinds = [
  "jitter",
  "loss",
  "broken connection",
  "half-open connection",
  "partition",
  "slow worker",
  "worker death",
  "machine death",
  "coordinator death",
  "coordinator shutdown",
  "stale coordinator",
  "standstill",
  "redis away",
  "redis loses its tail",
  "job comes again",
  "old result",
] as const;
export type FaultKind = (typeof faultKinds)[number];

/** Of a process that stands still, at most. */
export const maxStandstillMs = 5_000;

export interface Scenario {
  pipelineCount: number;
  /** Of each pipeline. */
  stageCount: number;
  workerCount: number;
  maxBlocks: number;
  microBatches: number | null;
  prefillChunk: number;
  speculation: boolean;
  prefixLength: number;
  prefixModel: boolean;
  queueLimit: number;
  recoveryTimeoutMs: number;
  baseMs: number;
  rowMs: number;
  network: NetworkConditions;
  /** From then on everything works. */
  faultsUntilMs: number;
  faults: readonly FaultKind[];
  /** Mean time between two faults. */
  faultEveryMs: number;
  clients: readonly ClientPlan[];
  /** Lines of a batch, how many are under way at the same time. */
  batch: { lines: readonly RequestPlan[]; atOnce: number };
}

/** A request without its id. */
export type RequestPlan = Omit<GenerationRequest, "id" | "deadlineMs">;

export interface ClientPlan {
  request: RequestPlan;
  beginsAtMs: number;
  /** After so long nobody wants the answer. */
  deadlineMs: number | null;
  /** It leaves then. */
  leavesAfterMs: number | null;
  /** Between two events that it reads. */
  paceMs: number;
  /** When its coordinator dies it asks the next one for its request, instead of asking anew. */
  looksUp: boolean;
}

/** The same seed gives the same scenario. */
export function scenarioOf(random: Random): Scenario {
  const shape = random.fork("shape");
  const pipelineCount = shape.pick([1, 1, 1, 2, 2, 3]);
  const stageCount = shape.integer(1, pipelineCount === 3 ? 2 : 3);
  const prefixModel = shape.chance(0.3);
  const prefixLength = shape.chance(0.15) ? 5 : 0;
  const tight = shape.chance(0.5);
  const faults = faultKinds.filter(() => shape.chance(0.3));
  const requests = new Requests(random.fork("requests"), prefixModel);
  const clients = random.fork("clients");
  const faultsUntilMs = shape.between(4_000, 25_000);
  const calm = shape.chance(0.08);
  /** Many at the same time find the same blocks. */
  const crowdAtMs = clients.chance(0.4) ? clients.between(300, faultsUntilMs) : null;
  return {
    pipelineCount,
    stageCount,
    workerCount: pipelineCount * stageCount + shape.pick([0, 0, 1]),
    maxBlocks: tight ? shape.integer(9, 16) : shape.integer(20, 80),
    microBatches: shape.chance(0.5) ? null : shape.integer(1, 4),
    prefillChunk: shape.pick([5, 7, 16, 31, 64, 256]),
    speculation: shape.chance(0.6),
    prefixLength,
    prefixModel,
    queueLimit: shape.chance(0.1) ? 8 : 200,
    recoveryTimeoutMs: shape.chance(0.2) ? 4_000 : 60_000,
    baseMs: shape.between(2, 25),
    rowMs: shape.between(0.02, 0.6),
    network: { latencyMs: shape.between(0.1, 3), jitterMs: 0, lossRate: 0 },
    faultsUntilMs,
    faults: calm ? [] : faults,
    faultEveryMs: shape.between(700, 6_000),
    clients: Array.from({ length: clients.integer(4, 18) }, () => {
      const plan = clientPlan(clients, requests, faultsUntilMs);
      if (crowdAtMs === null || clients.chance(0.3)) return plan;
      return { ...plan, beginsAtMs: crowdAtMs + clients.between(0, 60) };
    }),
    batch: {
      lines: Array.from({ length: clients.chance(0.5) ? clients.integer(2, 10) : 0 }, () =>
        requests.next("batch"),
      ),
      atOnce: clients.integer(1, 6),
    },
  };
}

function clientPlan(random: Random, requests: Requests, untilMs: number): ClientPlan {
  return {
    request: requests.next("interactive"),
    beginsAtMs: random.between(300, untilMs),
    deadlineMs: random.chance(0.15) ? random.between(50, 8_000) : null,
    leavesAfterMs: random.chance(0.15) ? random.between(1, 4_000) : null,
    paceMs: random.chance(0.15) ? random.between(5, 400) : 0,
    looksUp: random.chance(0.5),
  };
}

class Requests {
  readonly #random: Random;
  readonly #prefixModel: boolean;
  /** Beginnings that several prompts share. */
  readonly #beginnings: readonly number[][];
  #count = 0;

  constructor(random: Random, prefixModel: boolean) {
    this.#random = random;
    this.#prefixModel = prefixModel;
    this.#beginnings = Array.from({ length: 3 }, () => this.#tokens(random.integer(16, 50)));
  }

  next(ofClass: GenerationRequest["class"]): RequestPlan {
    const random = this.#random;
    const beginning = random.chance(0.6) ? random.pick(this.#beginnings) : [];
    const promptTokens = Int32Array.from([...beginning, ...this.#tokens(random.integer(1, 24))]);
    const context = this.#prefixModel ? this.#context(promptTokens.length) : null;
    const choiceCount = random.chance(0.25) ? random.integer(2, 3) : 1;
    const blanks = (context?.remainingMasks.length ?? 0) + 1;
    const maxTokens = blanks > 1 ? random.integer(1, 12) : random.integer(1, 40);
    const stop = context === null && random.chance(0.15) ? [`t${random.integer(1, 3)}`] : [];
    return {
      logId: `request-${this.#count++}`,
      endpoint: "completions",
      tenant: random.pick(["a", "a", "b"]),
      class: ofClass,
      choices: Array.from({ length: choiceCount }, () => ({
        promptTokens,
        ...(context === null ? {} : { context }),
        seed: `${random.integer(-1_000_000, 1_000_000)}`,
      })),
      sampling: {
        temperature: random.chance(0.5) ? 0 : 1,
        topP: 1,
        topK: 0,
        minP: 0,
        maxTokens,
        minTokens: stop.length === 0 && random.chance(0.3) ? Math.min(maxTokens, random.integer(1, 10)) : 0,
        ignoreEos: random.chance(0.6),
        stop,
        stopTokenIds: random.chance(0.2) ? [random.integer(10, vocabulary - 1)] : [],
        includeStopInOutput: false,
        topLogprobs: -1,
        promptLogprobs: context === null && random.chance(0.08),
      },
      text: { skipSpecialTokens: true, chatReply: false },
      ...(random.chance(0.1) ? { cacheSalt: "salt" } : {}),
      answer: { n: choiceCount, asTokenIds: false, options: {} },
    };
  }

  #tokens(count: number): number[] {
    return Array.from({ length: count }, () => this.#random.integer(0, vocabulary - 1));
  }

  /** The last token of the prompt begins the reply. */
  #context(promptLength: number): PromptContext | null {
    const length = promptLength - 1;
    if (length < 1) return null;
    const random = this.#random;
    const places = Array.from({ length }, (_, at) => at).filter(() => random.chance(2 / length));
    const [mask = -1, ...remainingMasks] = random.chance(0.3) ? [] : places.slice(0, 2);
    return { length, mask, constantPosition: mask >= 0 && random.chance(0.5), remainingMasks };
  }
}
