/**
 * One epoch of one pipeline: turns scheduled steps into headers, and what the last stage answers
 * into results, in order. A state machine without socket or clock: `send` is given to it.
 */
import { bytesFromInt32, float32FromBytes, int32FromBytes } from "../../common/bytes.js";
import { RelayError } from "../../common/errors.js";
import {
  compareEpochs,
  type Epoch,
  formatEpoch,
  type PipelineId,
  type SequenceId,
} from "../../common/ids.js";
import type { Context } from "../../proto/generated/glm/relay/internal/v1/Context.js";
import type { Sampling } from "../../proto/generated/glm/relay/internal/v1/Sampling.js";
import type { SequenceResult__Output } from "../../proto/generated/glm/relay/internal/v1/SequenceResult.js";
import type { SequenceRows } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { Slice } from "../../proto/generated/glm/relay/internal/v1/Slice.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import type { TokenResult__Output } from "../../proto/generated/glm/relay/internal/v1/TokenResult.js";
import type { PromptContext, SamplingParams, TokenLogprob } from "../inference.js";
import type { ScheduledSlice } from "../scheduler/context-slices.js";
import type { ScheduledRows, ScheduledStep } from "../scheduler/scheduled-step.js";
import { DecodeRows } from "./decode-rows.js";

/** What the header says about drawing a sequence's next token; constant over its life, so it is made once. */
export interface SequenceSampling
  extends Readonly<Pick<SamplingParams, "temperature" | "topK" | "topP" | "minP" | "topLogprobs">> {
  readonly seedLow: number;
  readonly seedHigh: number;
  /** None: those of a step take its place. */
  readonly bannedTokens: Uint8Array;
}

/** @param seed Its lowest 64 bits count. */
export function sequenceSampling(params: SamplingParams, seed: bigint): SequenceSampling {
  const { temperature, topK, topP, minP, topLogprobs } = params;
  const bits = BigInt.asUintN(64, seed);
  return {
    temperature,
    topK,
    topP,
    minP,
    seedLow: Number(bits & 0xffff_ffffn),
    seedHigh: Number(bits >> 32n),
    topLogprobs,
    bannedTokens: bytesFromInt32([]),
  };
}

/** What a step asks beside the scheduled rows, looked up per sequence while the header is built. */
export interface RowRequests {
  /** The request's name in the logs, with a sequence's first rows; else empty. */
  requestId: string;
  /** Of a prefix-LM's sequence. */
  context: PromptContext | null;
  sampling: SequenceSampling;
  /** Ids that may not be drawn this time. */
  bannedTokens: readonly number[];
  /** The known next token of each row, -1 for none; empty when nothing is scored. */
  scoreTargets: readonly number[];
}

/** What a step asks beside a slice of a context. */
export interface ContextRequest {
  /** The request's name in the logs, with a sequence's first rows; else empty. */
  requestId: string;
  context: PromptContext;
}

/** Looked up while a header is built. */
export interface StepRequests {
  rows(rows: ScheduledRows): RowRequests;
  /** For all rows behind those that are on their way; null while that differs from row to row. */
  decodes(sequence: SequenceId): RowRequests | null;
  slice(slice: ScheduledSlice): ContextRequest;
}

export interface SequenceOutcome {
  sequence: SequenceId;
  /** The drawn tokens in order, more than one when a draft held; empty when the step asked for none. */
  drawn: TokenLogprob[];
  scores: TokenLogprob[];
  /**
   * False when a logit behind the drawn tokens, or of a score, was NaN or infinite: the request fails with the
   * next token, the pipeline goes on. Nothing counts as drawn beside such a score.
   */
  finite: boolean;
}

interface SequenceInFlight {
  id: SequenceId;
  sample: boolean;
  scores: number;
  draft: readonly number[];
  /** Of the first token that is drawn. */
  position: number;
}

interface StepInFlight {
  sequences: SequenceInFlight[];
  /** The sequence with a slice, which gives no result. */
  sliced: SequenceId | null;
  sentAtMs: number;
}

