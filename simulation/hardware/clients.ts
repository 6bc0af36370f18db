/** Those who ask: they send requests when their time has come, and note when tokens arrive. */
import { type RequestId, requestId } from "../../common/ids.js";
import type { GenerationRequest, RequestEvent } from "../../coordinator/inference.js";
import { defaultTenant, type RequestClass } from "../../coordinator/request-class.js";
import type { EventLoop } from "../event-loop.js";
import type { Random } from "../random.js";
import { type Ask, type LoadPart, nextAsk } from "./load.js";
import { type Percentiles, Samples } from "./samples.js";

interface Open {
  part: Part;
  class: RequestClass;
  sentMs: number;
  firstMs: number | null;
  lastMs: number;
}

/** One part of the load, while it is sent. */
interface Part {
  load: LoadPart;
  random: Random;
  sent: number;
  open: number;
  /** Sent requests that had no token yet. */
  silent: number;
}

export interface ClassTimes {
  requests: number;
  tokens: number;
  ttftMs: Percentiles | null;
  itlMs: Percentiles | null;
}

class Times {
  requests = 0;
  tokens = 0;
  readonly ttft: Samples;
  readonly itl: Samples;

  constructor(random: Random) {
    this.ttft = new Samples(random);
    this.itl = new Samples(random);
  }

  get figures(): ClassTimes {
    const { requests, tokens, ttft, itl } = this;
    return { requests, tokens, ttftMs: ttft.percentiles, itlMs: itl.percentiles };
  }
}

export interface ClientOptions {
  parts: readonly LoadPart[];
  contextLength: number;
  /** Prompts are contexts that are read as a whole. */
  prefix: boolean;
  /** Requests that others have sent before: no prompt is one of theirs. */
  sentBefore: number;
}

/** So many tokens of a prompt have a meaning here; all others are alike. */
const uniqueTokens = 2;
const idLimit = 2 ** 15;

export class Clients {
  readonly #loop: EventLoop;
  readonly #options: ClientOptions;
  readonly #send: (request: GenerationRequest) => void;
  readonly #parts: Part[];
  readonly #open = new Map<RequestId, Open>();
  readonly #times: Record<RequestClass, Times>;
  /** Of the first request that failed. */
  failure: string | null = null;
  failed = 0;
  finished = 0;
  tokens = 0;
  /**
   * The span of full load: all clients wait for an answer or for its next token, and the first of them had all of
   * theirs, or each had one; of a load that comes by itself, from a tenth of its requests to the last one's arrival.
   */
  readonly full = { fromMs: null as number | null, toMs: null as number | null, fromTokens: 0, toTokens: 0 };
  #sentInAll: number;
  /** Told when the span begins and ends. */
  onFull: (begins: boolean) => void = () => {};

