/**
 * A real API server on a loopback port in front of a scripted service: the events of every request are
 * written by the test. Tokens are bytes, so that a test can read them.
 */
import { connect } from "node:net";
import { pino } from "pino";
import { Registry } from "prom-client";
import { RelayError } from "../../../common/errors.js";
import { type RequestId, workerId } from "../../../common/ids.js";
import type { Logger } from "../../../common/log.js";
import type { ApiKeys } from "../../../coordinator/api/keys.js";
import type { Timing } from "../../../coordinator/api/limits.js";
import { type BodyTask, type Read, readBody } from "../../../coordinator/api/read-body.js";
import { type Api, createApi } from "../../../coordinator/api/server.js";
import type {
  ClusterView,
  EventSink,
  GenerationRequest,
  InferenceService,
  ModelInfo,
  RequestEvent,
  RequestHandle,
  RequestState,
  TokenIds,
  TokenLogprob,
} from "../../../coordinator/inference.js";
import type { ChatMessage, ChatOptions } from "../../../coordinator/prompt/chat-message.js";
import type { ChatFormat } from "../../../coordinator/prompt/encoder.js";
import type { PromptService } from "../../../coordinator/prompt/service.js";
import { fromRecord, toRecord } from "../../../coordinator/queue/record.js";
import { glm4_9b } from "../../../models/glm4-9b.js";

export const contextLength = 400;
/** Bytes and one special token that starts a text. */
export const startToken = 256;
export const tokenCount = 257;

class BytePrompts implements PromptService {
  readonly available: boolean;
  chatFormat: ChatFormat = { prompt: glm4_9b.prompt, hasTemplate: false };
  /** Of the last conversation that was encoded. */
  chatOptions: ChatOptions = {};
  chatMessages: ChatMessage[] = [];
  constructor(available: boolean) {
    this.available = available;
  }
  async encodeText(text: string, addSpecialTokens: boolean): Promise<number[]> {
    this.#require();
    return [...(addSpecialTokens ? [startToken] : []), ...Buffer.from(text)];
  }
  async encodeChat(messages: ChatMessage[], options: ChatOptions = {}): Promise<number[]> {
    this.#require();
    this.chatMessages = messages;
    this.chatOptions = options;
    return [startToken, ...Buffer.from(messages.map(({ role, content }) => `${role}:${content}`).join("|"))];
  }
  async decode(tokens: TokenIds): Promise<string> {
    this.#require();
    return Buffer.from(Array.from(tokens).filter((token) => token < startToken)).toString();
  }
  tokenStrings(tokens: TokenIds): string[] {
    return Array.from(tokens, (token) => (token < 128 ? String.fromCharCode(token) : `<${token}>`));
  }
  tokenBytes(token: number): Uint8Array {
    return token < startToken ? Uint8Array.of(token) : new Uint8Array();
  }
  readBody(body: BodyTask): Promise<Read> {
    return readBody(body, this);
  }
  createDetokenizer(): never {
    throw new Error("the API has no use for a detokenizer");
  }
  async close(): Promise<void> {}
  #require(): void {
    if (!this.available) throw new RelayError("not_supported", "no tokenizer");
  }
}

export type Script = (request: GenerationRequest) => AsyncIterable<RequestEvent>;

export const tokenLogprob = (token: number, alternatives = 0): TokenLogprob => ({
  token,
  logprob: -0.5,
  top: Array.from({ length: alternatives }, (_, i) => ({ token: token + i, logprob: -0.5 - i })),
});

export function tokensEvent(request: GenerationRequest, choice: number, text: string): RequestEvent {
  const tokens = [...Buffer.from(text)];
  const { topLogprobs } = request.sampling;
  return {
    type: "tokens",
    choice,
    text,
    tokens,
    logprobs: topLogprobs < 0 ? [] : tokens.map((token) => tokenLogprob(token, topLogprobs)),
  };
}

export const finishEvent = (
  choice: number,
  completionTokens: number,
  rest: Partial<Extract<RequestEvent, { type: "finish" }>> = {},
): RequestEvent => ({
  type: "finish",
  choice,
  text: "",
  reason: "stop",
  stopReason: null,
  completionTokens,
  ...rest,
});