export class Pipeline {
  readonly epoch: Epoch;
  readonly #id: PipelineId;
  readonly #send: (header: StepHeader) => void;
  readonly #stageCount: number;
  /** In the order sent. Bounded by maxMicroBatchesInFlight through the scheduler. */
  readonly #inFlight = new Map<number, StepInFlight>();
  readonly #decodes = new DecodeRows();

  /** @param stageCount Every result says of so many stages how long they computed. */
  constructor(epoch: Epoch, id: PipelineId, send: (header: StepHeader) => void, stageCount: number) {
    this.epoch = epoch;
    this.#id = id;
    this.#send = send;
    this.#stageCount = stageCount;
  }

  /** When the oldest step in flight was sent; null when none is. */
  get oldestSentAtMs(): number | null {
    for (const step of this.#inFlight.values()) return step.sentAtMs;
    return null;
  }

  /** Sequences with rows between the coordinator and the last stage. */
  sequencesInFlight(): Set<SequenceId> {
    const ids = new Set<SequenceId>();
    for (const { sequences, sliced } of this.#inFlight.values()) {
      for (const { id } of sequences) ids.add(id);
      if (sliced !== null) ids.add(sliced);
    }
    return ids;
  }

  submit(scheduled: ScheduledStep, requests: StepRequests, nowMs: number): void {
    for (const sequence of scheduled.ended) this.#decodes.end(sequence);
    const sequences: StepInFlight["sequences"] = [];
    const header: StepHeader = {
      epoch: this.epoch,
      pipeline: this.#id,
      step: scheduled.step,
      ended: scheduled.ended,
      copies: scheduled.copies,
      slice: scheduled.slice && sliceMessage(scheduled.slice, requests.slice(scheduled.slice)),
      sequences: scheduled.rows.map((rows) => {
        const prepared = this.#decodes.fill(rows);
        const request = prepared === null ? requests.rows(rows) : null;
        sequences.push(inFlight(rows, request?.scoreTargets ?? noTargets));
        return prepared ?? rowsMessage(rows, request!);
      }),
    };
    const sliced = scheduled.slice?.sequence ?? null;
    this.#inFlight.set(scheduled.step, { sequences, sliced, sentAtMs: nowMs });
    this.#send(header);
    this.#prepareNext(scheduled.rows, requests);
  }

  /** While the step is on its way: what the next headers say of the sequences that it draws a token for. */
  #prepareNext(rows: readonly ScheduledRows[], requests: StepRequests): void {
    for (const { sequence, sample } of rows) {
      if (!sample || this.#decodes.has(sequence)) continue;
      const request = requests.decodes(sequence);
      if (request === null) continue;
      const none = { first: false, reused: 0, start: 0, tokens: [], newBlocks: [], draftRows: 0 };
      this.#decodes.prepare(sequence, rowsMessage({ sequence, sample, ...none }, request));
    }
  }

  /**
   * @returns One outcome per sequence of the step, or null for a message of another epoch.
   * @throws RelayError corrupt_message when the answer is not to the oldest step in flight or does
   *   not have what was asked for: the epoch cannot go on.
   */
  complete(result: StepResult__Output): SequenceOutcome[] | null {
    if (result.epoch === null || compareEpochs(result.epoch, this.epoch) !== 0) return null;
    const [oldest] = this.#inFlight.keys();
    if (oldest !== result.step) {
      throw new RelayError(
        "corrupt_message",
        `epoch ${formatEpoch(this.epoch)}: result of step ${result.step} came, expected ${oldest ?? "none"}`,
      );
    }
    const asked = this.#inFlight.get(result.step)!;
    this.#inFlight.delete(result.step);
    if (result.sequences.length !== asked.sequences.length) {
      throw this.#mismatch(result.step, `${result.sequences.length} sequences`, `${asked.sequences.length}`);
    }
    if (result.stageUs.length !== this.#stageCount) {
      const got = `compute times of ${result.stageUs.length} stages`;
      throw this.#mismatch(result.step, got, `${this.#stageCount}`);
    }
    return asked.sequences.map((expected, index) => {
      const got = result.sequences[index]!;
      if (got.sequence !== expected.id)
        throw this.#mismatch(result.step, `sequence ${got.sequence}`, `${expected.id}`);
      if (!answers(got, expected)) {
        throw this.#mismatch(result.step, `answers for sequence ${got.sequence}`, "what its header asked");
      }
      const scored = got.scores.every((token) => token.finite);
      return {
        sequence: expected.id,
        drawn: scored ? got.drawn.filter((token) => token.finite).map(tokenLogprob) : [],
        scores: got.scores.map(tokenLogprob),
        finite: scored && got.drawn.every((token) => token.finite),
      };
    });
  }

  #mismatch(step: number, got: string, expected: string): RelayError {
    return new RelayError("corrupt_message", `result of step ${step}: got ${got}, expected ${expected}`);
  }
}