  constructor(
    loop: EventLoop,
    random: Random,
    options: ClientOptions,
    send: (request: GenerationRequest) => void,
  ) {
    this.#loop = loop;
    this.#options = options;
    this.#sentInAll = options.sentBefore;
    this.#send = send;
    this.#parts = options.parts.map((load, index) => ({
      load,
      random: random.fork(`part ${index}`),
      ...{ sent: 0, open: 0, silent: 0 },
    }));
    this.#times = {
      interactive: new Times(random.fork("interactive")),
      batch: new Times(random.fork("batch")),
    };
  }

  begin(): void {
    for (const part of this.#parts) {
      const { arrivals, requests } = part.load;
      if (arrivals.kind === "open") this.#nextArrival(part, arrivals.perSecond);
      else for (let client = 0; client < Math.min(arrivals.clients, requests); client++) this.#ask(part);
    }
  }

  /** All requests of parts that are not endless were sent and have ended. */
  get done(): boolean {
    return this.#parts.every(
      ({ sent, open, load }) => load.endless || (open === 0 && sent === load.requests),
    );
  }

  times(of: RequestClass): ClassTimes {
    return this.#times[of].figures;
  }

  emit(id: RequestId, event: RequestEvent): void {
    const open = this.#open.get(id);
    if (open === undefined) return;
    if (event.type === "error") {
      this.failed++;
      this.failure ??= event.error.message;
    }
    if (event.type !== "tokens") return;
    const now = this.#loop.nowMs();
    const times = this.#times[open.class];
    for (const _ of event.tokens) {
      times.tokens++;
      this.tokens++;
      if (open.firstMs !== null) times.itl.add(now - open.lastMs);
      else {
        open.firstMs = now;
        times.ttft.add(now - open.sentMs);
        open.part.silent--;
        this.#mayBeFull();
      }
      open.lastMs = now;
    }
  }

  ended(id: RequestId): void {
    const open = this.#open.get(id);
    if (open === undefined) return;
    this.#open.delete(id);
    const { part } = open;
    if (open.firstMs === null) part.silent--;
    part.open--;
    this.finished++;
    this.#times[open.class].requests++;
    if (part.load.arrivals.kind !== "closed") return;
    if (this.#parts.every(({ load }) => load.arrivals.kind === "closed")) this.#fullBegins();
    if (part.sent === part.load.requests) this.#fullIsOver();
    // Not within the core's own call.
    else this.#loop.after(0, () => this.#ask(part));
  }

  #nextArrival(part: Part, perSecond: number): void {
    if (part.sent === part.load.requests) {
      this.#fullIsOver();
      return;
    }
    this.#loop.after(part.random.exponential(1_000 / perSecond), () => {
      this.#ask(part);
      if (part.sent * 10 >= part.load.requests) this.#fullBegins();
      this.#nextArrival(part, perSecond);
    });
  }

  #mayBeFull(): void {
    if (this.#parts.some(({ load }) => load.arrivals.kind === "open")) return;
    if (this.#parts.every(({ silent }) => silent === 0)) this.#fullBegins();
  }

  #fullBegins(): void {
    if (this.full.fromMs !== null) return;
    this.full.fromMs = this.#loop.nowMs();
    this.full.fromTokens = this.tokens;
    this.onFull(true);
  }

  #fullIsOver(): void {
    if (this.full.toMs !== null || this.full.fromMs === null) return;
    this.full.toMs = this.#loop.nowMs();
    this.full.toTokens = this.tokens;
    this.onFull(false);
  }

  #ask(part: Part): void {
    if (part.sent === part.load.requests) return;
    const ask = nextAsk(part.load, part.sent++, part.random, this.#options.contextLength);
    const id = requestId(`r${++this.#sentInAll}`);
    part.open++;
    part.silent++;
    const now = this.#loop.nowMs();
    this.#open.set(id, { part, class: ask.class, sentMs: now, firstMs: null, lastMs: now });
    this.#send(requestOf(id, this.#sentInAll, ask, this.#options.prefix));
  }
}

/** Every prompt begins with tokens of its own: nothing of it is in a cache. */
function requestOf(id: RequestId, number: number, ask: Ask, prefix: boolean): GenerationRequest {
  const promptTokens = new Int32Array(ask.promptTokens).fill(3);
  const own = [number % idLimit, Math.floor(number / idLimit)].slice(0, uniqueTokens);
  for (const [index, token] of own.entries())
    if (index < promptTokens.length) promptTokens[index] = 4 + token;
  const context = { length: ask.promptTokens - 1, mask: -1, constantPosition: false, remainingMasks: [] };
  return {
    id,
    logId: id,
    endpoint: "completions",
    tenant: defaultTenant,
    class: ask.class,
    choices: [{ promptTokens, seed: "1", ...(prefix && context.length > 0 ? { context } : {}) }],
    sampling: {
      temperature: 0,
      topP: 1,
      topK: 0,
      minP: 0,
      maxTokens: ask.replyTokens,
      minTokens: 0,
      ignoreEos: true,
      stop: [],
      stopTokenIds: [],
      includeStopInOutput: false,
      topLogprobs: -1,
      promptLogprobs: false,
    },
    text: { skipSpecialTokens: true, chatReply: false },
  };
}