/** Every choice says `words[choice % words.length]`, a character at a time, choices taking turns. */
export const saying = (...words: string[]): Script =>
  async function* (request) {
    const texts = request.choices.map((_, i) => words[i % words.length] ?? "");
    if (request.sampling.promptLogprobs) {
      for (const [choice, { promptTokens }] of request.choices.entries()) {
        const scores = Array.from(promptTokens, (token, i) => (i === 0 ? null : tokenLogprob(token, 1)));
        yield { type: "prompt", choice, scores };
      }
    }
    const longest = Math.max(...texts.map((text) => text.length));
    for (let at = 0; at <= longest; at++) {
      for (const [choice, text] of texts.entries()) {
        if (at < text.length) yield tokensEvent(request, choice, text[at] ?? "");
        if (at === text.length) yield finishEvent(choice, text.length);
      }
    }
  };

export class ScriptedService implements InferenceService {
  readonly prompt: BytePrompts;
  contextLength = contextLength;
  readonly model: ModelInfo = {
    id: "glm-test",
    createdS: 1_700_000_000,
    contextLength,
    vocabSize: 260,
    tokenCount,
    hiddenSize: 64,
    parameterCount: 1_000,
    weightBytes: 2_000,
    defaults: { temperature: 0.8, topP: 0.9 },
    prefixModel: null,
  };
  readonly submitted: GenerationRequest[] = [];
  readonly cancelled: string[] = [];
  script: Script = saying("hello");
  /** What submit rejects with. */
  refusal: RelayError | null = null;
  notReadyError: RelayError | null = null;
  orphanListener: (request: GenerationRequest, handle: RequestHandle) => void = () => {};
  /** What lookUp answers with. */
  readonly states = new Map<RequestId, RequestState>();
  readinessListeners: (() => void)[] = [];
  stepListeners: ((rows: number) => void)[] = [];
  recoveryListeners: ((reason: string, seconds: number) => void)[] = [];

  constructor(options: { tokenizer?: boolean } = {}) {
    this.prompt = new BytePrompts(options.tokenizer ?? true);
  }

  async submit(request: GenerationRequest): Promise<RequestHandle> {
    if (this.refusal !== null) throw this.refusal;
    // It crosses threads and Redis, so it must survive both; ids as a list, which is how tests write them.
    const { choices, ...rest } = fromRecord(JSON.parse(JSON.stringify(toRecord(structuredClone(request)))));
    this.submitted.push({
      ...rest,
      choices: choices.map((choice) => ({ ...choice, promptTokens: Array.from(choice.promptTokens) })),
    });
    return { id: request.id, events: this.script(request), cancel: () => this.cancelled.push(request.id) };
  }

  submitLine(request: GenerationRequest, sink: EventSink): () => void {
    if (this.refusal !== null) throw this.refusal;
    this.submitted.push(structuredClone(request));
    let ended = false;
    const end = () => {
      if (!ended) sink.end();
      ended = true;
    };
    const play = async () => {
      for await (const event of this.script(request)) if (!ended) sink.push(event);
      end();
    };
    void play();
    return () => {
      this.cancelled.push(request.id);
      end();
    };
  }

  onOrphan(listener: (request: GenerationRequest, handle: RequestHandle) => void): void {
    this.orphanListener = listener;
  }

  keepAnswer(id: RequestId, answer: string): void {
    this.states.set(id, { status: "ended", answer });
  }

  async lookUp(name: string): Promise<RequestState | null> {
    return this.states.get(name as RequestId) ?? null;
  }

  notReady(): RelayError | null {
    return this.notReadyError;
  }

  onReadiness(listener: () => void): void {
    this.readinessListeners.push(listener);
  }

  onStep(listener: (rows: number) => void): void {
    this.stepListeners.push(listener);
  }

  onRecovery(listener: (reason: string, seconds: number) => void): void {
    this.recoveryListeners.push(listener);
  }

  get numericsId(): string | null {
    return this.cluster().numericsId;
  }