const noDraft: readonly number[] = [];
const noTargets: readonly number[] = [];

function inFlight(rows: ScheduledRows, scoreTargets: readonly number[]): SequenceInFlight {
  const decided = rows.tokens.length - rows.draftRows;
  return {
    id: rows.sequence,
    sample: rows.sample,
    scores: scoreTargets.length === 0 ? 0 : scoreTargets.filter((target) => target >= 0).length,
    draft: rows.draftRows === 0 ? noDraft : rows.tokens.slice(decided),
    position: rows.start + decided,
  };
}

function rowsMessage(rows: ScheduledRows, request: RowRequests): SequenceRows {
  return {
    sequence: rows.sequence,
    validLength: rows.start,
    rowCount: rows.tokens.length,
    tokenIds: bytesFromInt32(rows.tokens),
    newBlocks: bytesFromInt32(rows.newBlocks),
    sampling: rows.sample ? samplingMessage(request) : null,
    scoreTargets: bytesFromInt32(request.scoreTargets),
    scoreTopLogprobs: Math.max(0, request.sampling.topLogprobs),
    context: request.context && contextMessage(request.context),
    requestId: request.requestId,
    draftRows: rows.draftRows,
  };
}

/** As many scores as asked for, and tokens up to the first that is not the draft's (or not finite), no further. */
function answers(got: SequenceResult__Output, expected: SequenceInFlight): boolean {
  const { drawn, scores } = got;
  if (scores.length !== expected.scores) return false;
  if (!expected.sample) return drawn.length === 0;
  if (got.drawnPosition !== expected.position || drawn.length === 0) return false;
  if (drawn.length > expected.draft.length + 1) return false;
  return drawn.every(({ token, finite }, index) => {
    const isLast = index === drawn.length - 1;
    if (!isLast) return finite && token === expected.draft[index];
    return !finite || index === expected.draft.length || token !== expected.draft[index];
  });
}

function sliceMessage(slice: ScheduledSlice, { requestId, context }: ContextRequest): Slice {
  const { sequence, rowCount, tokens, newBlocks, layerBegin, layerEnd } = slice;
  const rows = {
    sequence,
    validLength: 0,
    rowCount,
    tokenIds: bytesFromInt32(tokens),
    newBlocks: bytesFromInt32(newBlocks),
    context: contextMessage(context),
    requestId,
  };
  return { rows, layerBegin, layerEnd };
}

function contextMessage({ length, mask, constantPosition }: PromptContext): Context {
  return { length, maskPosition: constantPosition ? mask : -1 };
}

function samplingMessage({ sampling, bannedTokens }: RowRequests): Sampling {
  return bannedTokens.length === 0 ? sampling : { ...sampling, bannedTokens: bytesFromInt32(bannedTokens) };
}

function tokenLogprob(result: TokenResult__Output): TokenLogprob {
  if (result.topTokens.length === 0) return { token: result.token, logprob: result.logprob, top: [] };
  const ids = int32FromBytes(result.topTokens);
  const values = float32FromBytes(result.topLogprobs);
  return {
    token: result.token,
    logprob: result.logprob,
    top: Array.from(ids, (token, index) => ({ token, logprob: values[index]! })),
  };
}
