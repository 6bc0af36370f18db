/**
 * What the API asks of the rest of the coordinator, and what it is told back. The HTTP layer knows
 * nothing of queues, steps and workers; everything behind this file knows nothing of HTTP.
 */
import type { PrefixModel } from "../checkpoint/index.js";
import type { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";
import type { PromptService } from "./prompt/service.js";
import type { RequestClass } from "./request-class.js";

/** Sampling and stop rules of one request; complete, defaults already filled in. Plain JSON. */
export interface SamplingParams {
  /** 0 is greedy. */
  temperature: number;
  topP: number;
  /** 0 is off. */
  topK: number;
  minP: number;
  /** Generated tokens at most; 0 only scores the prompt. */
  maxTokens: number;
  /** Stop tokens and stop strings do not count before this many tokens. */
  minTokens: number;
  ignoreEos: boolean;
  stop: string[];
  /** Beside the model's own stop tokens. */
  stopTokenIds: number[];
  includeStopInOutput: boolean;
  /** -1: no logprobs; else the token's own and this many best alternatives. */
  topLogprobs: number;
  /** Score the prompt's tokens too (echo with logprobs). */
  promptLogprobs: boolean;
}

/** How token ids become text. */
export interface TextParams {
  skipSpecialTokens: boolean;
  /** The reply of a chat turn: the prompt format's empty metadata line is not part of it. */
  chatReply: boolean;
  /** Names of special tokens that are written though the others are skipped. */
  keepTokens?: string[];
}

/**
 * Token ids of a text, not to be changed. Where they may be many they are an Int32Array: it crosses
 * threads and Redis as bytes, and choices of one prompt share it.
 */
export type TokenIds = ArrayLike<number> & Iterable<number>;

/** The part of a prompt that is read as a whole, in both directions, and the blanks in it. */
export interface PromptContext {
  /** Tokens in front of the one that starts the reply. */
  length: number;
  /** Index of the mask that is filled; -1: none, the reply only goes on. */
  mask: number;
  /** The reply takes the mask's position; else positions go on. */
  constantPosition: boolean;
  /** Indices of the masks that are filled after it, in this order. */
  remainingMasks: number[];
}

/** One API call: all its choices share the sampling parameters. Plain data: it crosses threads and Redis. */
export interface GenerationRequest {
  id: RequestId;
  /**
   * Its name in the logs of every process: the client's own x-request-id where one was sent, so it need
   * not be unique. At most maxLoggedIdLength characters.
   */
  logId: string;
  endpoint: "chat" | "completions";
  /** Tenants of a class take turns, by tokens; what was computed for one's prompts is not shared with another. */
  tenant: string;
  class: RequestClass;
  /** Wall clock, ms since 1970: from then on nobody wants the answer. Absent: no such time. */
  deadlineMs?: number;
  choices: {
    promptTokens: TokenIds;
    /** How a prefix-LM reads the prompt; absent: causally. */
    context?: PromptContext;
    /** Decimal int64; drawn at acceptance when the client gave none, so that a replay is equal. */
    seed: string;
  }[];
  sampling: SamplingParams;
  text: TextParams;
  /** Requests of a tenant with another one never share what was computed for their prompts. */
  cacheSalt?: string;
  /** How its answer is written when nobody waits for it any more; absent: no answer is kept then. */
  answer?: AnswerForm;
  /** Since it was accepted. */
  accepted?: Acceptance;
}

/** What the API, which alone reads it, needs for an answer beside the request's events. Plain JSON. */
export interface AnswerForm {
  /** Choices per prompt. */
  n: number;
  /** Tokens are named `token_id:N`. */
  asTokenIds: boolean;
  /** Those of the endpoint's answer, but for the names of tokens. */
  options: object;
}

/** By which process, when and under what a request was accepted. Plain JSON. */
export interface Acceptance {
  /** The number that Redis gave the process: no other one has it. */
  term: number;
  /** Unix time with a fraction: requests are taken up again in this order. */
  atMs: number;
  /** Its tokens hold under no other one; "" while none is known. */
  numericsId: string;
  /** Later processes in a row that have computed it, got no further and ended. */
  recoveries: number;
  /** Tokens that were decided when the last of them began with it. */
  tokens: number;
}

/** What is known of a request by its name. */
export type RequestState =
  /** `queued`: no step has had rows of it yet. Unix time in seconds. */
  | { status: "queued" | "running"; id: RequestId; createdS: number }
  /** It ended without its client: what `keepAnswer` was given. */
  | { status: "ended"; answer: string };

export interface TokenLogprob {
  token: number;
  /** Natural logarithm. */
  logprob: number;
  top: { token: number; logprob: number }[];
}

export type RequestEvent =
  /** The first step with rows of the request has been sent; once, before any other event but an error. */
  | { type: "started" }
  /** A blank of the context is filled with the text since the last one; before the next tokens, or the finish. */
  | {
      type: "blank";
      choice: number;
      /** Counted from 0. */
      blank: number;
      /** The mask's token. */
      mask: number;
      /** Text that was held back and turned out to belong to it. */
      text: string;
      reason: "stop" | "length";
    }
  /** Prompt logprobs, once per choice, before its first token; null for the first prompt token. */
  | { type: "prompt"; choice: number; scores: (TokenLogprob | null)[] }
  /** New tokens; `text` is what is now certain and may lag behind or be empty. */
  | { type: "tokens"; choice: number; text: string; tokens: number[]; logprobs: TokenLogprob[] }
  | {
      type: "finish";
      choice: number;
      /** Text that was held back and turned out to belong to the answer. */
      text: string;
      reason: "stop" | "length";
      /** The stop string or the id of the extra stop token that ended it; null for the model's own. */
      stopReason: string | number | null;
      completionTokens: number;
      /** Tokens of the prompt whose keys and values were there already. */
      cachedTokens?: number;
    }
  /** Ends the whole request; no further event follows. */
  | { type: "error"; error: RelayError };

export interface RequestHandle {
  id: RequestId;
  /** Ends after the last choice's finish event or an error event. */
  events: AsyncIterable<RequestEvent>;
  /** Frees everything the request holds, from the queue at once, from the pipeline at the next step. */
  cancel(): void;
}

export interface ModelInfo {
  id: string;
  createdS: number;
  contextLength: number;
  vocabSize: number;
  /** Token ids from here on do not exist. */
  tokenCount: number;
  hiddenSize: number;
  parameterCount: number;
  weightBytes: number;
  defaults: { temperature: number; topP: number };
  /** How a prompt of a prefix-LM is divided; null for a causal model. */
  prefixModel: PrefixModel | null;
}

export interface StageView {
  pipeline: number;
  stage: number;
  worker: string;
  layerBegin: number;
  layerEnd: number;
  weightBytes: number;
  kvBytes: number;
  workspaceBytes: number;
  /** What the plan counted on; the figures above are the worker's own once it has loaded. */
  planned: { weightBytes: number; kvBytes: number; workspaceBytes: number; processBytes: number };
  memoryBytes: number;
  steps: number;
  busySeconds: number;
  /** Linked and not computing, since the worker's process began. */
  idleSeconds: number;
}

export interface WorkerView {
  id: string;
  pid: number;
  address: string;
  /** host:port of its probes; null when it serves none. */
  probeAddress: string | null;
  state: "idle" | "loading" | "loaded" | "linked" | "failed";
  detail: string;
  /** Of the stage's weights, while they are read: 0 to 1. */
  loadedRatio: number;
  heartbeatAgeMs: number;
  memoryBytes: number;
  residentBytes: number;
  threads: number;
  kernels: string;
}

/** left: said goodbye; disconnected: its control stream ended; lease_over; replaced: it registered anew. */
export type WorkerLossReason = "left" | "disconnected" | "lease_over" | "replaced";

/** One of the pipelines that hold the model, each once. */
export interface PipelineView {
  pipeline: number;
  state: "waiting" | "loading" | "ready";
  /** Why it is not ready; empty when it is. */
  reason: string;
  epoch: { term: number; plan: number } | null;
  /** Stages wanted. */
  stageCount: number;
  stages: StageView[];
  /** `kept`: held by no sequence, and shared with the next one that begins alike. */
  blocks: { size: number; total: number; used: number; kept: number };
  /** `waiting`: for blocks. */
  sequences: { running: number; waiting: number };
  microBatchesInFlight: number;
  timing: TimingView;
}

/** What finished steps say about the next ones; fitted figures are null or absent while too few have come back. */
export interface TimingView {
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs: number;
  /** Steps that are kept on their way; 0 while no pipeline is formed. */
  microBatchTarget: number;
  /** Rows of a new prompt that a step may carry by the target, decodes not counted. */
  rowBudget: number | null;
  /** All hops of a step's way together, from the coordinator over the stages and back. */
  hopMs: number | null;
  /** What the slowest thing between the stages takes per step, such as an event loop; 0 where none shows. */
  stationMs: number | null;
  /** A step takes baseMs + rows * rowMs + keys * keyMs, keys being those that its rows read in attention. */
  stages: { baseMs: number; rowMs: number; keyMs: number }[];
}

export interface ClusterView {
  model: string;
  state: "waiting" | "loading" | "ready" | "draining";
  /** Why it is not ready; empty when it is. */
  reason: string;
  /** Of the newest plan that holds. */
  epoch: { term: number; plan: number } | null;
  numericsId: string | null;
  dtype: string;
  kvType: string;
  /** Of the layers' matrices and of the head: "stored", "int4-g32-search", ... */
  quantization: { weights: string; head: string };
  /** Stages wanted, of all pipelines together, as are the figures below. */
  stageCount: number;
  stages: StageView[];
  workers: WorkerView[];
  blocks: PipelineView["blocks"];
  sequences: PipelineView["sequences"];
  /** The same by class. */
  classes: Record<RequestClass, { running: number; waiting: number }>;
  microBatchesInFlight: number;
  /** Of the first pipeline that serves. */
  timing: TimingView;
  pipelines: PipelineView[];
  /** How long the oldest request without a first step has waited; 0 when none waits. */
  oldestWaitMs: number;
  redisUp: boolean;
  /** host:port of the coordinator's own probes; null when it serves none. */
  probeAddress: string | null;
  /** host:port of the gRPC API; null when it is off. */
  grpcAddress: string | null;
  counters: {
    placements: number;
    /** The same by what ended the plan before: "start" for the first, else a code of common/errors.ts. */
    placementsByReason: Record<string, number>;
    workersLost: number;
    workersLostByReason: Record<WorkerLossReason, number>;
    staleMessages: number;
    steps: number;
    /** Slices in which contexts were read while others decoded. */
    contextSlices: number;
    /** Sequences that gave their KV blocks to others and were computed again. */
    preemptions: number;
    /** Prompt tokens whose rows were due, and those of them that were computed before. */
    prefixCacheQueries: number;
    prefixCacheHits: number;
    /** Tokens guessed at by speculation, and those of them that were drawn. */
    draftedTokens: number;
    acceptedTokens: number;
  };
}

/** Who takes the events of a request as they happen. */
export interface EventSink {
  push(event: RequestEvent): void;
  /** No further event follows. */
  end(): void;
}

export interface InferenceService {
  readonly model: ModelInfo;
  /** Of the pipelines that serve; null while none was formed. */
  readonly numericsId: string | null;
  /** Tokens that one sequence may have now: the model's context, or what the KV cache holds of it. */
  readonly contextLength: number;
  readonly prompt: PromptService;
  /**
   * Accepts a request: through BullMQ into the scheduler's waiting set.
   * @throws RelayError queue_unavailable (Redis), queue_full, model_loading, draining, deadline_exceeded,
   *   context_length_exceeded (needs more KV blocks than the cluster has).
   */
  submit(request: GenerationRequest): Promise<RequestHandle>;
  /**
   * Puts a line of a batch into the scheduler's waiting set. The queue and its ledger know nothing of it, so it is
   * taken while Redis is away, and lost with this process: whoever submits it keeps it until it is answered, and
   * bounds how many there are.
   * @returns Frees everything that the request holds; the sink is ended by it.
   * @throws RelayError model_loading, draining, context_length_exceeded
   */
  submitLine(request: GenerationRequest, sink: EventSink): () => void;
  /** From state already held; null when ready, else the error a new request would get. */
  notReady(): RelayError | null;
  /** Called when what notReady says may have changed. */
  onReadiness(listener: () => void): void;
  cluster(): ClusterView;
  /**
   * Called for every request that an earlier process accepted and this one finishes, also for those taken up
   * before the call. Whoever listens follows its events and then calls `keepAnswer`.
   */
  onOrphan(listener: (request: GenerationRequest, handle: RequestHandle) => void): void;
  /** Keeps the answer of such a request, as text, for a time; the request is forgotten then. */
  keepAnswer(id: RequestId, answer: string): void;
  /**
   * A request that has not ended, or whose answer is kept; null for any other.
   * @param name Its id, or what its client called it (x-request-id): the newest one of that name.
   * @param tenant Whose name it is; an id is nobody's.
   * @throws RelayError queue_unavailable when Redis would have to be asked and is away.
   */
  lookUp(name: string, tenant: string): Promise<RequestState | null>;
  /** Called for every finished step: rows in it. */
  onStep(listener: (rows: number) => void): void;
  /** Called when the model is served again after a loss: the code of what was lost, and for how long. */
  onRecovery(listener: (reason: string, seconds: number) => void): void;
}