  cluster(): ClusterView {
    const timing = {
      itlTargetMs: 200,
      microBatchTarget: 2,
      rowBudget: 96,
      hopMs: 1.5,
      stationMs: 0,
      stages: [{ baseMs: 4, rowMs: 0.5, keyMs: 0.001 }],
    };
    const stages = [
      {
        pipeline: 0,
        stage: 0,
        worker: "w0",
        layerBegin: 0,
        layerEnd: 2,
        weightBytes: 1,
        kvBytes: 1,
        workspaceBytes: 1,
        planned: { weightBytes: 1, kvBytes: 1, workspaceBytes: 1, processBytes: 1 },
        memoryBytes: 3,
        steps: 5,
        busySeconds: 1.5,
        idleSeconds: 0.5,
      },
    ];
    return {
      model: this.model.id,
      state: "ready",
      reason: "",
      epoch: { term: 3, plan: 7 },
      numericsId: "cpu-1-float32",
      dtype: "float32",
      kvType: "float32",
      quantization: { weights: "stored", head: "stored" },
      stageCount: 2,
      stages,
      workers: [
        {
          id: workerId("w0"),
          pid: 1,
          address: "127.0.0.1:1",
          probeAddress: "127.0.0.1:2",
          state: "linked",
          detail: "",
          loadedRatio: 1,
          heartbeatAgeMs: 250,
          memoryBytes: 1,
          residentBytes: 1,
          threads: 1,
          kernels: "scalar",
        },
      ],
      blocks: { size: 16, total: 100, used: 25, kept: 0 },
      sequences: { running: 4, waiting: 6 },
      classes: { interactive: { running: 3, waiting: 1 }, batch: { running: 1, waiting: 5 } },
      microBatchesInFlight: 2,
      timing,
      pipelines: [
        {
          pipeline: 0,
          state: "ready",
          reason: "",
          epoch: { term: 3, plan: 7 },
          stageCount: 2,
          stages,
          blocks: { size: 16, total: 100, used: 25, kept: 0 },
          sequences: { running: 4, waiting: 6 },
          microBatchesInFlight: 2,
          timing,
        },
      ],
      oldestWaitMs: 1_250,
      probeAddress: null,
      grpcAddress: null,
      redisUp: true,
      counters: {
        placements: 1,
        placementsByReason: { start: 1 },
        workersLost: 2,
        workersLostByReason: { left: 0, disconnected: 1, lease_over: 1, replaced: 0 },
        staleMessages: 3,
        preemptions: 0,
        prefixCacheQueries: 0,
        prefixCacheHits: 0,
        contextSlices: 0,
        draftedTokens: 0,
        acceptedTokens: 0,
        steps: 4,
      },
    };
  }

  get last(): GenerationRequest {
    const request = this.submitted.at(-1);
    if (request === undefined) throw new Error("nothing was submitted");
    return request;
  }
}

export async function startApi(
  service: InferenceService,
  timing: Partial<Timing> = {},
  registry = new Registry(),
  log: Logger = pino({ level: "silent" }),
  grpcPort?: number,
  keys: ApiKeys | null = null,
): Promise<Api> {
  const options = { host: "127.0.0.1", port: 0, grpcPort, keys, log, registry };
  return createApi(service, { ...options, timing: { closeGraceMs: 200, ...timing } });
}

/** JSON of a shape that the test knows and checks by reading it. */
export type Json = any;

export interface Answer {
  status: number;
  headers: Headers;
  body: Json;
}

export async function post(
  api: Api,
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(api.address + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text === "" ? null : JSON.parse(text) };
}

export async function get(api: Api, path: string, method = "GET"): Promise<Answer> {
  const response = await fetch(api.address + path, { method });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text === "" ? null : JSON.parse(text) };
}

/** The data of a stream's events in order, "[DONE]" included; anything but data and comments throws. */
export async function stream(api: Api, path: string, body: object): Promise<Json[]> {
  const response = await fetch(api.address + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
  });
  if (response.status !== 200) throw new Error(`status ${response.status}: ${await response.text()}`);
  return sseData(await response.text());
}

export function sseData(text: string): Json[] {
  if (!text.endsWith("\n\n")) throw new Error("the stream does not end with an empty line");
  return text
    .split("\n\n")
    .slice(0, -1)
    .filter((block) => !block.startsWith(":"))
    .map((block) => {
      if (!block.startsWith("data: ") || block.includes("\n")) throw new Error(`not one data line: ${block}`);
      const data = block.slice("data: ".length);
      return data === "[DONE]" ? data : JSON.parse(data);
    });
}

/** Bytes as they are, on a socket of its own; resolves with all that came back when the server closes. */
export function rawExchange(api: Api, bytes: string): Promise<string> {
  const { hostname, port } = new URL(api.address);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => socket.write(bytes));
    let received = "";
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      received += chunk;
    });
    socket.on("close", () => resolve(received));
    socket.on("error", reject);
  });
}

export function gate(): { promise: Promise<void>; open: () => void } {
  let open = () => {};
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

/** Waits for something that happens soon; fails loudly when it does not. */
export async function eventually(condition: () => boolean, what: string): Promise<void> {
  for (const start = performance.now(); !condition(); ) {
    if (performance.now() - start > 5_000) throw new Error(`it did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
